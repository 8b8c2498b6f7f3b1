// What travels: the shapes of the wire contract and how a frame and a close reason are read. Pure.

/** An object as it came. */
export type Json = Record<string, unknown>;

/** A line of the CLI: its number, counted from 1, its own bytes as text, and the same parsed, where it is JSON. */
export interface Line {
  n: number;
  raw: string;
  line: Json | undefined;
}

/** The options of the wire contract, by their names on the wire; a server may allow fewer, from `tools` on only by a grant. */
export interface WireOptions {
  model?: string | undefined;
  system_prompt?: string | undefined;
  append_system_prompt?: string | undefined;
  max_turns?: number | undefined;
  max_budget_usd?: number | undefined;
  effort?: "low" | "medium" | "high" | "xhigh" | "max" | undefined;
  partial?: boolean | undefined;
  resume?: string | undefined;
  temperature?: number | undefined;
  max_output_tokens?: number | undefined;
  json_schema?: Json | undefined;
  timeout?: number | undefined;
  workspace?: string | undefined;
  tools?: string[] | undefined;
  allowed_tools?: string[] | undefined;
  disallowed_tools?: string[] | undefined;
  permission_mode?: string | undefined;
  mcp_servers?: Json | undefined;
  fallback_model?: string | undefined;
  max_thinking_tokens?: number | undefined;
}

/** The options of a session: those, and how it goes on from an earlier one. */
export interface SessionOptions extends WireOptions {
  fork?: boolean | undefined;
  recall?: boolean | undefined;
  /** What becomes of the run without its client; `grace` beside `options` sets it too, and has the connection made anew. */
  on_disconnect?: "kill" | { grace: number } | undefined;
}

/** How a run ended. What the close reason does not say is undefined; `left` is null where it can't be proven. */
export interface Ended {
  code: number;
  reason: string;
  cause: string;
  exit_status?: number;
  signal?: number;
  processes?: number;
  left?: number | null;
  ms?: number;
}

const GRAMMAR = /^(.*); (\d+) process(?:es)?, (?:(\d+) left|unproven), (\d+) ms$/;

/** Read `CAUSE; N processes, M left, T ms`. */
export function parseReason(code: number, reason: string): Ended {
  const found = GRAMMAR.exec(reason);
  if (!found) return { code, reason, cause: reason };
  const [, cause = "", processes, left, ms] = found;
  const ended: Ended = {
    code,
    reason,
    cause,
    processes: Number(processes),
    left: left === undefined ? null : Number(left),
    ms: Number(ms),
  };
  const status = /^(exit|signal) (\d+)$/.exec(cause);
  if (status) ended[status[1] === "exit" ? "exit_status" : "signal"] = Number(status[2]);
  return ended;
}

/** Return a text as an object, undefined where it is none. */
export function parseObject(text: string): Json | undefined {
  try {
    return asObject(JSON.parse(text));
  } catch {
    return undefined;
  }
}

export function asObject(value: unknown): Json | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Json) : undefined;
}

/** Whether a frame of `/ws/claude` is the server's own: an object without a type. */
export function isNote(said: Json | undefined): said is Json {
  return said !== undefined && !("type" in said) && ("info" in said || "error" in said || "stderr" in said);
}

/** Return the text of an assistant line, or of an inner message. */
export function textOf(line: Json): string {
  const content = (asObject(line["message"]) ?? line)["content"];
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((block) => (block?.type === "text" ? String(block.text) : "")).join("");
}

/** Return the piece of text that a `stream_event` line brings, empty where it brings none. */
export function deltaOf(line: Json): string {
  const delta = asObject(asObject(line["event"])?.["delta"]);
  return delta?.["type"] === "text_delta" ? String(delta["text"]) : "";
}

/** Follows the lines of one answer and knows its text so far; a `result` line has the last word. */
export class AnswerText {
  text = "";
  private done = "";
  private piece = "";

  take(line: Json | undefined): void {
    if (line?.["type"] === "stream_event" && !line["parent_tool_use_id"]) this.piece = line["abandoned_blocks"] ? "" : this.piece + deltaOf(line);
    else if (line?.["type"] === "assistant" && !line["parent_tool_use_id"]) {
      this.done += textOf(line);
      this.piece = "";
    } else if (line?.["type"] === "result" && typeof line["result"] === "string") {
      this.done = line["result"];
      this.piece = "";
    } else return;
    this.text = this.done + this.piece;
  }
}
