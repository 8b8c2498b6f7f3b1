// `/ws/session`: many turns with one CLI, approvals, turns that can be interrupted, connections that come back.

import { type Approval, Approvals, type Settled } from "./approvals.js";
import { errorOfRefusal, Refused, TrioClaudeError } from "./errors.js";
import { BUFFER_LIMIT, Inbox } from "./inbox.js";
import { Link, newToken, type State } from "./link.js";
import { checkNames, checkOpen } from "./names.js";
import { baseOf, type Closed, findClass, type Way } from "./sockets.js";
import { ENDING, isForAll, isOf, isRefusal, isResult, namesOf, type Turn } from "./turns.js";
import { asObject, type Json, type Line, parseObject, type SessionOptions } from "./wire.js";

/** Milliseconds in which a run that is left has to say how it ended. */
const PARTING_MS = 2_000;
/** The code of what is refused because the CLI does not ask any more. */
const NOT_OPEN = "not-open";
/** Answers to approvals that are remembered, in case that the server refuses them. */
const TOLD = 64;

export interface LineEvent extends Line {
  type: "line";
}
/** What the server itself says: `event` names it, the other fields are those of the wire contract. */
export interface GatewayEvent {
  type: "gateway";
  event: string;
  [name: string]: unknown;
}
/** A line of the CLI comes as `line`, or as `approval` where it asks for one: each number once. */
export type SessionEvent = LineEvent | GatewayEvent | Approval | Settled;
/** Text, or content blocks: text, image, document, tool_result. */
export type Content = string | Json[];

export interface Receipt {
  seen: number;
  killed: number;
  survivors: number | null;
  ms: number;
  containment: string;
}

/**
 * How a session ended for this client: the fields of the `ended` event, and the close.
 * `reason` is empty where there was no such event: the connection broke, or this client left a run that goes on.
 */
export interface SessionEnded {
  reason: string;
  lines?: number;
  retryable?: boolean;
  exit_status?: number | null;
  signal?: number | null;
  encoding_errors?: number;
  receipt?: Receipt;
  error?: string;
  code: number;
  close_reason: string;
  /** Why it was no good end. */
  failure?: TrioClaudeError;
}

export interface AttachOptions {
  run: string;
  after?: number | undefined;
  as?: "owner" | "viewer" | undefined;
}

export interface OpenOptions extends Way {
  /** Names the run in lists. */
  meta?: string | undefined;
  /** The options of the wire contract. */
  options?: SessionOptions | undefined;
  /** Seconds for which the run goes on without this client, and in which a broken connection is made anew. */
  grace?: number | undefined;
  /** Come to a run that is there, in place of a new one; the lines up to `after` are known. */
  attach?: AttachOptions | undefined;
  /** Ends the session, as `close` does. */
  signal?: AbortSignal | undefined;
  onState?: ((state: State) => void) | undefined;
  /** Hears what the server itself says, at once, also before the session has begun. */
  onEvent?: ((event: GatewayEvent) => void) | undefined;
  /** Characters of unread events that are kept; more end the session with `Overflow`. */
  bufferLimit?: number | undefined;
}

/**
 * A conversation with one CLI: iterate over what happens, or over one `turn`; one loop at a time.
 * Leaving a loop leaves the session open; `close` ends its run. A bad end is thrown where the program iterates.
 */
export class Session implements AsyncIterable<SessionEvent> {
  /** The run's id, for `attach`. */
  run = "";
  /** The CLI's id of this session, for the option `resume`; known of a run that was started here. */
  id = "";
  role: "owner" | "viewer" = "owner";
  hello: Json = {};
  /** Lines that nobody can give any more. */
  gaps = 0;
  state: State = "connecting";
  readonly ended: Promise<SessionEnded>;
  /** @internal */
  readonly begun: Promise<void>;
  private readonly link: Link;
  private readonly events: Inbox<SessionEvent>;
  private readonly asked = new Approvals();
  /** The turns that are read and have no result yet, by their messages. */
  private readonly turns = new Map<unknown, Turn>();
  private readonly answers = new Map<string, { resolve(value: Json): void; reject(error: unknown): void }>();
  private readonly told = new Set<string>();
  private readonly onState: OpenOptions["onState"];
  private readonly onEvent: OpenOptions["onEvent"];
  private begin!: (error?: unknown) => void;
  private last: Json | undefined;
  /** The turn that was said last and has no result yet. */
  private unfinished: Turn | undefined;
  private asking = 0;
  private isLeaving = false;
  private leavingTimer: ReturnType<typeof setTimeout> | undefined;
  private stay: ((why: TrioClaudeError) => void) | undefined;
  private readonly mustStay: boolean;

