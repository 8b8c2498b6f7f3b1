// Things that wait for a reader, bounded: a browser can't make a server wait, so what goes over the limit ends it.

import { Overflow } from "./errors.js";

/** Characters of unread lines that are kept by default: twice the longest line that a server takes. */
export const BUFFER_LIMIT = 32 * 1024 * 1024;
/** Characters that a thing counts for beside its own, of which it may have none. */
const EACH = 100;

interface Waiter<T> {
  resolve(result: IteratorResult<T, undefined>): void;
  reject(error: unknown): void;
}

/** A queue with one reader; `close` ends it behind what is there, `fail` at once. */
export class Inbox<T> {
  private things: { thing: T; size: number }[] = [];
  private first = 0;
  private size = 0;
  private waiting: Waiter<T>[] = [];
  private closed = false;
  private error: unknown;
  /** Whether anybody has ever read. */
  isRead = false;

  constructor(private readonly limit: number) {}

  /** Put a thing of so many characters in; return false, and take nothing, where it would go over the limit. */
  push(thing: T, characters: number): boolean {
    if (this.closed) return true;
    const waiter = this.waiting.shift();
    if (waiter) {
      waiter.resolve({ value: thing, done: false });
      return true;
    }
    const size = characters + EACH;
    if (this.size > 0 && this.size + size > this.limit) return false;
    this.things.push({ thing, size });
    this.size += size;
    return true;
  }

  /** Say that no more comes; whoever reads to the end gets the error, once, where there is one. */
  close(error?: unknown): void {
    if (this.closed) return;
    this.closed = true;
    this.error = error;
    for (const waiter of this.waiting.splice(0)) this.settle(waiter);
  }

  /** Let go what is unread, and say that no more comes. */
  fail(error: unknown): void {
    this.drop();
    if (this.closed) this.error = error;
    this.close(error);
  }

  /** Let go what is unread because of the limit. */
  overflow(): Overflow {
    const error = new Overflow(this.limit);
    this.fail(error);
    return error;
  }

  next(): Promise<IteratorResult<T, undefined>> {
    this.isRead = true;
    const head = this.things[this.first];
    if (head) {
      this.shift(head.size);
      return Promise.resolve({ value: head.thing, done: false });
    }
    return new Promise((resolve, reject) => {
      if (this.closed) this.settle({ resolve, reject });
      else this.waiting.push({ resolve, reject });
    });
  }

  private settle(waiter: Waiter<T>): void {
    const error = this.error;
    this.error = undefined;
    if (error === undefined) waiter.resolve({ value: undefined, done: true });
    else waiter.reject(error);
  }

  /** Forget the head; the list is cut only now and again, so that each reading costs the same. */
  private shift(size: number): void {
    this.size -= size;
    this.first += 1;
    if (this.first < 1024 && this.first < this.things.length) return;
    this.things.splice(0, this.first);
    this.first = 0;
  }

  private drop(): void {
    this.things = [];
    this.first = this.size = 0;
  }
}
