// The conversation: one session at a time, from its first prompt to its receipt, over reloads and lost connections.
// Rule: of a run that goes on the browser keeps its id and nothing else; a key stays in memory.
import { announce, find, h } from "./dom";
import { keepFrame } from "./frames";
import { Refused, Session, type Connection, type Item } from "./link";
import { Meters } from "./meters";
import { getRun, tell } from "./past";
import type { Json } from "./tools";
import { Transcript } from "./transcript";
import { receiptWords, seconds } from "./words";

/** Seconds for which a run waits for this page to come back, where the server allows so many. */
const GRACE = 300;
const KEPT = "run";

/** Something that leads a run in the user's place: the demonstration. */
export interface Script {
  onQuestion(request: string, name: string, input: Json): boolean;
  onLine(line: Json): void;
  onEnded(said: Json): void;
}

export class Talk {
  key = "";
  readonly transcript: Transcript;
  private readonly meters = new Meters();
  private session: Session | null = null;
  private owner = true;
  private busy = false;
  private stopping = false;
  private waiting: string[] = [];
  private conversation = "";
  private resume = "";
  private script: Script | null = null;
  private connection: Connection | "idle" = "idle";
  /** Called with whether the server wants a key that it does not have. */
  onKeyWanted: (why: string) => void = () => {};

  constructor() {
    const answers = {
      allow: (id: string, input?: Json) => this.tryTo(() => this.session?.approve(id, input ? { updatedInput: input } : {})),
      deny: (id: string, message: string) => this.tryTo(() => this.session?.deny(id, { message })),
    };
    this.transcript = new Transcript(find("transcript"), find("scroll"), () => (this.owner ? answers : null));
    this.listen();
    this.show();
  }

  get isLive(): boolean {
    return this.session !== null;
  }

  /** Send a prompt: to the run there is, else to a new one. */
  send(text: string, script: Script | null = null): void {
    if (this.session && !this.owner) return;
    if (!this.session) this.begin(script);
    this.transcript.say(text);
    find("welcome").hidden = true;
    if (this.session && this.session.run && this.connection === "connected") this.tryTo(() => this.session!.send(text));
    else this.waiting.push(text);
    this.setBusy(true, "waiting for an answer");
  }

  /** Come back to a run, or watch it. */
  async attach(run: string, as?: "owner" | "viewer"): Promise<void> {
    this.leave();
    this.fresh();
    find("welcome").hidden = true;
    let after = 0;
    try {
      const row = await getRun(this.key, run);
      this.conversation = row.session ?? "";
      after = await tell(this.key, row, this.transcript, (line, raw) => this.look(line, raw));
    } catch (error) {
      if (error instanceof Refused && error.code === "unauthorized") return this.onKeyWanted(error.message);
      this.transcript.note("What was said before is not kept by this server.");
    }
    this.owner = as !== "viewer";
    this.follow(new Session({ key: this.key, grace: GRACE, attach: { run, after, ...(as ? { as } : {}) }, onState: this.onState }));
  }

  /** Come back to the run that this tab had, if any. */
  comeBack(): boolean {
    const run = kept();
    if (run) void this.attach(run);
    return !!run;
  }

  /** Go on with an earlier conversation: the next prompt does. */
  goOn(conversation: string): void {
    this.resume = conversation;
    this.banner("The next prompt goes on with this conversation, in a new run.");
    find<HTMLTextAreaElement>("prompt").focus();
  }

  stop(): void {
    if (!this.session || !this.busy || !this.owner) return;
    this.tryTo(() => this.session!.stop(this.stopping ? "kill" : "interrupt"));
    this.stopping = true;
    this.meters.state("stopping; again ends it all now");
    this.show();
  }

  end(): void {
    this.tryTo(() => this.session?.stop("end"));
    this.meters.state("ending");
  }

  /** Leave a run that is watched; one that is owned is ended by `end` alone. */
  leave(): void {
    const session = this.session;
    this.session = null;
    session?.close();
  }

  // -- a run from its beginning ---------------------------------------------------------------------------------------

  private begin(script: Script | null): void {
    if (!this.resume) this.fresh();
    this.script = script;
    this.owner = true;
    find("proof").hidden = true;
    this.banner("");
    const model = find<HTMLInputElement>("model").value.trim();
    const options = { partial: true, ...(model ? { model } : {}), ...(this.resume ? { resume: this.resume } : {}) };
    this.resume = "";
    const meta = find<HTMLInputElement>("meta").value;
    this.follow(new Session({ key: this.key, meta, options, grace: GRACE, onState: this.onState }));
  }

