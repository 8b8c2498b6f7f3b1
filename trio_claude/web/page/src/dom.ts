// Elements by one call. Text goes into text nodes and values into attributes or properties: no HTML is read here.

type Child = Node | string | null | undefined | false;
type Value = string | number | boolean | null | undefined | ((event: never) => void);

/** Make an element: `on…` values are listeners, true and false switch an attribute, all else is its text. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  values: Record<string, Value> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) put(element, name, value);
  element.append(...children.filter((child): child is Node | string => !!child || child === ""));
  return element;
}

function put(element: HTMLElement, name: string, value: Value): void {
  if (typeof value === "function") element.addEventListener(name.slice(2), value as EventListener);
  else if (value === true) element.setAttribute(name, "");
  else if (value !== false && value != null) element.setAttribute(name, String(value));
}

/** Return the first characters of a text, by UTF-16 units, and never half of one. */
export function beginning(text: string, units: number): string {
  const last = text.charCodeAt(units - 1);
  return text.slice(0, last >= 0xd800 && last < 0xdc00 ? units - 1 : units);
}

/** Return an element of the page that must be there. */
export function find<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element as T;
}

/** Unfold whatever something lies in. */
export function unfold(element: Element): void {
  for (let fold = element.closest("details"); fold; fold = fold.parentElement?.closest("details") ?? null) fold.open = true;
}

/** A button that copies what `text` returns, and says so for a moment. */
export function copyButton(text: () => string, what = "Copy"): HTMLButtonElement {
  const button = h("button", { type: "button", class: "quiet copy", "aria-label": `${what} to the clipboard` }, what);
  button.addEventListener("click", async () => {
    const done = await copy(text());
    button.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = what), 1500);
  });
  return button;
}

async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // no leave, or no secure context
  }
}

/** What draws at the next frame, and what looks then at all that is drawn: it makes the browser lay out the page. */
const drawing = new Set<() => void>();
const looking = new Set<() => void>();

let isSet = false;

function setFrame(): void {
  isSet = true;
  if (document.hidden) setTimeout(runWaiting, 250);
  else requestAnimationFrame(runWaiting);
}

/** Call a function once at the next frame, however often it is asked for; four times a second in a hidden tab. */
export function atFrame(work: () => void, works = drawing): void {
  works.add(work);
  if (!isSet) setFrame();
}

/** Call a function once behind all that a frame draws: the next one, or this one while it is drawn. */
export function behindDrawing(work: () => void): void {
  atFrame(work, looking);
}

function runWaiting(): void {
  for (const works of [drawing, looking]) {
    const now = [...works];
    works.clear();
    for (const work of now) tryTo(work);
  }
  isSet = false;
  if (drawing.size || looking.size) setFrame();
}

/** Do one's work; that it fails, as with an input that is nested too deep, is no reason to keep others from theirs. */
function tryTo(work: () => void): void {
  try {
    work();
  } catch (error) {
    reportError(error);
  }
}

document.addEventListener("visibilitychange", () => {
  if (drawing.size || looking.size) runWaiting();
});

/** Give an element a text, unless it has that: what is put in place anew is read out anew. */
export function setText(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Say something to those who listen to the page. */
export function announce(text: string): void {
  find("spoken").textContent = text;
}
