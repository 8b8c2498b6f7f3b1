/** An object as it came. */
export type Json = Record<string, unknown>;
/** A line of the CLI: its number, counted from 1, its own bytes as text, and the same parsed, where it is JSON. */
export interface Line {
    n: number;
    raw: string;
    line: Json | undefined;
}
/** The options of the wire contract, by their names on the wire; a server may allow fewer, from `tools` on only by a grant. */
export interface WireOptions {
    model?: string | undefined;
    system_prompt?: string | undefined;
    append_system_prompt?: string | undefined;
    max_turns?: number | undefined;
    max_budget_usd?: number | undefined;
    effort?: "low" | "medium" | "high" | "xhigh" | "max" | undefined;
    partial?: boolean | undefined;
    resume?: string | undefined;
    temperature?: number | undefined;
    max_output_tokens?: number | undefined;
    json_schema?: Json | undefined;
    timeout?: number | undefined;
    workspace?: string | undefined;
    tools?: string[] | undefined;
    allowed_tools?: string[] | undefined;
    disallowed_tools?: string[] | undefined;
    permission_mode?: string | undefined;
    mcp_servers?: Json | undefined;
    fallback_model?: string | undefined;
    max_thinking_tokens?: number | undefined;
}
/** The options of a session: those, and how it goes on from an earlier one. */
export interface SessionOptions extends WireOptions {
    fork?: boolean | undefined;
    recall?: boolean | undefined;
    /** What becomes of the run without its client; `grace` beside `options` sets it too, and has the connection made anew. */
    on_disconnect?: "kill" | {
        grace: number;
    } | undefined;
}
/** How a run ended. What the close reason does not say is undefined; `left` is null where it can't be proven. */
export interface Ended {
    code: number;
    reason: string;
    cause: string;
    exit_status?: number;
    signal?: number;
    processes?: number;
    left?: number | null;
    ms?: number;
}
/** Read `CAUSE; N processes, M left, T ms`. */
export declare function parseReason(code: number, reason: string): Ended;
/** Return a text as an object, undefined where it is none. */
declare function parseObject(text: string): Json | undefined;
declare function asObject(value: unknown): Json | undefined;
/** Whether a frame of `/ws/claude` is the server's own: an object without a type. */
declare function isNote(said: Json | undefined): said is Json;
/** Return the text of an assistant line, or of an inner message. */
declare function textOf(line: Json): string;
/** Return the piece of text that a `stream_event` line brings, empty where it brings none. */
declare function deltaOf(line: Json): string;
/** Follows the lines of one answer and knows its text so far; a `result` line has the last word. */
export declare class AnswerText {
    text: string;
    private done;
    private piece;
    take(line: Json | undefined): void;
}
export interface ErrorFields {
    code?: string;
    reason?: string;
    closeCode?: number | undefined;
    said?: Json;
}
/**
 * The root of what this client throws. `code` is a word for programs, `reason` the close reason or the server's
 * text, `closeCode` the WebSocket's, undefined where the connection stays; `said` is the server's own object.
 */