  private fresh(): void {
    this.transcript.clear();
    this.meters.reset();
    this.waiting = [];
    this.script = null;
    this.conversation = "";
    this.stopping = this.busy = false;
    find("proof").hidden = true;
    find("run").hidden = true;
    this.banner("");
  }

  private async follow(session: Session): Promise<void> {
    this.session = session;
    this.show();
    try {
      for await (const item of session) if (session === this.session) this.take(item);
    } catch (error) {
      if (session === this.session) this.fail(error as Error);
    }
    if (session === this.session) this.over(session);
  }

  private take(item: Item): void {
    if (item.type === "line") return this.takeLine(item.line, item.raw);
    if (item.type === "approval") return this.takeQuestion(item);
    keepFrame(JSON.stringify(item));
    if (item.event === "started") this.started(item);
    if (item.event === "attached") this.attached(item);
    if (item.event === "queued") this.meters.state(`waiting for a free place: number ${item.position}`);
    if (item.event === "gap") this.transcript.note(`Lines ${item.from} to ${item.to} can't be shown: nobody has them any more.`);
    if (item.event === "refused") this.transcript.note(`Refused: ${item.error}`, "note fault");
    if (item.event === "stderr") this.transcript.note(String(item.line), "note stderr");
    if (item.event === "stalled") this.meters.state(`nothing has come for ${seconds(item.seconds * 1000)}`);
    if (item.event === "denied") this.transcript.settle(item.request, "nobody answered in time: denied");
    if (item.event === "ended") this.ended(item);
  }

  private started(said: Json): void {
    this.conversation = said.session;
    keep(said.run);
    this.showRun(said.run);
    for (const text of this.waiting.splice(0)) this.tryTo(() => this.session!.send(text));
  }

  private attached(said: Json): void {
    this.owner = said.role === "owner";
    if (this.owner && !said.ended) keep(said.run);
    this.showRun(said.run);
    if (!said.ended) this.setBusy(this.busy, this.busy ? "the turn goes on" : "ready", false);
    if (!this.owner && !said.ended) this.offer("You watch this run; another page owns it.", "Take over", () => void this.attach(said.run, "owner"));
    for (const text of this.waiting.splice(0)) this.tryTo(() => this.session!.send(text));
  }

  private takeLine(line: Json, raw: string): void {
    this.transcript.take(line);
    this.look(line, raw);
    this.script?.onLine(line);
  }

  /** Take what a line means for the figures. */
  private look(line: Json, raw: string): void {
    keepFrame(raw);
    this.meters.take(line);
    if (line.type === "result") {
      this.stopping = false;
      this.setBusy(false, "ready");
      announce("The answer is complete.");
    } else if (line.type === "assistant") this.setBusy(true, phase(line));
    else if (line.type === "user") this.setBusy(true, "waiting for an answer");
    else if (line.type === "stream_event" && line.event?.type === "content_block_start") this.setBusy(true, "writing");
    else if (line.type === "system" && line.subtype === "init") this.setBusy(true, "waiting for an answer");
  }

  private takeQuestion(item: Item & { type: "approval" }): void {
    this.transcript.ask(item.request_id, item.tool_name, item.input, item.tool);
    if (this.script?.onQuestion(item.request_id, item.tool_name, item.input)) {
      this.tryTo(() => this.session!.approve(item.request_id));
      return this.transcript.settle(item.request_id, "allowed by the demonstration's button");
    }
    this.meters.state(this.owner ? `asks you: may ${item.tool_name} run?` : `asks whether ${item.tool_name} may run`);
    announce(`Claude asks whether ${item.tool_name} may run. Alt A goes to the question.`);
  }

  private ended(said: Json): void {
    forget();
    const receipt = said.receipt;
    const words = receipt ? receiptWords(receipt) : "no receipt";
    const how = said.exit_status == null ? said.reason : `${said.reason} ${said.exit_status}`;
    const more = receipt ? `${how} · ${seconds(receipt.ms)} · held by ${receipt.containment}` : how;
    const clean = receipt?.survivors === 0;
    this.transcript.end();
    this.transcript.add(h("div", { class: "receipt", "data-clean": String(clean) }, h("strong", {}, words), h("span", {}, more)));
    if (said.error) this.transcript.note(String(said.error), "note fault");
    this.setBusy(false, `ended: ${how}`);
    announce(`The run has ended: ${words}.`);
    this.script?.onEnded(said);
    if (said.reason === "node-lost") this.lostServer("The server was started anew, and the run ended with it.");
    else if (this.conversation) this.offerGoOn("The run is over. A prompt begins a new one.");
  }

