// One WebSocket to a server: where it is, who we are there, and how it ends.
// A key is held in memory only: it goes into a header or a subprotocol, never into an address.

import { Busy, ConnectionLost, errorOfStatus, Refused, TrioClaudeError } from "./errors.js";
import { asObject, type Json } from "./wire.js";

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
export interface Closed {
  code: number;
  reason: string;
  error?: TrioClaudeError;
}

export interface Handlers {
  open(socket: Socket): void;
  message(text: string): void;
}

const PROTOCOL = "trio-claude.v1";
const OPEN = 1;
/** Milliseconds for a handshake, for an answer to a request, and for a close that nobody answers. */
export const CONNECT_MS = 10_000;
const ASK_MS = 5_000;
export const CLOSE_MS = 2_000;
const ERROR_MS = 100;
const BROKEN = 1006;

/** A connection that was opened. */
export class Socket {
  private closing: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly socket: WebSocketObject,
    private readonly settle: (closed: Closed) => void,
  ) {}

  /** Take that it is over. */
  forget(): void {
    clearTimeout(this.closing);
  }

  /** Say something; what can't go out any more is lost with the connection. */
  send(text: string): void {
    if (this.socket.readyState === OPEN) this.socket.send(text);
  }

  /** Close; a server that does not answer is not waited for. */
  close(reason: string): void {
    this.socket.close(1000);
    this.closing ??= setTimeout(() => this.settle({ code: 1000, reason }), CLOSE_MS);
  }

  /** Leave a connection that may be dead, at once. */
  cut(reason: string): void {
    this.settle({ code: BROKEN, reason });
    this.socket.close(1000);
  }
}

/** Connect, and hear to the end; never throws for what the network does. A signal ends it at any point. */
export async function hold(
  way: Way,
  path: string,
  handlers: Handlers,
  signal: AbortSignal,
  ms = CONNECT_MS,
): Promise<Closed> {
  const kind = findClass(way);
  const base = baseOf(way.url);
  const stopped = { code: BROKEN, reason: "stopped" };
  let protocols: string[];
  await Promise.resolve(); // who gives up at once, as a React effect in StrictMode does, connects to nobody
  if (signal.aborted) return stopped;
  try {
    protocols = await within(credentials(way, base), ms, signal);
  } catch (error) {
    return told(failed(error), (known) => hint(base, known), signal);
  }
  if (signal.aborted) return stopped;
  const address = `${base.replace(/^http/, "ws")}${path}`;
  const closed = await listen(kind, address, protocols, handlers, signal, ms);
  return told(closed, (error) => explain(way, base, error), signal);
}

/** Have an error say more, where somebody knows more in time. */
async function told(closed: Closed, more: (error: TrioClaudeError) => Promise<TrioClaudeError>, signal: AbortSignal): Promise<Closed> {
  const { error } = closed;
  if (!error || signal.aborted) return closed;
  return { ...closed, error: await within(more(error), ASK_MS, signal).catch(() => error) };
}

