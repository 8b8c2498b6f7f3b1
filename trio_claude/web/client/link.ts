// The way to one run: a connection, and after it another, where the first breaks and the program wants that.
//
// Rule 1: a message is said once. Who comes back is told how many were heard, and says only what was not. Rule 2: lines
// come once, in order. Rule 3: a server that says no is not asked again. Two are: one that can't take this client to the
// run just now (another may, or the same one in a moment), and one that knows less of the run than was heard: the last
// lines died with the server before it.

import { Busy, errorOfClose, errorOfEnd, Refused, TrioClaudeError } from "./errors.js";
import { OUTBOX_LIMIT, Said } from "./said.js";
import { CLOSE_MS, type Closed, CONNECT_MS, hold, type Socket, type Way } from "./sockets.js";
import { asObject, type Json, parseObject } from "./wire.js";

/** What a session's connection is at. */
export type State = "connecting" | "open" | "lost" | "back" | "closed";
/** Whoever hears: a frame of the server's own, or a line of the CLI with its number. */
export interface Listener {
  event(said: Json, size: number): void;
  line(n: number, raw: string, line: Json | undefined): void;
  state(state: State): void;
}

/** Close codes behind which the run may still be there: nobody said that it is over. */
const LOST = new Set([1001, 1005, 1006]);
/** Those of a server that goes down, or has no way to the run just now; without an `ended` the run may still be there. */
const NOT_NOW = new Set([1012, 1013]);
/** Codes of refusals that a close comes behind; behind `attached` all others are of one message, and the run goes on. */
const CLOSING = new Set<unknown>(["draining", "journal", "no-answer"]);
/** Milliseconds for which a connection to the run holds that is one, though no line comes; a failing server is quicker. */
const STEADY = 100;
/** Bytes of a character at the most, as it travels. */
const BYTES = 3;
/** Milliseconds between two tries to come back; they double from the first to the longest, and vary by half. */
const FIRST_WAIT = 50;
const LONGEST_WAIT = 5_000;

/** Milliseconds between two looks at the clock; and so late that the machine has slept: a hidden tab looks once a minute. */
const LOOK_MS = 5_000;
const SLEPT_MS = 90_000;

export class Link {
  /** The run's id, empty until there is one and once it is over. */
  run = "";
  isOver = false;
  private lines = 0;
  private role: unknown = "owner";
  private isAttached = false;
  private wasThere = false;
  private isEnded = false;
  private isAhead = false;
  private refusal: Json | undefined;
  /** A refusal that may be for a moment, and the close behind it. */
  private kept: { said: Json; size: number; closed?: Closed } | undefined;
  private last: Json | undefined;
  private failure: TrioClaudeError | undefined;
  private socket: Socket | undefined;
  private current: Socket | undefined;
  private until = Infinity;
  private back = Infinity;
  private wait = FIRST_WAIT;
  private asked = 0;
  private limit = Infinity;
  private state: State | undefined;
  private answerTimer: ReturnType<typeof setTimeout> | undefined;
  private wake = (): void => undefined;
  private looked = Date.now();
  private readonly token = newToken();
  private readonly said: Said;
  private readonly leaving = new AbortController();

  constructor(
    private readonly way: Way,
    private readonly first: Json,
    private readonly grace: number | undefined,
    private readonly listener: Listener,
  ) {
    this.said = new Said(grace ? OUTBOX_LIMIT : 0);
    if (first["op"] === "attach") {
      this.run = String(first["run"]);
      this.lines = Number(first["after"] ?? 0);
      this.role = first["as"];
    }
  }

  /** Connect, and hear to the end; return how it ended, and the error where it was no good end. */
  async go(): Promise<Closed> {
    const online = (): void => this.reconsider();
    const window = globalThis as Partial<Pick<EventTarget, "addEventListener" | "removeEventListener">>;
    window.addEventListener?.("online", online);
    const looking = this.grace ? setInterval(() => this.look(), LOOK_MS) : undefined;
    try {
      this.tell("connecting");
      let closed = await this.connect(this.first);
      if (closed.error && (this.first["op"] === "start" || closed.error instanceof Refused)) this.isOver = true;
      while (this.grace && this.run && !this.isOver) closed = await this.comeBack(this.grace, closed);
      if (this.kept) this.listener.event(this.kept.said, this.kept.size);
      return this.conclude(closed);
    } finally {
      this.isOver = true;
      clearInterval(looking);
      window.removeEventListener?.("online", online);
      this.tell("closed");
    }
  }

