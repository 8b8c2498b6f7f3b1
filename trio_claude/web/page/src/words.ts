// Numbers and times in words.
import type { State } from "../../client/client";
import { ASKING } from "./questions";

export const STATES: Record<State | "idle", string> = {
  idle: "not connected",
  connecting: "connecting",
  open: "connected",
  lost: "connection lost: trying again",
  back: "connected",
  closed: "not connected",
};
export const HISTORY: Record<string, string> = {
  waiting: "What is said can't be kept just now: it waits, and the run goes on.",
  back: "What is said is kept again.",
  ended: "From here on nothing is kept of this run.",
};
export const SETTLED: Record<string, string> = {
  cancelled: "no longer asked",
  timeout: "nobody answered in time: denied",
  refused: "the answer was refused",
};

export function seconds(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return clock(ms);
}

/** Minutes and seconds, with hours where there are any. */
export function clock(ms: number): string {
  const all = Math.max(0, Math.floor(ms / 1000));
  const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  const two = (value: number) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

export function count(value: number, one: string, many = `${one}s`): string {
  return `${value.toLocaleString("en")} ${value === 1 ? one : many}`;
}

/** What a line gives is less than this, else it is no cost and no number of tokens. */
const COUNTED = 1e15;

/** Return a number that a CLI says, 0 where it is none that counts. */
export function counted(value: unknown): number {
  return typeof value === "number" && value >= 0 && value < COUNTED ? value : 0;
}

export function dollars(value: number): string {
  return `$${value.toFixed(value && value < 0.01 ? 5 : 2)}`;
}

const MOMENT = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" }); // one for a whole list: it is dear to make

export function moment(unix: number): string {
  return MOMENT.format(unix * 1000);
}

/** What went wrong, and when to try again where the server says so. */
export function whyOf(error: unknown): string {
  const { message = String(error), retryAfter } = (error ?? {}) as { message?: string; retryAfter?: number };
  return retryAfter ? `${message}; try again in ${seconds(retryAfter * 1000)}` : message;
}

/** What a receipt says, as the close reason says it. */
export function receiptWords(receipt: Receipt): string {
  const left = receipt.survivors == null ? "unproven" : `${receipt.survivors} left`;
  return `${count(receipt.seen, "process", "processes")}, ${left}`;
}

export interface Receipt {
  seen: number;
  killed: number;
  survivors: number | null;
  ms: number;
  containment: string;
}

/** What is asked where a tool wants to run: of who looks at it, or of whomever. */
export function asked(tool: string, owner = false): string {
  if (tool === ASKING) return owner ? "asks you something" : "asks something";
  return owner ? `asks you: may ${tool} run?` : `asks whether ${tool} may run`;
}
