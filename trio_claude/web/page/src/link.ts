// One session over /ws/session that comes back where its connection breaks: what the page needs of it and no more.
// Rule: a key is in memory only, and never in an address; a browser's socket is opened with a ticket.
import type { Json } from "./tools";

export type Item =
  | { type: "line"; n: number; raw: string; line: Json }
  | ({ type: "gateway"; event: string } & Json)
  | { type: "approval"; request_id: string; tool_name: string; input: Json; tool?: string };

export type Connection = "connecting" | "connected" | "reconnecting" | "closed";

export interface Wish {
  key?: string;
  meta?: string;
  options?: Json;
  grace?: number;
  attach?: { run: string; after: number; as?: "owner" | "viewer" };
  onState?: (state: Connection, why: string) => void;
}

/** A server that refuses: `code` as in docs/protocol.md. */
export class Refused extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 5000;

export async function api(path: string, key: string, init: RequestInit = {}): Promise<Response> {
  const headers: Record<string, string> = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...init, headers });
  if (answer.ok) return answer;
  const said = (await answer.json().catch(() => ({}))) as Json;
  throw new Refused(String(said.code ?? answer.status), String(said.error ?? `HTTP ${answer.status}`));
}

async function subprotocols(key: string): Promise<string[]> {
  if (!key) return ["trio-claude.v1"];
  const { ticket } = (await (await api("/api/ticket", key, { method: "POST" })).json()) as { ticket: string };
  return ["trio-claude.v1", `ticket.${btoa(ticket).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`];
}

export class Session {
  hello: Json = {};
  run = "";
  id = "";
  ended: Json | null = null;
  private n: number;
  private socket: WebSocket | null = null;
  private readonly items: Item[] = [];
  private wake: () => void = () => {};
  private over = false;
  private failure: Error | null = null;
  private left = false;
  private grace = 0;
  private pause = FIRST_PAUSE;
  private deadline = 0;

  constructor(private readonly wish: Wish) {
    this.n = wish.attach?.after ?? 0;
    this.run = wish.attach?.run ?? "";
    void this.connect();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Item> {
    for (;;) {
      while (this.items.length) yield this.items.shift()!;
      if (this.over) break;
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
    if (this.failure) throw this.failure;
  }

  send(text: string): void {
    this.say({ type: "user", message: { role: "user", content: text } });
  }

  approve(request: string, { updatedInput }: { updatedInput?: Json } = {}): void {
    this.answer(request, { behavior: "allow", ...(updatedInput ? { updatedInput } : {}) });
  }

  deny(request: string, { message }: { message: string }): void {
    this.answer(request, { behavior: "deny", message });
  }

  setModel(model: string): void {
    const request = { subtype: "set_model", ...(model ? { model } : {}) };
    this.say({ type: "control_request", request_id: crypto.randomUUID(), request });
  }

  stop(mode: "interrupt" | "end" | "kill"): void {
    this.say({ type: "gateway", op: "stop", mode });
  }

  close(): void {
    this.left = true;
    this.socket?.close(1000);
    this.finish(null);
  }

  private answer(request_id: string, response: Json): void {
    this.say({ type: "control_response", response: { subtype: "success", request_id, response } });
  }

  private say(message: Json): void {
    if (this.socket?.readyState !== WebSocket.OPEN) throw new Refused("away", "there is no connection just now");
    this.socket.send(JSON.stringify(message));
  }

  private async connect(): Promise<void> {
    this.wish.onState?.(this.pause === FIRST_PAUSE ? "connecting" : "reconnecting", "");
    try {
      const offered = await subprotocols(this.wish.key ?? "");
      const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/session`, offered);
      this.socket = socket;
      socket.onmessage = (event) => this.take(String(event.data));
      socket.onclose = (event) => {
        this.taken ||= event.code === 1000; // by another page
        this.lost(event.reason || `closed ${event.code}`);
      };
    } catch (error) {
      if (error instanceof Refused) this.finish(error);
      else this.lost("the server can't be reached");
    }
  }

  private lost(why: string): void {
    this.socket = null;
    if (this.over || this.left) return;
    this.deadline ||= Date.now() + this.grace * 1000;
    if (!this.run || Date.now() > this.deadline) return this.finish(new Refused("lost", `the connection was lost: ${why}`));
    this.wish.onState?.("reconnecting", why);
    setTimeout(() => void this.connect(), this.pause);
    this.pause = Math.min(LONGEST_PAUSE, this.pause * 2);
  }

  private take(data: string): void {
    const said = JSON.parse(data) as Json;
    if (said.type === "gateway") return this.hear(said);
    this.n += 1;
    this.put({ type: "line", n: this.n, raw: data, line: said });
    this.question(said);
  }

  private question(line: Json): void {
    const request = line.type === "control_request" ? line.request : null;
    if (request?.subtype !== "can_use_tool") return;
    const { tool_name, input, tool_use_id: tool } = request;
    this.put({ type: "approval", request_id: line.request_id, tool_name, input, tool });
  }

  private hear(said: Json): void {
    if (said.event === "hello") this.begin(said);
    if (said.event === "started") [this.run, this.id] = [said.run, said.session];
    if (said.event === "started" || said.event === "attached") {
      [this.pause, this.deadline] = [FIRST_PAUSE, 0];
      this.wish.onState?.("connected", "");
    }
    if (said.event === "gap") this.n = Math.max(this.n, said.to);
    if (said.event === "ended") this.ended = said;
    this.put(said as Item);
    for (const { line } of said.event === "attached" ? said.pending : []) this.question(typeof line === "string" ? JSON.parse(line) : line);
    if (said.event === "ended") this.finish(null);
    if (said.event === "refused" && !this.open) this.finish(new Refused(said.code, said.error));
  }

  private open = false;
  private taken = false;

  private begin(hello: Json): void {
    this.hello = hello;
    this.grace = Math.min(this.wish.grace ?? 0, hello.limits?.grace ?? 0);
    this.open = false;
    if (this.run) {
      const as = this.taken ? "viewer" : this.wish.attach?.as;
      return this.first({ op: "attach", run: this.run, after: this.n, ...(as ? { as } : {}) });
    }
    const options = { ...this.wish.options, ...(this.grace ? { on_disconnect: { grace: this.grace } } : {}) };
    this.first({ op: "start", meta: this.wish.meta, options });
  }

  private first(message: Json): void {
    this.socket?.send(JSON.stringify({ type: "gateway", ...message }));
  }

  private put(item: Item): void {
    if (item.type === "gateway" && (item.event === "started" || item.event === "attached")) this.open = true;
    this.items.push(item);
    this.wake();
  }

  private finish(failure: Error | null): void {
    if (this.over) return;
    [this.over, this.failure] = [true, failure];
    this.wish.onState?.("closed", failure?.message ?? "");
    this.wake();
  }
}
