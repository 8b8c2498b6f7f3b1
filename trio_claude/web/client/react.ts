// The React hook: one run at a time, what it says as state, and its end with the component's.
//
// Without `approvals` and `grace` a run is one of `/ws/claude`, where nobody can be asked: what is not harmless is denied
// at once, and the answer says so. With either it is a session of one turn on `/ws/session`, which ends behind its
// result. Rule: a run belongs to the component that connected it; unmounting ends it. A connect whose component goes in
// the same moment, as in StrictMode's rehearsal, connects to nobody: the client waits one tick before it dials.

import { useCallback, useEffect, useRef, useState } from "react";
import {
  AnswerText,
  type Approval,
  ask,
  type Json,
  openSession,
  type Session,
  type SessionEvent,
  type State,
  type TrioClaudeError,
  type Way,
  type WireOptions,
} from "./client.js";

/** Messages that are kept by default; of more the oldest go. */
const MESSAGE_LIMIT = 10_000;

export interface HookOptions extends Way {
  /** The options of the wire contract, for each run. */
  options?: WireOptions | undefined;
  /** Whether a person here answers what the CLI asks: `approvals`, `approve`, `deny`. */
  approvals?: boolean | undefined;
  /** Seconds for which a run goes on behind a broken connection, which is made anew. */
  grace?: number | undefined;
  messageLimit?: number | undefined;
}

const NAMES: Readonly<Record<keyof HookOptions, true>> = {
  url: true, key: true, ticket: true, WebSocket: true, options: true, approvals: true, grace: true, messageLimit: true,
};

/** What was counted at the end of a run; `left` is null where it can't be proven. */
export interface HookReceipt {
  cause: string;
  processes: number | undefined;
  left: number | null | undefined;
  ms: number | undefined;
}

export interface View {
  /** The CLI's lines as objects, an assistant's as `{type: "message", content: […]}`; a line that is no JSON as text. */
  messages: (Json | string)[];
  isConnected: boolean;
  state: State | "idle";
  /** The answer so far; with the option `partial` piece by piece. */
  text: string;
  error: TrioClaudeError | Error | undefined;
  receipt: HookReceipt | undefined;
  /** The approvals that are open; none without the option. */
  approvals: Approval[];
}

export interface Hook extends View {
  /** Send a prompt; a run that goes on is ended. */
  connect(prompt: string, meta?: string): void;
  approve(id: string, updatedInput?: Json): void;
  deny(id: string, message?: string): void;
  /** End the run; what was said stays. */
  stop(): void;
}

const IDLE: View = {
  messages: [],
  isConnected: false,
  state: "idle",
  text: "",
  error: undefined,
  receipt: undefined,
  approvals: [],
};

/** One run: gathers what comes and shows it, at most once a tick, as long as it is the component's own. */
class Running {
  readonly leaving = new AbortController();
  session: Session | undefined;
  private view: View = { ...IDLE, state: "connecting" };
  private messages: (Json | string)[] = [];
  private readonly answer = new AnswerText();
  private isDue = false;

  constructor(
    private readonly show: (view: View) => void,
    private readonly limit: number,
  ) {}

  change(part: Partial<View>): void {
    this.view = { ...this.view, ...part };
    if (this.isDue) return;
    this.isDue = true;
    queueMicrotask(() => {
      this.isDue = false;
      this.messages.splice(0, Math.max(0, this.messages.length - this.limit));
      this.view.messages = [...this.messages];
      this.show(this.view);
    });
  }

  state = (state: State): void => this.change({ state, isConnected: state === "open" || state === "back" });

  line(raw: string, line: Json | undefined): void {
    this.answer.take(line);
    this.messages.push(line ? asMessage(line) : raw);
    this.change({ text: this.answer.text });
  }

  /** Have one prompt answered over `/ws/claude`. */
  async ask(prompt: string, meta: string, given: HookOptions): Promise<void> {
    const { url, key, ticket, WebSocket, options } = given;
    const onOpen = (): void => this.state("open");
    const run = ask(prompt, { ...options, url, key, ticket, WebSocket, meta, onOpen, signal: this.leaving.signal });
    void run.ended.then(({ cause, processes, left, ms }) => {
      this.change({ state: "closed", isConnected: false, receipt: { cause, processes, left, ms } });
    });
    for await (const { raw, line } of run) this.line(raw, line);
  }