  /** Say something, now or on the next connection. Throws once it is over, or where it is too long, or too much waits. */
  send(said: Json): void {
    if (this.isOver || this.isEnded || (!this.socket && !this.grace)) throw new TrioClaudeError("the session is over", { code: "over" });
    this.said.add(this.checked(JSON.stringify(said)));
    this.speak();
  }

  /** Return a message that the server takes: one that is too long would end the connection. */
  private checked(text: string): string {
    const bytes = text.length * BYTES > this.limit ? new TextEncoder().encode(text).length : 0;
    if (bytes <= this.limit) return text;
    throw new Refused(`message must be at most ${this.limit} bytes, not ${bytes}`, { code: "bad-message" });
  }

  /** Whether a run was asked for that may begin before a last word is heard. */
  get isStarting(): boolean {
    return this.socket !== undefined && !this.isAttached && !this.last;
  }

  /** Leave, for `why` where that is an error. */
  leave(why?: TrioClaudeError): void {
    this.failure ??= why;
    this.isOver = true;
    this.leaving.abort();
    this.wake();
  }

  /** Say what was not said yet, in order. */
  private speak(): void {
    for (let text; this.socket && (text = this.said.next()) !== undefined; this.said.forget()) this.socket.send(text);
  }

  /** Hold one connection from its first message to its end. */
  private async connect(first: Json): Promise<Closed> {
    this.isAttached = this.isAhead = false;
    this.back = Infinity;
    const ms = Math.min(CONNECT_MS, this.until - performance.now());
    const open = (socket: Socket): void => this.open(socket, first, ms);
    const handlers = { open, message: (text: string) => this.hear(text) };
    const closed = await hold(this.way, "/ws/session", handlers, this.leaving.signal, ms);
    clearTimeout(this.answerTimer);
    this.socket = this.current = undefined;
    if (closed.error instanceof Busy) this.waitAsAsked(closed.error.said["retry_after"]);
    if (closed.error) return closed;
    this.isOver ||= !(this.isAhead || LOST.has(closed.code) || NOT_NOW.has(closed.code));
    if (this.kept && !LOST.has(closed.code)) this.kept.closed = closed;
    return closed;
  }

  private open(socket: Socket, first: Json, ms: number): void {
    this.current = socket;
    socket.send(JSON.stringify({ ...first, client: this.token }));
    if (first["op"] === "start") this.socket = socket;
    else this.waitFor("answer to attach", ms);
  }

  private waitFor(what: string, ms: number): void {
    clearTimeout(this.answerTimer);
    this.answerTimer = setTimeout(() => this.current?.cut(`no ${what}`), ms);
  }

  private hear(raw: string): void {
    if (this.isOver) return;
    const said = parseObject(raw);
    if (said?.["type"] === "gateway") {
      this.note(said);
      if (!this.isAhead && !this.keeps(said, raw.length)) this.listener.event(said, raw.length);
      return;
    }
    this.lines += 1;
    this.until = Infinity;
    this.wait = FIRST_WAIT;
    this.listener.line(this.lines, raw, said);
  }

  /** Take from what the server says what it takes to come back, and what was heard. */
  private note(said: Json): void {
    switch (said["event"]) {
      case "hello":
        this.limit = Number(asObject(said["limits"])?.["message"] ?? Infinity);
        return;
      case "started":
        this.isAttached = this.wasThere = true;
        this.run = String(said["run"]);
        return this.tell("open");
      case "attached":
        return this.attached(said);
      case "gap":
        this.lines = Math.max(this.lines, Number(said["to"]));
        return;
      case "refused":
        if (!this.isAttached || CLOSING.has(said["code"])) this.refuse(said);
        return;
      case "ended":
        this.last = said;
        this.run = "";
    }
  }