  /** @internal */
  constructor(given: OpenOptions) {
    checkOpen(given);
    const { url, key, ticket, WebSocket, grace, signal } = given;
    findClass(given);
    baseOf(url);
    this.mustStay = !grace && !given.attach;
    this.onState = given.onState;
    this.onEvent = given.onEvent;
    this.events = new Inbox(given.bufferLimit ?? BUFFER_LIMIT);
    this.begun = new Promise((resolve, reject) => {
      this.begin = (error) => (error === undefined ? resolve() : reject(error));
    });
    const take = {
      event: (said: Json, size: number) => this.takeEvent(said as GatewayEvent, size),
      line: (n: number, raw: string, line: Json | undefined) => this.takeLine(n, raw, line),
      state: (state: State) => this.setState(state),
    };
    this.link = new Link({ url, key, ticket, WebSocket }, firstOf(given), grace, take);
    const abort = (): void => this.abort(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort);
    this.ended = this.link
      .go()
      .then((closed) => this.finish(closed))
      .finally(() => signal?.removeEventListener("abort", abort));
    this.ended.catch(() => undefined);
  }

  /** The approvals that are open, by `request_id`. */
  get approvals(): ReadonlyMap<string, Approval> {
    return this.asked.open;
  }

  // what this program says; each throws once the session is over

  /** Say something to the model; return the message's name, by which a `refused` event has it as `uuid`. */
  send(content: Content): string {
    const uuid = newUuid();
    this.say(content, uuid);
    return uuid;
  }

  /**
   * Say something, and iterate up to and with the turn's `result` line. A turn that the CLI begins by itself, because a
   * background task has ended, comes with its `result` on the way. Of a turn whose loop was left early the next turn lets
   * the rest go, but for approvals. Of turns that the CLI answers at once the same `result` ends each, whichever reads it. What is said to a run that is just ending is not done, and throws nothing: `ended`
   * tells why.
   */
  async *turn(content: Content): AsyncGenerator<SessionEvent, void, undefined> {
    const uuid = newUuid();
    this.say(content, uuid);
    try {
      yield* this.readTurn(uuid);
    } finally {
      this.turns.delete(uuid);
    }
  }

  /** Let a tool run, with `updatedInput` in place of its own input where it is given. */
  approve(id: string, given: { updatedInput?: Json | undefined } = {}): void {
    checkNames("approve", given, { updatedInput: true });
    const { updatedInput } = given;
    this.answer(id, { behavior: "allow", ...(updatedInput && { updatedInput }) });
  }

  /** Keep a tool from running; the model reads the message. `interrupt` ends the turn. */
  deny(id: string, given: { message?: string | undefined; interrupt?: boolean | undefined } = {}): void {
    checkNames("deny", given, { message: true, interrupt: true });
    const { message = "denied by the user", interrupt = false } = given;
    this.answer(id, { behavior: "deny", message, ...(interrupt && { interrupt }) });
  }

  /** End the turn; what was said of the answer is kept, and the turn's `result` comes. */
  interrupt(): void {
    this.stop("interrupt");
  }

  /** End the turn, or the run behind the turn, or the process tree now. */
  stop(mode: "interrupt" | "end" | "kill"): void {
    this.link.send({ type: "gateway", op: "stop", mode });
  }

  /** Choose a model from the next turn on, null for the CLI's own. */
  async setModel(name: string | null): Promise<void> {
    await this.control("set_model", { model: name });
  }

  /** Make a control request of the CLI; return its answer. Throws `Refused`, also where the CLI refuses. */
  control(subtype: string, fields: Json = {}): Promise<Json> {
    const request_id = `client-${(this.asking += 1)}-${Math.random().toString(36).slice(2)}`;
    return new Promise((resolve, reject) => {
      this.link.send({ type: "control_request", request_id, request: { subtype, ...fields } });
      this.answers.set(request_id, { resolve, reject });
    });
  }

  /**
   * Leave, and let the run go on; only where it was started with a grace, or this client only watches. Throws `Refused`
   * where it was not, and stays.
   */
  async detach(): Promise<SessionEnded> {
    if (this.mustStay) throw new Refused("detach: the session was opened without `grace`", { code: "not-allowed" });
    if (!this.link.isOver) this.link.send({ type: "gateway", op: "detach" });
    const refused = new Promise<never>((_, reject) => (this.stay = reject));
    return Promise.race([this.leave(), refused]);
  }

