// Which turn an event belongs to. Pure.

import type { TrioClaudeError } from "./errors.js";
import type { GatewayEvent, SessionEvent } from "./session.js";
import { asObject } from "./wire.js";

/** The code of what is refused because the run ends: its end is on its way, and says why. */
export const ENDING = "ending";

/** A turn that was said, behind another one that has no result yet. */
export interface Turn {
  before: Turn | undefined;
  refusal?: TrioClaudeError;
}

/** Whether a message is refused, or who said it: neither what another message is, nor what comes before the end. */
export function isRefusal(event: SessionEvent, uuid: unknown): event is GatewayEvent {
  if (event.type !== "gateway" || event.event !== "refused" || "request_id" in event) return false;
  return event["code"] !== ENDING && (event["uuid"] ?? uuid) === uuid;
}

export function isResult(event: SessionEvent): boolean {
  return event.type === "line" && event.line?.["type"] === "result";
}

/**
 * Whether a line is of a message's turn: of those it names, or none where the CLI began the turn by itself. Undefined
 * where it does not say.
 */
export function isOf(event: SessionEvent, uuid: string): boolean | undefined {
  const names = namesOf(event);
  if (names) return names.includes(uuid);
  const origin = event.type === "line" ? event.line?.["origin"] : undefined;
  return (asObject(origin)?.["kind"] ?? "human") === "human" ? undefined : false;
}

/** The messages that a result answers, where it names them. */
export function namesOf(event: SessionEvent): unknown[] | undefined {
  const names = event.type === "line" ? event.line?.["user_message_uuids"] : undefined;
  return Array.isArray(names) ? names : undefined;
}

/** Whether an event is told also in a turn that waits for the end of another one: it is of neither. */
export function isForAll(event: SessionEvent): boolean {
  return event.type === "approval" || event.type === "settled" || (event.type === "gateway" && "uuid" in event);
}