  /** Keep what may be a refusal for a moment: it is told only where it was the last word. */
  private keeps(said: Json, size: number): boolean {
    if (said["event"] !== "refused" || !this.grace || !this.run) return false;
    if (this.isAttached && !CLOSING.has(said["code"])) return false;
    this.kept = { said, size };
    this.waitFor("close behind a refusal", CLOSE_MS); // which says how it ended, also where the time is over meanwhile
    this.waitAsAsked(said["retry_after"]);
    return true;
  }

  /** Take the seconds that a server asks for before the next try. */
  private waitAsAsked(seconds: unknown): void {
    this.asked = typeof seconds === "number" && seconds > 0 ? seconds * 1000 : 0;
  }

  private refuse(said: Json): void {
    this.refusal = said;
    const last = said["last"];
    if (said["code"] !== "ahead" || typeof last !== "number" || last >= this.lines) return;
    if (!this.wasThere) return; // a first `after` that is ahead is the program's own mistake
    this.lines = last;
    this.isAhead = true;
    this.refusal = undefined;
  }

  /** Be there; say what was not heard, unless the run is over, and only told again. */
  private attached(said: Json): void {
    clearTimeout(this.answerTimer);
    const isBack = this.wasThere;
    this.isAttached = this.wasThere = true;
    this.isEnded = Boolean(said["ended"]);
    this.role = said["role"];
    this.back = performance.now();
    this.refusal = this.kept = undefined;
    if (!this.isEnded) {
      try {
        this.said.rewind(Number(said["heard"] ?? 0));
      } catch (error) {
        return this.leave(error as TrioClaudeError);
      }
      this.socket = this.current;
      this.speak();
    }
    this.tell(isBack ? "back" : "open");
  }

  /**
   * Come back once, and hold that connection; give up where that lasts too long, or the server says no for good.
   * A connection that breaks again at once, before a line, is none: time and pauses go on from the one before.
   */
  private async comeBack(grace: number, lost: Closed): Promise<Closed> {
    if (this.until === Infinity || performance.now() > this.back + STEADY) {
      this.until = performance.now() + grace * 1000;
      this.wait = FIRST_WAIT;
    }
    this.tell("lost");
    let closed = lost;
    while (!this.isOver && performance.now() < this.until) {
      await this.pause(Math.min(this.nextPause(), this.until - performance.now()));
      if (this.isOver || performance.now() >= this.until) break;
      const attach = { type: "gateway", op: "attach", run: this.run, after: this.lines, as: this.role };
      closed = await this.connect(attach);
      if (!closed.error) return closed;
      if (!(closed.error instanceof Refused)) continue;
      this.kept = undefined;
      break;
    }
    this.isOver = true;
    return this.kept?.closed ?? closed;
  }

  /** Return the milliseconds until the next try: a little more than a server has asked for, else longer each time. */
  private nextPause(): number {
    const asked = this.asked;
    this.asked = 0;
    if (asked) return asked * (1 + Math.random() / 2);
    const wait = this.wait;
    this.wait = Math.min(2 * wait, LONGEST_WAIT);
    return wait * (0.5 + Math.random() / 2);
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Look whether this program has slept, with its machine or as a tab that was frozen. */
  private look(): void {
    const before = this.looked;
    this.looked = Date.now();
    if (this.looked - before > SLEPT_MS) this.reconsider();
  }

  /** The network is another one, maybe, or was away: a connection over the old one can be dead without a word. */
  private reconsider(): void {
    this.wake();
    if (this.grace && this.isAttached) this.current?.cut("the connection may be dead");
  }

  private conclude(closed: Closed): Closed {
    const left = this.leaving.signal.aborted;
    const error = this.failure ?? (left ? undefined : (closed.error ?? this.told(closed)));
    return error ? { ...closed, error } : { code: closed.code, reason: closed.reason };
  }

  /** Judge by the close, but by the run's end where the connection broke behind it. */
  private told(closed: Closed): TrioClaudeError | undefined {
    if (this.last && LOST.has(closed.code)) return errorOfEnd(closed.code, this.last);
    return errorOfClose(closed.code, closed.reason, this.last ?? this.refusal);
  }

  private tell(state: State): void {
    if (state === this.state) return;
    this.state = state;
    this.listener.state(state);
  }
}

export function newToken(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
