// Requests to the server's API. Rule: a key is in memory only, and goes into a header.
import type { Json } from "./tools";

/** A server that refuses: `code` as in docs/protocol.md. */
export class ApiRefused extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

export async function api(path: string, key: string, init: RequestInit = {}): Promise<Response> {
  const headers: Record<string, string> = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...init, headers });
  if (answer.ok) return answer;
  const said = (await answer.json().catch(() => ({}))) as Json;
  throw new ApiRefused(String(said.code ?? answer.status), String(said.error ?? `HTTP ${answer.status}`));
}
