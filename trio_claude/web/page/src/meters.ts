// The figures of the run on the page: state, time of the turn, tokens, dollars. Every figure is the CLI's own.
import { find, setText } from "./dom";
import type { Json } from "./tools";
import { clock, count, counted, dollars } from "./words";

export class Meters {
  private base = 0;
  private live = 0;
  private cost = 0;
  private since = 0;

  constructor() {
    setInterval(() => this.tick(), 500);
  }

  reset(): void {
    this.base = this.live = this.cost = this.since = 0;
    this.show();
  }

  state(text: string): void {
    setText(find("state"), text);
  }

  /** Take whether a turn goes on; the time of one whose beginning was not seen is not known. */
  turn(on: boolean, seen = true): void {
    find("progress").hidden = !on;
    if (on && !this.since && seen) this.since = performance.now();
    if (!on) this.since = 0;
    if (on) this.tick();
  }

  take(line: Json): void {
    const event = line.type === "stream_event" ? line.event : null;
    if (event?.type === "message_start") this.live += sum(event.message?.usage) - counted(event.message?.usage?.output_tokens);
    if (event?.type === "message_delta") this.live += counted(event.usage?.output_tokens);
    if (line.type === "result") this.takeResult(line);
    if (event || line.type === "result") this.show();
  }

  private takeResult(line: Json): void {
    const models: Json[] = Object.values(line.modelUsage ?? {});
    const all = models.reduce((so, one) => so + camel(one), 0);
    this.base = all || this.base + sum(line.usage);
    this.live = 0;
    this.cost = counted(line.total_cost_usd ?? this.cost);
  }

  private show(): void {
    find("tokens").textContent = count(this.base + this.live, "token");
    find("cost").textContent = dollars(this.cost);
  }

  private tick(): void {
    const elapsed = find("elapsed");
    elapsed.hidden = !this.since;
    if (this.since) elapsed.textContent = clock(performance.now() - this.since);
  }
}

function sum(usage: Json | null = {}): number {
  const names = ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"];
  return names.reduce((so, name) => so + counted(usage?.[name]), 0);
}

function camel(usage: Json | null): number {
  const names = ["inputTokens", "cacheCreationInputTokens", "cacheReadInputTokens", "outputTokens"];
  return names.reduce((so, name) => so + counted(usage?.[name]), 0);
}
