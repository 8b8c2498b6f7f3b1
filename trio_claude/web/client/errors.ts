// Every failure that this client tells of, and the one map from close codes and refusals to them.
// Nothing here connects or waits, and no text holds a key or a ticket.

import type { Json } from "./wire.js";

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
export class TrioClaudeError extends Error {
  readonly code: string;
  readonly reason: string;
  readonly closeCode: number | undefined;
  readonly said: Json;

  constructor(message: string, { code = "error", reason = message, closeCode, said = {} }: ErrorFields = {}) {
    super(message);
    this.name = new.target.name;
    this.code = code;
    this.reason = reason;
    this.closeCode = closeCode;
    this.said = said;
  }
}

/** The server took no part of it: a bad message (1008), a `refused` event, or HTTP 401 or 403 at the door. */
export class Refused extends TrioClaudeError {}

/** A message was larger than the server takes (1009). */
export class TooLarge extends TrioClaudeError {}

/** The run came to a bad end (1011). */
export class RunFailed extends TrioClaudeError {
  /** The CLI's exit status, null where it has none. */
  get exitStatus(): number | null {
    return numberOr(this.said["exit_status"], null);
  }
}

/** The server goes down (1012). */
export class ServerGone extends TrioClaudeError {}

/** The server is full, or a limit is reached (1013): try again in `retryAfter` seconds. */
export class Busy extends TrioClaudeError {
  get retryAfter(): number {
    return numberOr(this.said["retry_after"], 1);
  }
}

/** The connection broke (1006 and the like), or there never was one. */
export class ConnectionLost extends TrioClaudeError {}

/** More came than was read: the unread lines went over `limit` characters, and the run was left. */
export class Overflow extends TrioClaudeError {
  readonly limit: number;

  constructor(limit: number) {
    super(`more than bufferLimit (${limit} characters) came unread`, { code: "overflow" });
    this.limit = limit;
  }
}

type Kind = new (message: string, fields: ErrorFields) => TrioClaudeError;

const CLOSES: Record<number, [Kind, string]> = {
  1008: [Refused, "refused"],
  1009: [TooLarge, "too-large"],
  1011: [RunFailed, "failed"],
  1012: [ServerGone, "server-gone"],
  1013: [Busy, "busy"],
};

/** Return what a close means, undefined for a good one; `said` is the last error that the server told. */
export function errorOfClose(closeCode: number, reason: string, said: Json = {}): TrioClaudeError | undefined {
  if (closeCode === 1000) return said["event"] === "refused" ? undefined : errorOfEnd(closeCode, { reason, ...said });
  const [kind, word] = CLOSES[closeCode] ?? [ConnectionLost, "lost"];
  const code = typeof said["code"] === "string" ? said["code"] : word;
  const text = typeof said["error"] === "string" ? said["error"] : reason;
  return new kind(text || "the connection broke", { code, reason, closeCode, said });
}

/** Return what a run's end means by its own words, undefined for a good one. */
export function errorOfEnd(closeCode: number, said: Json): TrioClaudeError | undefined {
  if (typeof said["error"] !== "string") return undefined;
  const [kind, code]: [Kind, string] = said["reason"] === "drained" ? [ServerGone, "server-gone"] : [RunFailed, "failed"];
  return new kind(said["error"], { code, reason: String(said["reason"]), closeCode, said });
}

/** Return a `refused` event as an error. */
export function errorOfRefusal(said: Json): TrioClaudeError {
  const kind = "retry_after" in said ? Busy : Refused;
  return new kind(String(said["error"]), { code: String(said["code"]), said });
}

/** Return an HTTP refusal as an error. */
export function errorOfStatus(status: number, said: Json = {}): TrioClaudeError {
  const kind = status === 401 || status === 403 ? Refused : status === 429 || status === 503 ? Busy : ConnectionLost;
  const code = typeof said["code"] === "string" ? said["code"] : `http-${status}`;
  const text = typeof said["error"] === "string" ? said["error"] : `the server answered HTTP ${status}`;
  return new kind(text, { code, said });
}

function numberOr<T>(value: unknown, other: T): number | T {
  return typeof value === "number" ? value : other;
}
