// The conversation: one session at a time, from its first prompt to its receipt, over reloads and lost connections.
// Rule: of a run that goes on the browser keeps its id and nothing else; a key stays in memory.
import { Busy, ConnectionLost, openSession, Refused, TrioClaudeError, type GatewayEvent, type OpenOptions, type Session, type SessionEvent, type State } from "../../client/client";
import { Banner } from "./banner";
import { announce, find, setText } from "./dom";
import { keepFrame } from "./frames";
import { forget, keep, kept } from "./kept";
import { ApiRefused, HERE, KEY_CODES, NOT_KEPT, NOT_NOW } from "./link";
import { Meters } from "./meters";
import { getRun, tell } from "./past";
import { Prompts } from "./prompts";
import { visible, type Json } from "./tools";
import { Transcript } from "./transcript";
import { Turn, WAITING } from "./turn";
import { asked, HISTORY, seconds, SETTLED, STATES, whyOf } from "./words";

/** Something that leads a run in the user's place: the demonstration. */
export interface Script {
  onQuestion(name: string): boolean;
  onLine(line: Json): void;
  onEnded(said: Json): void;
}

export class Talk {
  key = "";
  /** Seconds for which a run waits for this page to come back. */
  grace = 0;
  /** Called where the server wants a key, or another one. */
  onKeyWanted: (why: string) => void = () => {};
  readonly transcript: Transcript;
  private readonly banner = new Banner(() => this.transcript.followSoon());
  private readonly meters = new Meters();
  private session: Session | null = null;
  /** Given up where another run takes the page. */
  private opening: AbortController | null = null;
  private state: State | "idle" = "idle";
  private owner = true;
  private busy = false;
  private stopping = false;
  private last = 0;
  private run = "";
  private ended: Json | null = null;
  private readonly prompts = new Prompts((isUnsaid) => this.transcript.note(`A prompt ${isUnsaid ? "was not sent" : "may not have been heard"}; it is in its field again.`));
  private turn = new Turn();
  /** The model that was chosen since the run was asked for. */
  private chosen: string | null = null;
  /** Whether what was said before is being told: a prompt is shown behind it. */
  private telling = false;
  private conversation = "";
  private resume = "";
  private script: Script | null = null;

  constructor() {
    const answers = {
      allow: (id: string, input?: Json) => this.tryTo(() => this.session?.approve(id, { updatedInput: input })),
      deny: (id: string, message: string) => this.tryTo(() => this.session?.deny(id, { message })),
    };
    this.transcript = new Transcript(find("transcript"), find("scroll"), () => (this.owner ? answers : null));
    find<HTMLInputElement>("model").addEventListener("change", (event) => void this.choose((event.target as HTMLInputElement).value.trim()));
    this.show();
  }

  /** Whether there is a run, or one is being opened. */
  get isLive(): boolean {
    return this.opening !== null;
  }

  /** The run that this page leads, empty where there is none. */
  get leads(): string {
    return this.isLive && this.owner ? this.run : "";
  }

  /** Send a prompt: to the run there is, else to a new one. */
  send(text: string, script: Script | null = null): void {
    if (this.isLive && !this.owner) return;
    if (!this.isLive) this.begin(script);
    if (!this.telling) this.transcript.say(text);
    find("welcome").hidden = true;
    this.prompts.add(text);
    this.setBusy(true, WAITING);
    if (this.session && !this.ended && this.state !== "lost") this.speak(this.session); // else it waits: for the way back, or for the close, and then is given back
  }

  /** Come back to a run, or watch it: first what the journal has, then what comes. */
  async attach(run: string, as?: "owner" | "viewer"): Promise<void> {
    this.leave();
    this.fresh();
    find("welcome").hidden = true;
    this.run = run;
    this.owner = as !== "viewer";
    const opening = this.claim();
    const isOn = () => this.opening === opening;
    this.telling = true;
    try {
      const row = await getRun(this.key, run);
      if (!isOn()) return;
      this.conversation = row.session ?? "";
      await tell(this.key, row, this.transcript, isOn, (line, raw, n) => this.tellAgain(line, raw, n));
    } catch (error) {
      if (!isOn()) return;
      if (error instanceof ApiRefused && KEY_CODES.has(error.code)) return this.refuse(opening, error.message);
      this.transcript.note(NOT_KEPT.has((error as ApiRefused).code) ? "What was said before is not kept by this server." : `Not all that was said before could be read: ${whyOf(error)}`);
    }
    if (!isOn()) return;
    this.telling = false;
    for (const text of this.prompts.all) this.transcript.say(text);
    await this.follow(opening, { attach: { run, after: this.last, ...(as && { as }) } });
  }

