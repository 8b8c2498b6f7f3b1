// What was typed, on its way to the run: it waits, is said, and goes back to its field where nobody took it.
import { find } from "./dom";

export class Prompts {
  private waiting: string[] = [];
  private last = "";

  constructor(private readonly onBack: () => void) {}

  add(text: string): void {
    this.waiting.push(text);
  }

  /** Those that wait. */
  get all(): readonly string[] {
    return this.waiting;
  }

  /** Say what waits. Throws what `say` does; what was not said waits on. */
  speak(say: (text: string) => void): void {
    for (; this.waiting.length; this.last = this.waiting.shift()!) say(this.waiting[0]!);
  }

  /** Take that what was said last was refused. */
  refuse(): void {
    if (this.last) this.waiting.unshift(this.last);
    this.last = "";
  }

  /** Take that what was said is answered. */
  settle(): void {
    this.last = "";
  }

  clear(): void {
    this.waiting = [];
    this.last = "";
  }

  /** Put what waits back where it was typed; return whether there was anything. */
  giveBack(): boolean {
    const texts = this.waiting.splice(0);
    if (!texts.length) return false;
    const prompt = find<HTMLTextAreaElement>("prompt");
    prompt.value = [...texts, prompt.value].filter(Boolean).join("\n");
    this.onBack();
    return true;
  }
}
