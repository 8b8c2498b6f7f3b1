// `/ws/claude`: ask a server one thing and hear what it says until the end. Leaving the loop ends the run.

import { errorOfClose, TrioClaudeError } from "./errors.js";
import { BUFFER_LIMIT, Inbox } from "./inbox.js";
import { ASK, checkNames } from "./names.js";
import { baseOf, type Closed, findClass, hold, type Socket, type Way } from "./sockets.js";
import { AnswerText, type Ended, isNote, type Json, type Line, parseObject, parseReason, type WireOptions } from "./wire.js";

/** Notes of the server that a run keeps. */
const NOTES = 1000;

/** What `ask` takes beside the options of the wire contract. */
export interface AskOptions extends Way, WireOptions {
  meta?: string | undefined;
  /** Ends the run. */
  signal?: AbortSignal | undefined;
  /** Characters of unread lines that are kept. */
  bufferLimit?: number | undefined;
  /** Hears what the server itself says (`info`, `stderr`, `error`), as it comes. */
  onNote?: ((note: Json) => void) | undefined;
  /** Hears that the connection is open. */
  onOpen?: (() => void) | undefined;
}

/**
 * What comes back for one prompt: iterate over the CLI's lines, or wait for `text`.
 *
 * A bad end is thrown where the program iterates, and by `text`; `ended` never throws. Who does not iterate loses
 * nothing but lines: over the limit they are let go, and only who comes to read them then hears so.
 */
export class Run implements AsyncIterable<Line> {
  /** The final answer's text. */
  readonly text: Promise<string>;
  /** How it ended, with what the server counted. */
  readonly ended: Promise<Ended & { error?: TrioClaudeError }>;
  /** What the server itself said, at most a thousand. */
  readonly notes: Json[] = [];
  private readonly lines: Inbox<Line>;
  private readonly answer = new AnswerText();
  private readonly leaving = new AbortController();
  private failure: unknown;
  private error: Json = {};
  private n = 0;

  /** @internal */
  constructor(prompt: string, given: AskOptions) {
    checkNames("ask", given, ASK);
    const { url, key, ticket, WebSocket, signal, bufferLimit, onNote, onOpen, meta = "ASK", ...rest } = given;
    const way = { url, key, ticket, WebSocket };
    findClass(way);
    baseOf(url);
    this.lines = new Inbox(bufferLimit ?? BUFFER_LIMIT);
    const first = JSON.stringify({ meta, ...rest, prompt });
    const abort = (): void => this.leave(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort);
    const open = (socket: Socket): void => {
      socket.send(first);
      onOpen?.();
    };
    const handlers = { open, message: (text: string) => this.take(text, onNote) };
    const closed = hold(way, "/ws/claude?frames=verbatim", handlers, this.leaving.signal);
    this.ended = closed.then((end) => this.finish(end)).finally(() => signal?.removeEventListener("abort", abort));
    this.text = this.ended.then(() => {
      if (this.failure !== undefined) throw this.failure;
      return this.answer.text;
    });
    this.text.catch(() => undefined); // who does not ask for the text is not told by the process's end
  }

  /** End the run; what was said stays, and no error is thrown. */
  stop(): void {
    this.leave(undefined);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Line, void, undefined> {
    try {
      for (let next = await this.lines.next(); !next.done; next = await this.lines.next()) yield next.value;
    } finally {
      this.stop();
    }
  }

  private leave(why: unknown): void {
    if (this.leaving.signal.aborted) return;
    this.failure ??= why;
    this.leaving.abort();
    if (why === undefined) this.lines.close();
    else this.lines.fail(why);
  }

  private take(raw: string, onNote: ((note: Json) => void) | undefined): void {
    if (this.leaving.signal.aborted) return;
    const line = parseObject(raw);
    if (isNote(line)) {
      if ("error" in line) this.error = line;
      if (this.notes.length < NOTES) this.notes.push(line);
      onNote?.(line);
      return;
    }
    this.answer.take(line);
    this.n += 1;
    if (this.lines.push({ n: this.n, raw, line }, raw.length)) return;
    const over = this.lines.overflow();
    if (this.lines.isRead) this.leave(over);
  }

  private finish(closed: Closed): Ended & { error?: TrioClaudeError } {
    const stopped = this.leaving.signal.aborted;
    const error = stopped ? undefined : (closed.error ?? errorOfClose(closed.code, closed.reason, this.error));
    this.failure ??= error;
    this.lines.close(error);
    this.leaving.abort();
    const ended = parseReason(closed.code, closed.reason || (stopped ? "stopped" : ""));
    const known = this.failure instanceof TrioClaudeError ? this.failure : error;
    return known ? { ...ended, error: known } : ended;
  }
}

/** Send a prompt; the rest of `options` are those of the wire contract. */
export function ask(prompt: string, options: AskOptions = {}): Run {
  return new Run(prompt, options);
}