  /** Come back to the run that this tab had, if any; by another key to the one that it has, where that may be left. */
  comeBack(): void {
    const run = this.isLive ? this.grace && this.leads : kept();
    if (run) void this.attach(run, this.isLive ? "owner" : undefined);
  }

  /** Go on with an earlier conversation: the next prompt does. */
  goOn(conversation: string): void {
    if (this.isLive && !this.ended) return this.banner.say("There is a run here. End it first; then another conversation can go on.");
    if (this.isLive) this.giveUp(); // its close is all that is still to come
    if (conversation !== this.conversation) this.fresh(); // what stands here is of another
    this.resume = conversation;
    this.banner.say("The next prompt goes on with this conversation, in a new run.");
    find<HTMLTextAreaElement>("prompt").focus();
  }

  /** Stop the turn; where that was asked for already, end the run now. */
  stop(): void {
    if (!this.busy || !this.owner) return;
    if (this.isQueued) return this.giveUp();
    if (!this.session) return;
    if (this.state === "lost") this.takeBack(); // else it would be said behind the stop
    if (!this.busy) return;
    this.tryTo(() => this.session?.stop(this.stopping ? "kill" : "interrupt"));
    this.meters.state(this.stopping ? "ending it all now" : "stopping; once more ends the run now");
    this.stopping = true;
    this.show();
  }

  /** End the run behind the turn. */
  end(): void {
    if (this.state === "lost") this.takeBack();
    this.tryTo(() => this.session?.stop("end"));
    this.meters.state("ending");
  }

  // -- a run from its beginning ---------------------------------------------------------------------------------------

  private begin(script: Script | null): void {
    const resume = this.resume;
    if (!resume) this.fresh();
    this.ended = null;
    this.stopping = false;
    this.last = 0;
    this.resume = this.run = "";
    this.script = script;
    this.owner = true;
    find("proof").hidden = true;
    this.banner.say("");
    const model = find<HTMLInputElement>("model").value.trim();
    const options = { partial: true, ...(model && { model }), ...(resume && { resume }) };
    void this.follow(this.claim(), { meta: find<HTMLInputElement>("meta").value, options });
  }

  private fresh(): void {
    this.transcript.clear();
    this.meters.reset();
    this.prompts.clear();
    this.script = this.ended = null;
    this.conversation = this.run = this.resume = "";
    this.stopping = this.busy = this.telling = false;
    this.last = 0;
    find("proof").hidden = find("run").hidden = true;
    this.banner.say("");
  }

  private claim(turn = new Turn()): AbortController {
    this.opening = new AbortController();
    this.chosen = null;
    this.turn = turn;
    this.show();
    return this.opening;
  }

  /** Leave for another run: what is owned goes on for its grace, if it has one. */
  private leave(): void {
    const session = this.session;
    const going = this.opening;
    this.session = this.opening = null;
    if (!session) return going?.abort();
    const left = this.grace || !this.owner ? session.detach().catch(() => session.close()) : session.close(); // a run that may not be left ends
    void left.catch(() => undefined);
  }

  /** Open a session and hear it to its end, as long as the page is on it. */
  private async follow(opening: AbortController, how: OpenOptions): Promise<void> {
    const isOn = () => this.opening === opening;
    try {
      const onState = (state: State) => isOn() && this.setState(state);
      const onEvent = (event: GatewayEvent) => isOn() && event.event === "queued" && this.meters.state(`waiting for a free place: number ${event["position"]}`);
      const key = this.key || undefined;
      const session = await openSession({ ...how, url: HERE, key, grace: this.grace || undefined, signal: opening.signal, onState, onEvent });
      if (!isOn()) return;
      this.session = session;
      if (this.chosen !== null) void this.choose(this.chosen);
      this.speak(session);
      for await (const event of session) {
        if (!isOn()) return;
        this.tryTo(() => this.take(event)); // an odd line of the CLI is no reason to leave its run
      }
      if (isOn() && !this.ended && this.owner && this.run) return this.wasTaken();
    } catch (error) {
      if (isOn()) this.fail(opening, error);
    }
    if (isOn()) this.over();
  }

  private speak(session: Session): void {
    this.tryTo(() => this.prompts.speak((text) => session.send(text)));
    this.takeBack();
  }

