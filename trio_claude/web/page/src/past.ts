// What the journal has: runs, their lines, what was used. Rule: it is asked in pages, and shown in pieces of a frame.
import { api } from "./link";
import type { Json } from "./tools";
import type { Transcript } from "./transcript";

/** Lines that are shown before the page gets to draw. */
const AT_ONCE = 400;

export interface Row {
  id: string;
  identity: string;
  meta: string;
  door: string;
  session: string | null;
  state: "live" | "ended";
  started: number;
  ended: number | null;
  reason: string | null;
  tokens: number;
  dollars: number;
  lines: number;
  error: string | null;
  receipt: Json | null;
  prompt?: string | null;
  whole: boolean;
}

export async function listRuns(key: string, query: Record<string, string>): Promise<{ runs: Row[]; next: string | null }> {
  return (await api(`/api/runs?${new URLSearchParams(query)}`, key)).json();
}

export async function getRun(key: string, run: string): Promise<Row> {
  return (await api(`/api/runs/${run}`, key)).json();
}

/** Show a run's lines; return the number of the last. `each` hears of every line. */
export async function tell(key: string, run: Row, into: Transcript, isWanted: () => boolean, each: (line: Json, raw: string) => void = () => {}): Promise<number> {
  if (run.door !== "session" && run.prompt) into.say(run.prompt);
  let last = 0;
  for (let part: string | null = "0"; part !== null; ) {
    const answer = await api(`/api/runs/${run.id}/lines?part=${part}`, key);
    part = answer.headers.get("X-Next-Part");
    const records = (await answer.text()).split("\n").filter(Boolean);
    for (let at = 0; at < records.length; at += AT_ONCE) {
      if (!isWanted()) return last;
      for (const record of records.slice(at, at + AT_ONCE)) last = show(JSON.parse(record), into, each) ?? last;
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
  return last;
}

/** Show one record; return its number where it is a line of the CLI. */
function show(record: Json, into: Transcript, each: (line: Json, raw: string) => void): number | undefined {
  if (typeof record.stderr === "string") into.note(record.stderr, "note stderr");
  if (typeof record.in === "string") showSaid(record.in, into);
  if (typeof record.line !== "string") return undefined;
  const line = parse(record.line);
  into.take(line, true);
  each(line, record.line);
  return record.n;
}

function showSaid(text: string, into: Transcript): void {
  const said = parse(text);
  if (said.type === "user") into.say(words(said.message?.content));
  const response = said.type === "control_response" ? said.response : null;
  if (response) into.settle(response.request_id, response.response?.behavior === "deny" ? "denied" : "allowed");
}

function words(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((block: Json) => (block.type === "text" ? block.text : `[${block.type}]`)).join("\n");
}

function parse(text: string): Json {
  try {
    const value: unknown = JSON.parse(text);
    if (value && typeof value === "object") return value as Json;
  } catch {
    // a line need not be JSON
  }
  return { text };
}
