// What a run is at, by the lines of its CLI: a turn, an agent in the background, or nothing. Pure.
import { visible, type Json } from "./tools";
import { list } from "./transcript";

export const WAITING = "waiting for an answer";
/** Tasks in the background that say something: agents. */
const AGENTS = new Set(["local_agent", "local_workflow"]);

export class Turn {
  /** Whether the CLI is at a turn. */
  on = false;
  /** Whether an agent works in the background; it may, where what was said before is not known. */
  private works = true;

  /** Take a line, by its number; return what it says the run is at, empty where it does not say, null where nothing goes on any more. */
  take(line: Json, n: number): string | null {
    const wasOn = this.on;
    if (n === 1) this.works = false;
    if (line.type === "system" && line.subtype === "background_tasks_changed") this.works = list(line.tasks).some((task) => AGENTS.has(task.task_type));
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
