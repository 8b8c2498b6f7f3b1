// What was typed, on its way to the run: it waits, is said, and goes back to its field where nobody took it.
import { find } from "./dom";

export class Prompts {
  private waiting: string[] = [];
  /** What was said and is not answered, by the names of the messages. */
  private readonly said = new Map<unknown, string>();
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
    const text = this.said.get(name);
    this.said.delete(name);
    if (text !== undefined) this.waiting.push(text);
  }

  /** Take that messages are answered; all of them where it is not said which. */
  settle(names: unknown): void {
    if (Array.isArray(names)) for (const name of names) this.said.delete(name);
    else this.said.clear();
  }

  clear(): void {
    this.waiting = [];
    this.said.clear();
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
