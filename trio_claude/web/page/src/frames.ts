// The frames as they came: the newest are kept as text, and become nodes only while somebody looks.
import { atFrame, beginning, copyButton, find, h } from "./dom";

export const FRAMES_KEPT = 2000;
/** Characters of one frame that are kept, and that are shown. */
const FRAME_KEPT = 16_384;
const SHOWN = 4000;

const kept: string[] = [];
let total = 0;
let drawn = 0;
const list = h("div", { id: "frames", class: "scroll", tabindex: "0", role: "region", "aria-label": "Frames as they came" });
const told = h("span", { class: "small" }, "no frame yet");

export function openFrames(): void {
  const filter = h("button", { type: "button" }, "Forget all");
  filter.addEventListener("click", () => {
    kept.length = total = drawn = 0;
    list.replaceChildren();
    draw();
  });
  find("raw").append(h("div", { class: "row tools" }, h("h2", {}, "Frames"), told, copyButton(() => kept.join("\n"), "Copy all"), filter), list);
}

/** Keep a frame. */
export function keepFrame(text: string): void {
  kept.push(text.length > FRAME_KEPT ? cut(text) : text);
  total += 1;
  if (kept.length > FRAMES_KEPT * 1.5) kept.splice(0, kept.length - FRAMES_KEPT);
  if (!find("raw").hidden) atFrame(draw);
}

/** Return the beginning of a long frame, as text of its own: a slice would keep the whole in memory. */
function cut(text: string): string {
  const begun = new TextDecoder().decode(new TextEncoder().encode(text.slice(0, FRAME_KEPT)));
  return `${begun} … ${text.length - FRAME_KEPT} more characters`;
}

/** Show what has come since. */
export function showFrames(): void {
  draw();
}

function draw(): void {
  const newest = kept.slice(-Math.min(FRAMES_KEPT, total - drawn));
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  if (total > drawn) list.append(...newest.map((text) => h("div", {}, beginning(text, SHOWN))));
  drawn = total;
  while (list.childElementCount > FRAMES_KEPT) list.firstElementChild!.remove();
  told.textContent = total > FRAMES_KEPT ? `${total} so far; the last ${FRAMES_KEPT} are kept` : `${total} so far`;
  if (atEnd) list.scrollTop = list.scrollHeight;
}
