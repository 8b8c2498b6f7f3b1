// What was said on a link: what comes next, and what of it may have to be said again. Pure.

import { ConnectionLost } from "./errors.js";

/** Characters of what was said that are kept beside the last message, to be said again where it was not heard. */
export const OUTBOX_LIMIT = 1024 * 1024;

export class Said {
  private texts: string[] = [];
  private size = 0;
  private first = 0;
  private nextIndex = 0;

  /** @param limit 0 where nothing is ever said again. */
  constructor(private readonly limit: number) {}

  /** Take a message. Throws where too much was not said yet. */
  add(text: string): void {
    const waiting = this.texts.slice(this.nextIndex - this.first).reduce((size, one) => size + one.length, 0);
    if (this.limit && waiting && waiting + text.length > this.limit) {
      throw new ConnectionLost("the connection is broken, and too much waits for the next one", { code: "lost" });
    }
    this.texts.push(text);
    this.size += text.length;
  }

  /** Return what is to be said next, and take that it is being said; undefined where all was. */
  next(): string | undefined {
    const text = this.texts[this.nextIndex - this.first];
    if (text !== undefined) this.nextIndex += 1;
    return text;
  }

  /** Keep of what was said the last, and of those before as much as the limit allows. */
  forget(): void {
    while (this.first < this.nextIndex && (!this.limit || (this.size > this.limit && this.texts.length > 1))) this.drop();
  }

  /** Go back to what was not heard. Throws where that is not kept any more. */
  rewind(heard: number): void {
    if (heard > this.nextIndex) {
      throw new ConnectionLost("the server has heard more than was said", { code: "lost" });
    }
    while (this.first < heard) this.drop();
    if (heard < this.first) {
      throw new ConnectionLost("what was said last was not heard, and is not kept any more", { code: "lost" });
    }
    this.nextIndex = heard;
  }

  private drop(): void {
    this.size -= (this.texts.shift() ?? "").length;
    this.first += 1;
  }
}
