// Numbers and times in words.

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

export function moment(unix: number): string {
  return new Date(unix * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
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