  /** End the run, whatever it is at, and the session; a viewer only leaves. */
  async close(): Promise<SessionEnded> {
    if (this.role === "owner" && !this.link.isOver && (this.run || this.link.isStarting)) {
      try {
        this.stop("kill");
      } catch {
        // there is no connection, and without a grace the run is over with it
      }
      return this.leave();
    }
    this.isLeaving = true;
    this.link.leave();
    return this.ended;
  }

  // what the server says

  [Symbol.asyncIterator](): AsyncIterator<SessionEvent, undefined> {
    return { next: () => this.read() };
  }

  private async *readTurn(uuid: string): AsyncGenerator<SessionEvent, void, undefined> {
    let stale = this.unfinished;
    const turn: Turn = { before: stale };
    this.turns.set(uuid, turn);
    this.unfinished = turn;
    while (this.turns.has(uuid)) {
      const next = await this.read();
      if (next.done) return;
      const event = next.value;
      if (isRefusal(event, uuid)) turn.refusal = errorOfRefusal(event);
      if (turn.refusal) break;
      while (stale?.refusal) stale = stale.before;
      const own = isOf(event, uuid);
      if (own) stale = undefined;
      const ends = isResult(event) && (own ?? !stale);
      if (isResult(event)) this.unfinished = ends ? undefined : turn;
      if (!stale || isForAll(event)) yield event;
      if (ends) return;
      if (isResult(event) && (own === undefined || namesOf(event))) stale = undefined;
    }
    if (!turn.refusal) return;
    if (this.unfinished === turn) this.unfinished = stale;
    throw turn.refusal;
  }

  private async read(): Promise<IteratorResult<SessionEvent, undefined>> {
    const next = await this.events.next();
    if (next.done) return next;
    const event = next.value;
    if (event.type === "gateway" && isRefusal(event, event["uuid"])) this.refuseTurn(event);
    if (!isResult(event)) return next;
    this.unfinished = undefined;
    for (const name of namesOf(event) ?? []) this.turns.delete(name);
    return next;
  }

  /** Take that a message is refused: its turn is over, whichever reads that. */
  private refuseTurn(said: GatewayEvent): void {
    const turn = this.turns.get(said["uuid"]);
    if (turn) turn.refusal = errorOfRefusal(said);
    this.turns.delete(said["uuid"]);
  }

  private say(content: Content, uuid: string): void {
    this.link.send({ type: "user", message: { role: "user", content }, uuid });
  }

  private answer(id: string, response: Json): void {
    if (!this.asked.open.has(id)) throw new Refused(`no approval ${id} is open`, { code: "not-open" });
    this.link.send({ type: "control_response", response: { subtype: "success", request_id: id, response } });
    this.told.add(id);
    if (this.told.size > TOLD) this.told.delete(this.told.values().next().value as string);
    this.push(this.asked.settle(id, "answered"));
  }

  /** Wait a while for the end that was asked for, then go. */
  private async leave(): Promise<SessionEnded> {
    this.isLeaving = true;
    clearTimeout(this.leavingTimer);
    this.leavingTimer = setTimeout(() => this.link.leave(), PARTING_MS);
    return this.ended.finally(() => clearTimeout(this.leavingTimer));
  }

  private abort(why: unknown): void {
    this.begin(why);
    this.events.fail(why);
    void this.close();
  }

  private takeEvent(said: GatewayEvent, size: number): void {
    if (said.event === "hello") this.hello = said;
    if (said.event === "gap") this.gaps += Number(said["to"]) - Number(said["from"]) + 1;
    if (said.event === "ended") this.last = said;
    if (said.event === "refused") this.refuse(said);
    if (said.event === "started" || said.event === "attached") this.enter(said);
    aside(() => this.onEvent?.(said));
    if (!this.stays(said)) this.push([said], size);
    this.push(this.asked.settledByEvent(said));
    if (said.event === "attached") this.push(this.reconcile(said));
    if (said.event === "started" || said.event === "attached") this.begin();
  }

  /** Return which questions are open at a run that is come to, and which are not any more: somebody answered meanwhile. */
  private reconcile(said: Json): (Approval | Settled)[] {
    const pending = pendingOf(said);
    const gone = [...this.asked.open.keys()].filter((id) => !pending.some((one) => one.id === id));
    const asked = pending.filter(({ id }) => !this.told.has(id)); // what was told is said again, if it was not heard
    return [
      ...gone.flatMap((id) => this.asked.settle(id, "elsewhere")),
      ...asked.flatMap(({ n, raw, line }) => this.asked.ask(n, raw, line, true) ?? []),
    ];
  }

