// What the journal has: runs, their lines, what was used. Rule: it is asked in pages, and shown in pieces of a frame.
import { api, ApiRefused } from "./link";
import type { Json } from "./tools";
import type { Transcript } from "./transcript";

/** Lines that are shown before the page gets to draw. */
const AT_ONCE = 400;
/** Times that what can't be had is asked for, the seconds between them, and at the most between them where the server says. */
const TRIES = 3;
const PAUSE = 0.5;
const LONGEST_PAUSE = 5;

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
  return (await api(`api/runs?${new URLSearchParams(query)}`, key)).json();
}

export async function getRun(key: string, run: string): Promise<Row> {
  return (await ask(`api/runs/${run}`, key)).json();
}

type Each = (line: Json, raw: string, n: number) => void;

/** Show a run's lines. `each` hears of every line, with its number, once it is shown. */
export async function tell(key: string, run: Row, into: Transcript, isWanted: () => boolean, each: Each = () => {}): Promise<void> {
  if (run.door !== "session" && run.prompt) into.say(run.prompt);
  for (let part: string | null = "0"; part !== null; ) {
    const answer = await ask(`api/runs/${run.id}/lines?part=${part}`, key);
    part = answer.headers.get("X-Next-Part");
    const records = (await answer.text()).split("\n").filter(Boolean);
    for (let at = 0; at < records.length; at += AT_ONCE) {
      if (!isWanted()) return;
      for (const record of records.slice(at, at + AT_ONCE)) show(JSON.parse(record), into, each);
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
}

/** Ask, and again where the server was not reached, or has room in a moment. */
async function ask(path: string, key: string): Promise<Response> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await api(path, key);
    } catch (error) {
      const after = error instanceof ApiRefused ? error.retryAfter : PAUSE;
      if (!after || after > LONGEST_PAUSE || tries === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, after * 1000));
    }
  }
}

function show(record: Json, into: Transcript, each: Each): void {
  if (typeof record.stderr === "string") into.note(record.stderr, "note stderr");
  if (typeof record.in === "string") showSaid(record.in, into);
  if (typeof record.line !== "string") return;
  const line = parse(record.line);
  into.take(line, true);
  each(line, record.line, record.n);
}

function showSaid(text: string, into: Transcript): void {
  const said = parse(text);
  if (said.type === "user") into.say(words(said.message?.content));
  const response = said.type === "control_response" ? said.response : null;
  if (response) into.answered(response.request_id, response.response?.updatedInput);
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
