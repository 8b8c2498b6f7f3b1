// What a run is at, by the lines of its CLI: a turn, an agent in the background, or nothing. Pure.
import { visible, type Json } from "./tools";
import { list } from "./transcript";

export const WAITING = "waiting for an answer";

export class Turn {
  /** Whether the CLI is at a turn. */
  on = false;
  /** Whether anything goes on in the background. */
  private works = false;

  /** Take a line; return what it says the run is at, empty where it does not say, null where nothing goes on any more. */
  take(line: Json): string | null {
    const wasOn = this.on;
    if (line.type === "system" && line.subtype === "background_tasks_changed") this.works = list(line.tasks).length > 0;
    const isAgents = typeof line.parent_tool_use_id === "string";
    const at = isAgents && !wasOn && !this.works ? "" : phase(line); // an agent that was stopped has a last word
    this.on = line.type !== "result" && (wasOn || (at !== "" && !isAgents));
    const isOver = line.type === "result" || (line.subtype === "background_tasks_changed" && !this.on && !this.works);
    return isOver ? null : at;
  }
}

/** What a turn is at by a line of its own, empty where the line does not say. */
function phase(line: Json): string {
  if (line.type === "user" || (line.type === "system" && line.subtype === "init")) return WAITING;
  if (line.type === "stream_event" && line.event?.type === "content_block_start") return "writing";
  if (line.type !== "assistant") return "";
  const tools = list(line.message?.content).filter((block) => block.type === "tool_use");
  return tools.length ? visible(`running ${tools.map((block) => block.name).join(", ")}`.slice(0, 80)) : "writing";
}
