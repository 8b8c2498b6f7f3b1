// What was typed, on its way to the run: it waits, is said, and goes back to its field where nobody took it.
import { find } from "./dom";
import type { Json } from "./tools";

/** Characters of a prompt whose lines go each in their own direction: that takes a browser the square of a line's length. */
const DIRECTED = 100_000;

/** Take how many characters the field is about to have. */
export function takeLength(prompt: HTMLTextAreaElement, length: number): void {
  prompt.classList.toggle("long", length > DIRECTED);
}

export class Prompts {
  private waiting: string[] = [];
  /** What was said and is not answered, by the names of the messages. */
  private said = new Map<unknown, string>();
  /** What was said since a turn has begun: nobody knows yet whether it was heard. */
  private unheard = new Map<unknown, string>();
  /** What the last result that named no message may have answered: where a refusal comes behind it, it did not. */
  private settled = new Map<unknown, string>();
  /** What the field was given back. */
  private back = "";

  /** `onBack` hears that something was given back, and whether it was not said at all. */
  constructor(private readonly onBack: (isUnsaid: boolean) => void) {}

  add(text: string): void {
    this.waiting.push(text);
  }

  /** Those that wait. */
  get all(): readonly string[] {
    return this.waiting;
  }

  /** Say what waits; `say` returns the message's name. Throws what it does; what was not said waits on. */
  speak(say: (text: string) => string): void {
    for (let text; (text = this.waiting[0]) !== undefined; this.waiting.shift()) {
      const name = say(text);
      this.said.set(name, text);
      this.unheard.set(name, text);
    }
  }

  /** Take that a turn begins: what was said was heard. */
  hear(): void {
    this.unheard.clear();
  }

  /** Take that a message was refused. */
  refuse(name: unknown): void {
    const text = this.said.get(name) ?? this.settled.get(name);
    for (const known of [this.said, this.settled, this.unheard]) known.delete(name);
    if (text !== undefined) this.waiting.push(text);
  }

  /** Whether what was said is not answered yet. */
  get areAwaited(): boolean {
    return this.said.size > 0;
  }

  /** Take a result: it answers the messages that it names, else all; none where the CLI began its turn by itself. */
  settle({ user_message_uuids: names, origin }: Json): void {
    if (Array.isArray(names)) for (const known of [this.said, this.unheard]) for (const name of names) known.delete(name);
    else if ((origin?.kind ?? "human") === "human") [this.settled, this.said, this.unheard] = [this.said, new Map(), new Map()];
  }

  /** Take that the run is over, or out of reach: what waits goes back, and what may not have been heard. */
  end(): void {
    this.giveBack([...this.unheard.values()], false);
    this.giveBack();
    this.clear();
  }

  clear(): void {
    this.waiting = [];
    for (const known of [this.said, this.settled, this.unheard]) known.clear();
  }

  /** Put what waits back where it was typed, in its order; return whether there was anything. */
  giveBack(texts = this.waiting.splice(0), isUnsaid = true): boolean {
    if (!texts.length) return false;
    const prompt = find<HTMLTextAreaElement>("prompt");
    const all = prompt.value === this.back ? [prompt.value, ...texts] : [...texts, prompt.value];
    this.back = all.filter(Boolean).join("\n");
    takeLength(prompt, this.back.length);
    prompt.value = this.back;
    this.onBack(isUnsaid);
    return true;
  }
}