  /** Give back what was not taken: the turn that it was for does not begin. */
  private takeBack(): void {
    if (this.prompts.giveBack() && !this.turn.on) this.setBusy(false, this.askedOr("ready"));
  }

  private take(event: SessionEvent): void {
    if (event.type === "line") return this.takeLine(event.line ?? { text: event.raw }, event.raw, event.n);
    if (event.type === "settled") return this.transcript.settle(event.request_id, SETTLED[event.how]);
    if (event.type === "gateway") return this.hear(event);
    this.last = Math.max(this.last, event.n);
    keepFrame(event.raw);
    this.question(event.request_id, event.tool_name, event.input, event.tool_use_id);
  }

  private hear(said: Json): void {
    keepFrame(JSON.stringify(said));
    if (said.event === "started") this.started(said);
    if (said.event === "attached") this.attached(said);
    if (said.event === "gap") this.transcript.note(`Lines ${said.from} to ${said.to} can't be shown: nobody has them any more.`);
    if (said.event === "unfinished") this.transcript.note(`The last turn was cut off. What there was of its answer: ${said.text || "nothing"}`);
    if (said.event === "refused") this.refused(said);
    if (said.event === "history") this.transcript.note(HISTORY[said.state] ?? said.state);
    if (said.event === "stderr") this.transcript.note(String(said.line), "note stderr");
    if (said.event === "stalled") this.meters.state(`nothing has come for ${seconds(said.seconds * 1000)}`);
    if (said.event === "ended") this.takeEnd(said);
  }

  private refused(said: Json): void {
    this.transcript.note(`Refused: ${whyOf({ message: said.error, retryAfter: said.retry_after })}`, "note fault");
    if (said.request_id !== undefined || NOT_NOW.has(said.code)) return;
    this.prompts.refuse(said.uuid);
    this.takeBack();
    if (KEY_CODES.has(said.code)) this.onKeyWanted(said.error);
  }

  private started(said: Json): void {
    this.conversation = said.session;
    keep(said.run);
    this.showRun(said.run);
  }

  private attached(said: Json): void {
    this.owner = said.role === "owner";
    this.showRun(said.run);
    if (said.ended) return;
    if (this.owner) keep(said.run);
    else this.banner.offer("You watch this run; another page leads it.", "Take over", () => void this.attach(said.run, "owner"));
    this.setBusy(this.busy, this.askedOr(this.busy ? "the turn goes on" : "ready"), false);
    if (this.session) this.speak(this.session); // what was said meanwhile
  }

  private tellAgain(line: Json, raw: string, n: number): void {
    this.last = n;
    this.look(line, raw, n);
  }

  private takeLine(line: Json, raw: string, n: number): void {
    this.last = n;
    this.transcript.take(line);
    this.look(line, raw, n);
    this.script?.onLine(line);
  }

  /** Take what a line means for the figures. */
  private look(line: Json, raw: string, n: number): void {
    keepFrame(raw);
    this.meters.take(line);
    const at = this.turn.take(line, n);
    if (at) this.setBusy(true, at);
    if (line.type === "system" && line.subtype === "init") this.prompts.hear();
    if (line.type === "result") this.prompts.settle(line);
    else if (at !== null || this.prompts.areAwaited) return; // a turn is about to begin
    this.stopping = false;
    this.setBusy(false, this.askedOr("ready"));
    if (line.type === "result") announce("The answer is complete.");
  }

  /** What the run asks, an agent in the background too, else what it is at. */
  private askedOr(at: string): string {
    const [open] = this.session?.approvals.values() ?? [];
    return open ? asked(visible(open.tool_name), this.owner) : at;
  }

  private question(request: string, name: string, input: Json, tool?: string): void {
    this.transcript.ask(request, name, input, tool);
    if (this.script?.onQuestion(name)) {
      this.tryTo(() => this.session?.approve(request));
      return this.transcript.settle(request, "allowed by the demonstration's button");
    }
    this.meters.state(asked(visible(name), this.owner));
    announce(`Claude ${asked(visible(name))}. Alt A goes to the question.`);
  }

  // -- its end --------------------------------------------------------------------------------------------------------

  private takeEnd(said: Json): void {
    this.ended = said;
    this.stopping = false;
    forget();
    const { words, how } = this.transcript.close(said);
    if (said.error) this.transcript.note(String(said.error), "note fault");
    this.setBusy(false, `ended: ${how}`);
    announce(`The run has ended: ${words}.`);
    this.script?.onEnded(said);
    if (said.reason === "node-lost") this.gone("The run is gone: the server was started anew.");
    else this.offerGoOn("The run is over. A prompt begins a new one.");
  }