function failed(error: unknown): Closed {
  const known = error instanceof TrioClaudeError ? error : new ConnectionLost(`can't get a ticket: ${text(error)}`);
  return { code: BROKEN, reason: known.message, error: known };
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function listen(
  kind: WebSocketClass,
  address: string,
  protocols: string[],
  handlers: Handlers,
  signal: AbortSignal,
  ms: number,
): Promise<Closed> {
  return new Promise((resolve) => {
    const never = (reason: string): Closed => ({ code: BROKEN, reason, error: ofStatus(reason) ?? new ConnectionLost(reason, LOST) });
    let socket: WebSocketObject;
    try {
      socket = new kind(address, protocols);
    } catch (error) {
      return resolve(never(`can't reach ${address}: ${text(error)}`)); // as from a page of https to an address of ws
    }
    let isOpen = false;
    let why = "";
    const settle = (closed: Closed): void => {
      clearTimeout(timer);
      opened.forget();
      signal.removeEventListener("abort", stop);
      socket.onopen = socket.onmessage = socket.onclose = null;
      resolve(closed);
    };
    const stop = (): void => (isOpen ? opened.close("stopped") : opened.cut("stopped"));
    const opened = new Socket(socket, settle);
    const unreachable = (): string => `can't reach ${address}${why && `: ${why}`}`;
    let timer = setTimeout(() => {
      settle(never(`no handshake with ${address} within ${ms / 1000} s`));
      socket.close();
    }, ms);
    signal.addEventListener("abort", stop);
    socket.onopen = () => {
      isOpen = true;
      clearTimeout(timer);
      handlers.open(opened);
    };
    socket.onmessage = (event) => handlers.message(String(event.data));
    socket.onerror = (event) => {
      why = typeof event?.message === "string" ? event.message : "";
      if (isOpen) return;
      clearTimeout(timer);
      timer = setTimeout(() => settle(never(unreachable())), ERROR_MS); // not every class says a close then
    };
    socket.onclose = (event) => {
      if (isOpen) settle({ code: event.code || BROKEN, reason: event.reason }); // Deno says 0
      else settle(never(unreachable()));
    };
  });
}

const LOST = { code: "lost", closeCode: BROKEN };

/** The package `ws`, Bun and Deno say with what status a handshake was refused: return that as an error. */
function ofStatus(reason: string): TrioClaudeError | undefined {
  const status = /(?:server response|status code): (\d{3})/.exec(reason)?.[1];
  return status ? errorOfStatus(Number(status)) : undefined;
}

/** Return the class to connect with. Throws where there is none. */
export function findClass(way: Way): WebSocketClass {
  const found = way.WebSocket ?? (globalThis as { WebSocket?: unknown }).WebSocket;
  if (found) return found as WebSocketClass;
  throw new TrioClaudeError(
    "there is no WebSocket here: use Node 22 or later, or node --experimental-websocket, or give `WebSocket` from the package ws",
    { code: "no-websocket" },
  );
}

/** Whether this is a page, or a worker of one. */
function page(): { href: string; origin: string } | undefined {
  const { location } = globalThis as { location?: { href: string; origin: string } };
  return location && location.origin !== "null" ? location : undefined;
}

/** Return a server's address as `http(s)://HOST[/PREFIX]`. Throws for what is none. */
export function baseOf(given: string | undefined): string {
  let url: URL;
  try {
    url = new URL(given ?? page()?.origin ?? "http://127.0.0.1:3000", page()?.href);
  } catch {
    throw new TrioClaudeError("url: not an address", { code: "url" });
  }
  const scheme = { "ws:": "http:", "wss:": "https:" }[url.protocol] ?? url.protocol;
  if (!/^https?:$/.test(scheme) || url.username || url.password) {
    throw new TrioClaudeError("url: http, https, ws or wss, without a name or password", { code: "url" });
  }
  return `${scheme}//${url.host}${url.pathname.replace(/\/(ws\/(claude|session)\/?)?$/, "")}`;
}

/** Return the subprotocols that say who we are. */
async function credentials(way: Way, base: string): Promise<string[]> {
  if (way.ticket !== undefined) {
    const ticket = typeof way.ticket === "function" ? await way.ticket() : way.ticket;
    return [PROTOCOL, `ticket.${base64url(ticket)}`];
  }
  if (!way.key) return [PROTOCOL];
  checkKey(way.key);
  if (!page()) return [PROTOCOL, `bearer.${base64url(way.key)}`];
  return [PROTOCOL, `ticket.${base64url(await buyTicket(base, way.key))}`];
}

function checkKey(key: string): void {
  if (!/^[!-~]+$/.test(key)) throw new Refused("the key has characters that no key has", { code: "credentials" });
}

async function buyTicket(base: string, key: string): Promise<string> {
  const headers = { Authorization: `Bearer ${key}` };
  return String((await request(`${base}/api/ticket`, { method: "POST", headers }))["ticket"]);
}

/** Return what the server answers. Throws what it refuses, and what `fetch` does. */
async function request(address: string, init: RequestInit = {}): Promise<Json> {
  const answer = await fetch(address, { ...init, signal: AbortSignal.timeout(ASK_MS) });
  const said = (await answer.json().then(asObject, () => undefined)) ?? {};
  const after = Number(answer.headers.get("Retry-After"));
  if (!answer.ok) throw errorOfStatus(answer.status, after > 0 ? { retry_after: after, ...said } : said);
  return said;
}

/** A browser says of a refused handshake only that there was none, `ws`, Bun and Deno only its status: ask over HTTP why. */
async function explain(way: Way, base: string, error: TrioClaudeError): Promise<TrioClaudeError> {
  try {
    if (way.key) await buyTicket(base, way.key);
    else if ((await request(`${base}/notice`))["credentials"] === true && way.ticket === undefined) {
      return new Refused("the server wants a key or token", { code: "credentials" });
    }
  } catch (refusal) {
    if (refusal instanceof Refused || refusal instanceof Busy) return refusal;
  }
  return hint(base, error);
}

/** A browser tells a page of a refusal of its origin only that nothing came: look whether the server is there for others. */
async function hint(base: string, error: TrioClaudeError): Promise<TrioClaudeError> {
  const own = page()?.origin;
  if (!own || new URL(base).origin === own || !(error instanceof ConnectionLost)) return error;
  const answers = (mode: RequestMode): Promise<boolean> =>
    fetch(`${base}/healthz`, { mode, signal: AbortSignal.timeout(ASK_MS) }).then(() => true, () => false);
  if ((await answers("cors")) || !(await answers("no-cors"))) return error;
  return new ConnectionLost(`${error.message}: something answers there, but not to a page of ${own}; the server's operator can name that with --allow-origin`, LOST);
}

function base64url(text: string): string {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** Wait for a promise for so long at most, and not behind a signal. */
async function within<T>(promise: Promise<T>, ms: number, signal: AbortSignal): Promise<T> {
  let done = (): void => undefined;
  const over = new Promise<never>((_, reject) => {
    const timer = setTimeout(() => reject(new ConnectionLost("no ticket in time", LOST)), ms);
    const stop = (): void => reject(new ConnectionLost("stopped", LOST));
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop);
    done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
    };
  });
  return Promise.race([promise, over]).finally(() => done());
}
