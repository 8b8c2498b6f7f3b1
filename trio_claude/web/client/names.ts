// Which names a program may give, and the refusal of all others: one that is ignored is missed late. Pure.

import type { AskOptions } from "./ask.js";
import type { AttachOptions, OpenOptions } from "./session.js";
import type { Way } from "./sockets.js";
import type { SessionOptions, WireOptions } from "./wire.js";

/** All names of a type: the compiler finds the one that is missing. */
type Names<T> = Readonly<Record<keyof T, true>>;

const WAY: Names<Way> = { url: true, key: true, ticket: true, WebSocket: true };
const WIRE: Names<WireOptions> = {
  model: true, system_prompt: true, append_system_prompt: true, max_turns: true, max_budget_usd: true, effort: true, partial: true,
  resume: true, temperature: true, max_output_tokens: true, json_schema: true, timeout: true, workspace: true,
  tools: true, allowed_tools: true, disallowed_tools: true, permission_mode: true, mcp_servers: true, fallback_model: true,
  max_thinking_tokens: true,
};
const OF_SESSION: Names<SessionOptions> = { ...WIRE, fork: true, recall: true, on_disconnect: true };
export const ASK: Names<AskOptions> = { ...WAY, ...WIRE, meta: true, signal: true, bufferLimit: true, onNote: true, onOpen: true };
const OPEN: Names<OpenOptions> = {
  ...WAY, meta: true, options: true, grace: true, attach: true, signal: true, onState: true, onEvent: true, bufferLimit: true,
};
const ATTACH: Names<AttachOptions> = { run: true, after: true, as: true };

/** Take an object with names that are known. Throws a `TypeError` that names any other. */
export function checkNames(what: string, given: unknown, known: Readonly<Record<string, true>>): void {
  if (typeof given !== "object" || given === null) throw new TypeError(`${what} takes an object, not ${given === null ? "null" : `a ${typeof given}`}`);
  const odd = Object.keys(given).find((name) => !Object.hasOwn(known, name));
  if (odd === undefined) return;
  const isOption = Object.hasOwn(known, "options") && Object.hasOwn(OF_SESSION, odd);
  const why = isOption ? "it is one of `options`" : `there are ${Object.keys(known).join(", ")}`;
  throw new TypeError(`${what} takes no \`${odd}\`: ${why}`);
}

/** Take what `openSession` is given, with what lies in it. Throws as `checkNames` does. */
export function checkOpen(given: OpenOptions): void {
  checkNames("openSession", given, OPEN);
  checkNames("options", given.options ?? {}, OF_SESSION);
  checkNames("attach", given.attach ?? {}, ATTACH);
}