  /** Take that another page leads the run now: go on watching. */
  private wasTaken(): void {
    this.owner = false;
    forget();
    this.session = null;
    this.transcript.unask();
    this.prompts.end(); // what was said in the same moment is heard by nobody
    if (!this.turn.on) this.setBusy(false, "ready");
    const attach = { run: this.run, after: this.last, as: "viewer" as const };
    void this.follow(this.claim(this.turn), { attach });
  }

  private fail(opening: AbortController, error: unknown): void {
    if (this.ended) return; // it has said so itself
    const why = whyOf(error);
    if (error instanceof TrioClaudeError && KEY_CODES.has(error.code)) return this.refuse(opening, why);
    const { run } = this;
    if (run && (error instanceof ConnectionLost || error instanceof Busy)) return this.lost(run, why);
    if (run && why.startsWith("there is no run")) return this.gone("The run is gone: the server was started anew, or the time to come back is over.");
    if (run) return this.gone(why);
    this.transcript.note(`Refused: ${why}`, "note fault");
    this.setBusy(false, "refused");
  }

  private refuse(opening: AbortController, why: string): void {
    if (this.opening !== opening) return;
    this.over();
    this.onKeyWanted(why);
  }

  /** Take that the run can't be reached, and may be there. */
  private lost(run: string, why: string): void {
    this.setBusy(false, "not connected");
    const as = this.owner ? undefined : "viewer";
    this.banner.offer(`The run can't be reached: ${why}`, "Try again", () => void this.attach(run, as));
  }

  private gone(why: string): void {
    forget();
    this.setBusy(false, "the run is gone");
    this.transcript.note(why, "note fault");
    this.offerGoOn(why);
  }

  private over(): void {
    this.session = this.opening = this.script = null;
    this.stopping = this.telling = false;
    this.prompts.end();
    this.transcript.end();
    this.state = "idle";
    if (this.busy) this.setBusy(false, "ready");
    this.show();
  }

  /** Give up a run that has not begun, or is over. */
  private giveUp(): void {
    this.leave();
    this.over();
  }

  // -- what the page shows --------------------------------------------------------------------------------------------

  /** Whether a new run is asked for that has not begun: it may wait for a free place. */
  private get isQueued(): boolean {
    return this.isLive && !this.session && !this.run;
  }

  private async choose(model: string): Promise<void> {
    if (!this.session) this.chosen = model;
    if (!this.session || !this.owner) return;
    try {
      await this.session.setModel(model || null);
      this.transcript.note(model ? `From now on: ${model}.` : "From now on: the CLI's own model.");
    } catch (error) {
      if (error instanceof Refused && error.code !== "cli") return; // the server has said so itself
      this.transcript.note(`The model stays: ${(error as Error).message}`, "note fault");
    }
  }

  private setState(state: State): void {
    this.state = state;
    if (state === "back" || state === "lost") announce(state === "back" ? "The connection is back." : "The connection is lost; trying again.");
    this.show();
  }

  private setBusy(on: boolean, state: string, seen = true): void {
    const changed = this.busy !== on;
    this.busy = on;
    this.meters.turn(on, seen);
    if (!this.stopping || !on) this.meters.state(state);
    if (changed) this.show();
  }

  private show(): void {
    const here = this.state === "open" || this.state === "back";
    const link = find("link");
    setText(link, this.owner || !here ? STATES[this.state] : "watching");
    link.dataset.state = this.state;
    const live = this.isLive;
    const leads = live && this.owner && this.session !== null;
    for (const id of ["meta", "daemons"]) find<HTMLInputElement>(id).disabled = live;
    find<HTMLButtonElement>("send").disabled = live && !this.owner;
    find<HTMLButtonElement>("stop").disabled = !((leads || this.isQueued) && this.busy);
    find<HTMLButtonElement>("end").disabled = !leads;
    find("stop").textContent = this.stopping ? "Kill" : "Stop";
  }

  private showRun(run: string): void {
    this.run = run;
    find("run").hidden = false;
    find("run").textContent = `run ${run.slice(0, 8)}`;
    find("run").title = run;
    this.show();
  }

  private offerGoOn(why: string): void {
    const conversation = this.conversation;
    if (conversation) this.banner.offer(why, "Go on with this conversation", () => this.goOn(conversation));
    else this.banner.say(why);
  }

  private tryTo(act: () => void): void {
    try {
      act();
    } catch (error) {
      this.transcript.note((error as Error).message, "note fault");
    }
  }
}