  /** Have one prompt answered over `/ws/session`. */
  async talk(prompt: string, meta: string, given: HookOptions): Promise<void> {
    const { url, key, ticket, WebSocket, options = {}, grace } = given;
    const way = { url, key, ticket, WebSocket };
    const signal = this.leaving.signal;
    const session = await openSession({ ...way, meta, options, grace, signal, onState: this.state });
    this.session = session;
    void session.ended.then(({ reason, close_reason, receipt }) => {
      const counted = { processes: receipt?.seen, left: receipt?.survivors, ms: receipt?.ms };
      this.change({ receipt: { cause: reason || close_reason, ...counted }, approvals: [] }); // it may go on, with another client
    });
    const take = (event: SessionEvent): void => {
      if (event.type === "line") this.line(event.raw, event.line);
      const isAsked = event.type === "approval" && session.approvals.has(event.request_id);
      if (isAsked && !given.approvals) session.deny(event.request_id, { message: "nobody is asked here" });
      if (event.type !== "gateway") this.change({ approvals: [...session.approvals.values()] });
    };
    for await (const event of session.turn(prompt)) take(event);
    if (session.state !== "closed") session.stop("end"); // a run may have ended in its turn
    for await (const event of session) take(event); // an agent in the background goes on, and asks
  }

  async go(work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      if (!this.leaving.signal.aborted) this.change({ state: "closed", isConnected: false, error: error as Error });
      this.leaving.abort(); // a prompt that is refused leaves its session
    }
  }
}

/** Return a line as the door of the original shows it: an assistant's inner message, the outer fields beside it. */
function asMessage(line: Json): Json {
  const { type, message, ...outer } = line;
  if (type !== "assistant" || typeof message !== "object" || message === null) return line;
  const renamed = Object.entries(outer).map(([name, value]) => [name in message ? `outer_${name}` : name, value]);
  return { ...message, ...Object.fromEntries(renamed), type: "message" };
}

/** Ask a server from a component. Throws a `TypeError` for a name that is none of the options'. */
export function useClaudeWebSocket(options: HookOptions = {}): Hook {
  const odd = Object.keys(options).find((name) => !Object.hasOwn(NAMES, name));
  if (odd !== undefined) throw new TypeError(`useClaudeWebSocket takes no \`${odd}\`: there are ${Object.keys(NAMES).join(", ")}`);
  const [view, setView] = useState<View>(IDLE);
  const running = useRef<Running | undefined>(undefined);
  const given = useRef(options);
  given.current = options;
  const isGone = useRef(false);

  const stop = useCallback(() => running.current?.leaving.abort(), []);

  useEffect(() => {
    isGone.current = false;
    return () => {
      isGone.current = true;
      stop();
    };
  }, [stop]);

  const connect = useCallback((prompt: string, meta = "ASK") => {
    running.current?.leaving.abort();
    const show = (next: View): void => {
      if (running.current === own) setView(next);
    };
    const own = new Running(show, given.current.messageLimit ?? MESSAGE_LIMIT);
    running.current = own;
    const talks = given.current.approvals || given.current.grace;
    own.change({});
    queueMicrotask(() => isGone.current && own.leaving.abort()); // before it dials; the effects of StrictMode are back by then
    void own.go(talks ? own.talk(prompt, meta, given.current) : own.ask(prompt, meta, given.current));
  }, []);

  const approve = useCallback((id: string, updatedInput?: Json) => {
    const session = running.current?.session;
    if (session?.approvals.has(id)) session.approve(id, { updatedInput });
  }, []);
  const deny = useCallback((id: string, message?: string) => {
    const session = running.current?.session;
    if (session?.approvals.has(id)) session.deny(id, message === undefined ? {} : { message });
  }, []);

  return { ...view, connect, approve, deny, stop };
}
