// Requests to the server's API. Rule: a key is in memory only, and goes into a header.
import type { Json } from "./tools";

/** Refusals that a better key would help against. */
export const KEY_CODES = new Set(["unauthorized", "credentials"]);
/** Refusals of a server that keeps nothing, or nothing of this run. */
export const NOT_KEPT = new Set(["no-journal", "404", "no-run"]);
/** Refusals that are of no prompt: of the way to the run, for the moment. */
export const NOT_NOW = new Set(["draining", "journal", "no-answer"]);

/** Where the server is: where the page is. */
export const HERE = new URL(".", location.href).href;

/** A server that refuses: `code` as in docs/protocol.md, and the seconds after which it may not, where it says so. */
export class ApiRefused extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly retryAfter = 0,
  ) {
    super(message);
  }
}

/** Ask the server; `path` is relative, as to where a proxy has put the page. */
export async function api(path: string, key: string, init: RequestInit = {}): Promise<Response> {
  const headers: Record<string, string> = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...init, headers });
  if (answer.ok) return answer;
  const said = (await answer.json().catch(() => ({}))) as Json;
  const after = Number(answer.headers.get("Retry-After")) || 0;
  throw new ApiRefused(String(said.code ?? answer.status), String(said.error ?? `HTTP ${answer.status}`), after);
}