  private fail(error: Error): void {
    const code = error instanceof Refused ? error.code : "";
    if (code === "unauthorized") return this.onKeyWanted(error.message);
    if (this.session?.run && this.session.hello && code !== "rate") forget();
    if (code === "lost" || (this.session?.run && code !== "rate")) return this.lostServer(gone(error.message));
    this.transcript.note(`Refused: ${error.message}`, "note fault");
    this.meters.state("refused");
  }

  private over(session: Session): void {
    session.close();
    this.session = null;
    this.waiting = [];
    this.script = null;
    this.transcript.end();
    this.setBusy(false, find("state").textContent ?? "");
    if (find("state").textContent === "waiting for an answer") this.meters.state("ready");
    this.connection = "idle";
    this.show();
  }

  private lostServer(why: string): void {
    forget();
    this.meters.state("the run is gone");
    this.transcript.note(why, "note fault");
    if (this.conversation) this.offerGoOn(why);
  }

  // -- what the page shows --------------------------------------------------------------------------------------------

  private readonly onState = (state: Connection, why: string): void => {
    const came = this.connection === "reconnecting" && state === "connected";
    this.connection = state;
    if (came) announce("The connection is back.");
    if (state === "reconnecting" && why) announce("The connection is lost; trying again.");
    this.show();
  };

  private setBusy(on: boolean, state: string, seen = true): void {
    this.busy = on;
    this.meters.turn(on, seen);
    if (!this.stopping || !on) this.meters.state(state);
    this.show();
  }

  private show(): void {
    const here = this.connection === "connected";
    const names = { idle: "not connected", connecting: "connecting", connected: "connected", reconnecting: "connection lost: trying again", closed: "not connected" };
    const link = find("link");
    link.textContent = this.owner || !here ? names[this.connection] : "watching";
    link.dataset.state = this.connection;
    const live = this.isLive;
    set("send", live && !this.owner);
    set("stop", !(live && this.busy && this.owner && here));
    set("end", !(live && this.owner && here));
    set("meta", live);
    set("daemons", live);
    find("stop").textContent = this.stopping ? "Kill" : "Stop";
  }

  private showRun(run: string): void {
    find("run").hidden = false;
    find("run").textContent = `run ${run.slice(0, 8)}`;
    find("run").title = run;
  }

  private offerGoOn(why: string): void {
    const conversation = this.conversation;
    this.offer(why, "Go on with this conversation", () => this.goOn(conversation));
  }

  private offer(text: string, what: string, act: () => void): void {
    const button = h("button", { type: "button", id: "offer" }, what);
    button.addEventListener("click", act);
    this.banner(text, button);
  }

  private banner(text: string, ...more: HTMLElement[]): void {
    find("banner").replaceChildren(h("p", {}, text), ...more);
    find("banner").hidden = !text;
    this.transcript.toEnd();
  }

  private tryTo(act: () => void): void {
    try {
      act();
    } catch (error) {
      this.transcript.note((error as Error).message, "note fault");
    }
  }

  private listen(): void {
    find<HTMLInputElement>("model").addEventListener("change", (event) => {
      const model = (event.target as HTMLInputElement).value.trim();
      if (!this.session || !this.owner) return;
      this.tryTo(() => this.session!.setModel(model));
      this.transcript.note(model ? `From now on: ${model}.` : "From now on: the CLI's own model.");
    });
  }
}

function set(id: string, disabled: boolean): void {
  find<HTMLButtonElement>(id).disabled = disabled;
}

function phase(line: Json): string {
  const tools = (line.message?.content ?? []).filter((block: Json) => block.type === "tool_use");
  return tools.length ? `running ${tools.map((block: Json) => block.name).join(", ")}`.slice(0, 80) : "writing";
}

function gone(why: string): string {
  return why.startsWith("there is no run") ? "This run is gone: the server was started anew, or the time to come back is over." : why;
}

function keep(run: string): void {
  sessionStorage.setItem(KEPT, run);
}

function kept(): string | null {
  const run = sessionStorage.getItem(KEPT);
  return run && /^[0-9a-f]{1,64}$/.test(run) ? run : null;
}

function forget(): void {
  sessionStorage.removeItem(KEPT);
}