export declare class TrioClaudeError extends Error {
    readonly code: string;
    readonly reason: string;
    readonly closeCode: number | undefined;
    readonly said: Json;
    constructor(message: string, { code, reason, closeCode, said }?: ErrorFields);
}
/** The server took no part of it: a bad message (1008), a `refused` event, or HTTP 401 or 403 at the door. */
export declare class Refused extends TrioClaudeError {
}
/** A message was larger than the server takes (1009). */
export declare class TooLarge extends TrioClaudeError {
}
/** The run came to a bad end (1011). */
export declare class RunFailed extends TrioClaudeError {
    /** The CLI's exit status, null where it has none. */
    get exitStatus(): number | null;
}
/** The server goes down (1012). */
export declare class ServerGone extends TrioClaudeError {
}
/** The server is full, or a limit is reached (1013): try again in `retryAfter` seconds. */
export declare class Busy extends TrioClaudeError {
    get retryAfter(): number;
}
/** The connection broke (1006 and the like), or there never was one. */
export declare class ConnectionLost extends TrioClaudeError {
}
/** More came than was read: the unread lines went over `limit` characters, and the run was left. */
export declare class Overflow extends TrioClaudeError {
    readonly limit: number;
    constructor(limit: number);
}
/** Return what a close means, undefined for a good one; `said` is the last error that the server told. */
declare function errorOfClose(closeCode: number, reason: string, said?: Json): TrioClaudeError | undefined;
/** Return what a run's end means by its own words, undefined for a good one. */
declare function errorOfEnd(closeCode: number, said: Json): TrioClaudeError | undefined;
/** Return a `refused` event as an error. */
declare function errorOfRefusal(said: Json): TrioClaudeError;
/** Return an HTTP refusal as an error. */
declare function errorOfStatus(status: number, said?: Json): TrioClaudeError;
/** As much of a WebSocket's class as is used here; the browser's, Node's and the package `ws`'s have it. */
export interface WebSocketClass {
    new (url: string, protocols?: string[]): WebSocketObject;
}
export interface WebSocketObject {
    onopen: ((event: any) => void) | null;
    onmessage: ((event: any) => void) | null;
    onerror: ((event: any) => void) | null;
    onclose: ((event: any) => void) | null;
    readonly readyState: number;
    send(text: string): void;
    close(code?: number, reason?: string): void;
}
/** How to come to a server. */
export interface Way {
    /** The server's address, `http:` or `ws:`; the page's own where there is one, else http://127.0.0.1:3000. */
    url?: string | undefined;
    /** An API key or token. In a browser it buys a ticket for each connection. */
    key?: string | undefined;
    /** A one-use ticket, or what fetches one: a connection that is to come back needs the second. */
    ticket?: string | (() => string | Promise<string>) | undefined;
    /** The class to connect with, where there is no global one: the one of the package `ws`. */
    WebSocket?: WebSocketClass | undefined;
}
/** How a connection ended; `error` says why there never was one. */
interface Closed {
    code: number;
    reason: string;
    error?: TrioClaudeError;
}
interface Handlers {
    open(socket: Socket): void;
    message(text: string): void;
}
/** Milliseconds for a handshake, for an answer to a request, and for a close that nobody answers. */
declare const CONNECT_MS = 10000;
declare const CLOSE_MS = 2000;
/** A connection that was opened. */
declare class Socket {
    private readonly socket;
    private readonly settle;
    private closing;
    constructor(socket: WebSocketObject, settle: (closed: Closed) => void);
    /** Take that it is over. */
    forget(): void;
    /** Say something; what can't go out any more is lost with the connection. */
    send(text: string): void;
    /** Close; a server that does not answer is not waited for. */
    close(reason: string): void;
    /** Leave a connection that may be dead, at once. */
    cut(reason: string): void;
}
/** Connect, and hear to the end; never throws for what the network does. A signal ends it at any point. */
declare function hold(way: Way, path: string, handlers: Handlers, signal: AbortSignal, ms?: number): Promise<Closed>;
/** Return the class to connect with. Throws where there is none. */
declare function findClass(way: Way): WebSocketClass;
/** Return a server's address as `http(s)://HOST[/PREFIX]`. Throws for what is none. */
declare function baseOf(given: string | undefined): string;
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
export declare class Run implements AsyncIterable<Line> {
    /** The final answer's text. */
    readonly text: Promise<string>;
    /** How it ended, with what the server counted. */
    readonly ended: Promise<Ended & {
        error?: TrioClaudeError;
    }>;
    /** What the server itself said, at most a thousand. */
    readonly notes: Json[];
    private readonly lines;
    private readonly answer;
    private readonly leaving;
    private failure;
    private error;
    private n;
    /** End the run; what was said stays, and no error is thrown. */
    stop(): void;
    [Symbol.asyncIterator](): AsyncGenerator<Line, void, undefined>;
    private leave;
    private take;
    private finish;
}
/** Send a prompt; the rest of `options` are those of the wire contract. */
export declare function ask(prompt: string, options?: AskOptions): Run;
/** The CLI asks whether a tool may run. `n`, `raw` and `line` are those of its line. */
export interface Approval {
    type: "approval";
    n: number;
    raw: string;
    line: Json;
    request_id: string;
    tool_name: string;
    input: Json;
    tool_use_id?: string;
    /** Whether it was asked before this client came. */
    pending: boolean;
    [name: string]: unknown;
}
/** An approval is not open any more: it was answered here, or the CLI does not want to know, or it went on without. */
export interface Settled {
    type: "settled";
    request_id: string;
    how: "answered" | "cancelled" | "refused" | "timeout" | "elsewhere";
}
declare class Approvals {
    readonly open: Map<string, Approval>;
    /** Return a line as an approval, undefined where it is none, or one that is open already. */
    ask(n: number, raw: string, line: Json | undefined, pending?: boolean): Approval | undefined;
    settle(id: unknown, how: Settled["how"]): Settled[];
    /** Return what a line of the CLI settles. */
    settledBy(line: Json): Settled[];
    /** Return what an event of the server settles. */
    settledByEvent(said: Json): Settled[];
}
/** Characters of unread lines that are kept by default: twice the longest line that a server takes. */
export declare const BUFFER_LIMIT: number;
/** A queue with one reader; `close` ends it behind what is there, `fail` at once. */
declare class Inbox<T> {
    private readonly limit;
    private things;
    private first;
    private size;
    private waiting;
    private closed;
    private error;
    /** Whether anybody has ever read. */
    isRead: boolean;
    constructor(limit: number);
    /** Put a thing of so many characters in; return false, and take nothing, where it would go over the limit. */
    push(thing: T, characters: number): boolean;
    /** Say that no more comes; whoever reads to the end gets the error, once, where there is one. */
    close(error?: unknown): void;
    /** Let go what is unread, and say that no more comes. */
    fail(error: unknown): void;
    /** Let go what is unread because of the limit. */
    overflow(): Overflow;
    next(): Promise<IteratorResult<T, undefined>>;
    private settle;
    /** Forget the head; the list is cut only now and again, so that each reading costs the same. */
    private shift;
    private drop;
}
/** What a session's connection is at. */
export type State = "connecting" | "open" | "lost" | "back" | "closed";
/** Whoever hears: a frame of the server's own, or a line of the CLI with its number. */
interface Listener {
    event(said: Json, size: number): void;
    line(n: number, raw: string, line: Json | undefined): void;
    state(state: State): void;
}
declare class Link {
    private readonly way;
    private readonly first;
    private readonly grace;
    private readonly listener;
    /** The run's id, empty until there is one and once it is over. */
    run: string;
    isOver: boolean;
    private lines;
    private role;
    private isAttached;
    private wasThere;
    private isEnded;
    private isAhead;
    private refusal;
    /** A refusal that may be for a moment, and the close behind it. */
    private kept;
    private last;
    private failure;
    private socket;
    private current;
    private until;
    private back;
    private wait;
    private asked;
    private limit;
    private state;
    private answerTimer;
    private wake;
    private looked;
    private readonly token;
    private readonly said;
    private readonly leaving;
    constructor(way: Way, first: Json, grace: number | undefined, listener: Listener);
    /** Connect, and hear to the end; return how it ended, and the error where it was no good end. */
    go(): Promise<Closed>;
    /** Say something, now or on the next connection. Throws once it is over, or where it is too long, or too much waits. */
    send(said: Json): void;
    /** Return a message that the server takes: one that is too long would end the connection. */
    private checked;
    /** Whether a run was asked for that may begin before a last word is heard. */
    get isStarting(): boolean;
    /** Leave, for `why` where that is an error. */
    leave(why?: TrioClaudeError): void;
    /** Say what was not said yet, in order. */
    private speak;
    /** Hold one connection from its first message to its end. */
    private connect;
    private open;
    private waitFor;
    private hear;
    /** Take from what the server says what it takes to come back, and what was heard. */
    private note;
    /** Keep what may be a refusal for a moment: it is told only where it was the last word. */
    private keeps;
    /** Take the seconds that a server asks for before the next try. */
    private waitAsAsked;
    private refuse;
    /** Be there; say what was not heard, unless the run is over, and only told again. */
    private attached;
    /**
     * Come back once, and hold that connection; give up where that lasts too long, or the server says no for good.
     * A connection that breaks again at once, before a line, is none: time and pauses go on from the one before.
     */
    private comeBack;
    /** Return the milliseconds until the next try: a little more than a server has asked for, else longer each time. */
    private nextPause;
    private pause;
    /** Look whether this program has slept, with its machine or as a tab that was frozen. */
    private look;
    /** The network is another one, maybe, or was away: a connection over the old one can be dead without a word. */
    private reconsider;
    private conclude;
    /** Judge by the close, but by the run's end where the connection broke behind it. */
    private told;
    private tell;
}
declare function newToken(): string;
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
export declare class Session implements AsyncIterable<SessionEvent> {
    /** The run's id, for `attach`. */
    run: string;
    /** The CLI's id of this session, for the option `resume`; known of a run that was started here. */
    id: string;
    role: "owner" | "viewer";
    hello: Json;
    /** Lines that nobody can give any more. */
    gaps: number;
    state: State;
    readonly ended: Promise<SessionEnded>;
    private readonly link;
    private readonly events;
    private readonly asked;
    /** The turns that are read and have no result yet, by their messages. */
    private readonly turns;
    private readonly answers;
    private readonly told;
    private readonly onState;
    private readonly onEvent;
    private begin;
    private last;
    /** The turn that was said last and has no result yet. */
    private unfinished;
    private asking;
    private isLeaving;
    private leavingTimer;
    private stay;
    private readonly mustStay;
    /** The approvals that are open, by `request_id`. */
    get approvals(): ReadonlyMap<string, Approval>;
    /** Say something to the model; return the message's name, by which a `refused` event has it as `uuid`. */
    send(content: Content): string;
    /**
     * Say something, and iterate up to and with the turn's `result` line. A turn that the CLI begins by itself, because a
     * background task has ended, comes with its `result` on the way. Of a turn whose loop was left early the next turn lets
     * the rest go, but for approvals. Of turns that the CLI answers at once the same `result` ends each, whichever reads it. What is said to a run that is just ending is not done, and throws nothing: `ended`
     * tells why.
     */
    turn(content: Content): AsyncGenerator<SessionEvent, void, undefined>;
    /** Let a tool run, with `updatedInput` in place of its own input where it is given. */
    approve(id: string, given?: {
        updatedInput?: Json | undefined;
    }): void;
    /** Keep a tool from running; the model reads the message. `interrupt` ends the turn. */
    deny(id: string, given?: {
        message?: string | undefined;
        interrupt?: boolean | undefined;
    }): void;
    /** End the turn; what was said of the answer is kept, and the turn's `result` comes. */
    interrupt(): void;
    /** End the turn, or the run behind the turn, or the process tree now. */
    stop(mode: "interrupt" | "end" | "kill"): void;
    /** Choose a model from the next turn on, null for the CLI's own. */
    setModel(name: string | null): Promise<void>;
    /** Make a control request of the CLI; return its answer. Throws `Refused`, also where the CLI refuses. */
    control(subtype: string, fields?: Json): Promise<Json>;
    /**
     * Leave, and let the run go on; only where it was started with a grace, or this client only watches. Throws `Refused`
     * where it was not, and stays.
     */
    detach(): Promise<SessionEnded>;
    /** End the run, whatever it is at, and the session; a viewer only leaves. */
    close(): Promise<SessionEnded>;
    [Symbol.asyncIterator](): AsyncIterator<SessionEvent, undefined>;
    private readTurn;
    private read;
    /** Take that a message is refused: its turn is over, whichever reads that. */
    private refuseTurn;
    private say;
    private answer;
    /** Wait a while for the end that was asked for, then go. */
    private leave;
    private abort;
    private takeEvent;
    /** Return which questions are open at a run that is come to, and which are not any more: somebody answered meanwhile. */
    private reconcile;
    private enter;
    private takeLine;
    private answered;
    /** Tell who waits; of an approval whose answer is refused the CLI is told that there is none, or it would wait for it. */
    private refuse;
    /** Stay where a detach is refused, and tell who asked for it, nobody else; return whether this was that. */
    private stays;
    private push;
    private setState;
    private finish;
}
/** Open a session, or come to one; resolves once it has started. `close` ends it. */
export declare function openSession(options?: OpenOptions): Promise<Session>;
export {};