  private enter(said: GatewayEvent): void {
    this.run = String(said["run"]);
    if (said["session"]) this.id = String(said["session"]);
    if (said["role"]) this.role = said["role"] === "viewer" ? "viewer" : "owner";
  }

  private takeLine(n: number, raw: string, line: Json | undefined): void {
    const approval = this.asked.ask(n, raw, line);
    if (approval) return this.push([approval], raw.length);
    if (line?.["type"] === "control_response") this.answered(asObject(line["response"]) ?? {});
    if (!this.id && typeof line?.["session_id"] === "string") this.id = line["session_id"];
    this.push([{ type: "line", n, raw, line }], raw.length);
    if (line) this.push(this.asked.settledBy(line));
  }

  private answered(response: Json): void {
    const waiting = this.answers.get(String(response["request_id"]));
    this.answers.delete(String(response["request_id"]));
    if (response["subtype"] === "success") waiting?.resolve(asObject(response["response"]) ?? {});
    else waiting?.reject(new Refused(String(response["error"]), { code: "cli", said: response }));
  }

  /** Tell who waits; of an approval whose answer is refused the CLI is told that there is none, or it would wait for it. */
  private refuse(said: Json): void {
    const id = String(said["request_id"]);
    this.answers.get(id)?.reject(errorOfRefusal(said));
    this.answers.delete(id);
    if (!this.told.delete(id) || said["code"] === ENDING || said["code"] === NOT_OPEN) return;
    const response = { subtype: "error", request_id: id, error: "the client's answer was refused" };
    this.link.send({ type: "control_response", response });
  }

  /** Stay where a detach is refused, and tell who asked for it, nobody else; return whether this was that. */
  private stays(said: Json): boolean {
    if (!this.stay || said["event"] !== "refused" || said["code"] !== "not-allowed") return false;
    if ("request_id" in said || "uuid" in said) return false; // of an answer, or of a message
    this.isLeaving = false;
    clearTimeout(this.leavingTimer);
    this.stay(errorOfRefusal(said));
    this.stay = undefined;
    return true;
  }

  private push(events: SessionEvent[], size = 0): void {
    for (const event of events) {
      if (this.events.push(event, size)) continue;
      const error = this.events.overflow();
      this.link.leave(error);
    }
  }

  private setState(state: State): void {
    this.state = state;
    aside(() => this.onState?.(state));
  }

  private finish(closed: Closed): SessionEnded {
    const { type: _, event: __, ...told } = this.last ?? {};
    const failure = this.isLeaving ? undefined : closed.error;
    const over = failure ?? new TrioClaudeError("the session is over", { code: "over" });
    this.begin(over);
    for (const waiting of this.answers.values()) waiting.reject(over);
    this.answers.clear();
    this.asked.open.clear();
    this.events.close(failure);
    const ended = { reason: "", ...told, code: closed.code, close_reason: closed.reason } as SessionEnded;
    return failure ? { ...ended, failure } : ended;
  }
}

/** Call what a program gave; what it throws is nobody's to catch here, and stops nothing. */
function aside(call: () => void): void {
  try {
    call();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/** Return a name for a message; a page without TLS has no `crypto.randomUUID`. */
function newUuid(): string {
  return newToken().replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function firstOf({ meta = "SESSION", options = {}, grace, attach }: OpenOptions): Json {
  if (attach) return { type: "gateway", op: "attach", after: 0, ...attach };
  const all = grace ? { ...options, on_disconnect: { grace } } : options;
  return { type: "gateway", op: "start", meta, options: all };
}

/** The questions that an `attached` says are open, by their ids. */
function pendingOf(said: Json): { id: string; n: number; raw: string; line: Json | undefined }[] {
  const pending = Array.isArray(said["pending"]) ? said["pending"] : [];
  return pending.map(({ n, line: given }) => {
    const raw = typeof given === "string" ? given : JSON.stringify(given);
    const line = parseObject(raw);
    return { id: String(line?.["request_id"]), n: Number(n), raw, line };
  });
}

/** Open a session, or come to one; resolves once it has started. `close` ends it. */
export async function openSession(options: OpenOptions = {}): Promise<Session> {
  const session = new Session(options);
  await session.begun;
  return session;
}
