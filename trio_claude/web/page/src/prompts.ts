// What was typed, on its way to the run: it waits, is said, and goes back to its field where nobody took it.
import { find } from "./dom";
import type { Json } from "./tools";

export class Prompts {
  private waiting: string[] = [];
  /** What was said and is not answered, by the names of the messages. */
  private said = new Map<unknown, string>();
  /** What the last result that named no message may have answered: where a refusal comes behind it, it did not. */
  private settled = new Map<unknown, string>();
  /** What the field was given back. */
  private back = "";

  constructor(private readonly onBack: () => void) {}

  add(text: string): void {
    this.waiting.push(text);
  }

  /** Those that wait. */
  get all(): readonly string[] {
    return this.waiting;
  }

  /** Say what waits; `say` returns the message's name. Throws what it does; what was not said waits on. */
  speak(say: (text: string) => string): void {
    for (let text; (text = this.waiting[0]) !== undefined; this.waiting.shift()) this.said.set(say(text), text);
  }

  /** Take that a message was refused. */
  refuse(name: unknown): void {
    const text = this.said.get(name) ?? this.settled.get(name);
    this.said.delete(name);
    this.settled.delete(name);
    if (text !== undefined) this.waiting.push(text);
  }

  /** Whether what was said is not answered yet. */
  get areAwaited(): boolean {
    return this.said.size > 0;
  }

  /** Take a result: it answers the messages that it names, else all; none where the CLI began its turn by itself. */
  settle({ user_message_uuids: names, origin }: Json): void {
    if (Array.isArray(names)) for (const name of names) this.said.delete(name);
    else if ((origin?.kind ?? "human") === "human") [this.settled, this.said] = [this.said, new Map()];
  }

  /** Take that the run is over: what waits goes back, and nothing is answered any more. */
  end(): void {
    this.giveBack();
    this.clear();
  }

  clear(): void {
    this.waiting = [];
    this.said.clear();
    this.settled.clear();
  }

  /** Put what waits back where it was typed, in its order; return whether there was anything. */
  giveBack(): boolean {
    const texts = this.waiting.splice(0);
    if (!texts.length) return false;
    const prompt = find<HTMLTextAreaElement>("prompt");
    const all = prompt.value === this.back ? [prompt.value, ...texts] : [...texts, prompt.value];
    prompt.value = this.back = all.filter(Boolean).join("\n");
    this.onBack();
    return true;
  }
}
