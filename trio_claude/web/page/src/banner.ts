// The one thing that is said below the conversation, with a button where something can be done about it.
import { find, h } from "./dom";

export class Banner {
  constructor(private readonly onShown: () => void) {}

  /** Say something, or nothing any more. */
  say(text: string, ...more: HTMLElement[]): void {
    find("banner").replaceChildren(h("p", {}, text), ...more);
    find("banner").hidden = !text;
    this.onShown();
  }

  offer(text: string, what: string, act: () => void): void {
    const button = h("button", { type: "button", id: "offer" }, what);
    button.addEventListener("click", act);
    this.say(text, button);
  }
}
