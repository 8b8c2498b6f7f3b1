// What the model asks its user: a form of choices where another tool is allowed or denied, and the answers as the CLI takes them.
// Rule: all of it is shown as text, and what the CLI would not ask so is no question: it is approved as any other tool.
import { h } from "./dom";
import { visible, type Json } from "./tools";

/** The tool by which the CLI has its user asked. */
export const ASKING = "AskUserQuestion";
/** What a form has at the most, in characters for each text; the CLI has no more than four questions of four options. */
const QUESTIONS = 4;
const OPTIONS = 10;
const LENGTH = 2_000;

interface Option {
  label: string;
  description: string;
}

export interface Question {
  text: string;
  header: string;
  several: boolean;
  options: Option[];
}

interface Field {
  element: HTMLElement;
  /** What is answered so far, empty where nothing is. */
  answer(): string;
}

/** Return what a tool asks the user; null where it asks nothing, or nothing that a form could show. */
export function questionsOf(tool: string, input: Json): Question[] | null {
  return tool === ASKING ? all(input.questions, QUESTIONS, toQuestion, (one) => one.text) : null;
}

/** Make the form; one of the two is called, with the answers by the questions' texts. */
export function questionForm(questions: Question[], answer: (answers: Json) => void, decline: () => void): HTMLElement {
  const fields = questions.map(field);
  const send = h("button", { type: "button", class: "primary", "data-answer": "answer", disabled: true }, "Answer");
  const leave = h("button", { type: "button", "data-answer": "deny" }, "Don't answer");
  const form = h("div", { class: "answers" }, ...fields.map((one) => one.element), h("div", { class: "row" }, send, leave));
  form.addEventListener("input", () => (send.disabled = fields.some((one) => !one.answer())));
  send.addEventListener("click", () => answer(Object.fromEntries(fields.map((one, at) => [questions[at]!.text, one.answer()]))));
  leave.addEventListener("click", decline);
  return form;
}

/** Make what one sees who is not asked. */
export function questionsShown(questions: Question[]): HTMLElement {
  const shown = (one: Question) => [h("p", { class: "asked" }, ...titled(one)), h("ul", {}, ...one.options.map((option) => h("li", {}, described(option))))];
  return h("div", { class: "answers" }, ...questions.flatMap(shown));
}

// -- what is asked ----------------------------------------------------------------------------------------------------

/** Return all of a list as what they are; null where it is empty or too long, one is odd, or two go by one name. */
function all<T>(value: unknown, most: number, to: (one: Json) => T | null, name: (one: T) => string): T[] | null {
  if (!Array.isArray(value) || !value.length || value.length > most) return null;
  const found = value.map((one: Json | null) => (one ? to(one) : null)).filter((one) => one !== null);
  return new Set(found.map(name)).size === value.length ? found : null;
}

function toQuestion({ question: text, header = "", multiSelect: several = false, options: given }: Json): Question | null {
  const options = all(given, OPTIONS, toOption, (one) => one.label);
  return options && isText(text) && text.trim() && isText(header) && typeof several === "boolean" ? { text, header, several, options } : null;
}

function toOption({ label, description = "" }: Json): Option | null {
  return isText(label) && label.trim() && isText(description) ? { label, description } : null;
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value.length <= LENGTH;
}

// -- what is shown ----------------------------------------------------------------------------------------------------

let made = 0;

function titled({ text, header }: Question): (Node | string)[] {
  return [header && h("span", { class: "small" }, visible(header)), " ", visible(text)];
}

function described({ label, description }: Option): HTMLElement {
  return h("span", {}, visible(label), " ", description && h("span", { class: "small" }, visible(description)));
}

function field(question: Question): Field {
  const how = { type: question.several ? "checkbox" : "radio", name: `question-${(made += 1)}` };
  const choices = question.options.map((option) => h("label", { class: "choice" }, h("input", { ...how, value: option.label }), described(option)));
  const element = h("fieldset", {}, h("legend", {}, ...titled(question)), ...choices, other(how));
  const chosen = () => [...element.querySelectorAll<HTMLInputElement>(":checked")].map((one) => one.value).filter(Boolean);
  return { element, answer: () => chosen().join(", ") };
}

/** Own words, which are chosen by being written. */
function other(how: Record<string, string>): HTMLElement {
  const box = h("input", { ...how, value: "" });
  const words = h("input", { type: "text", placeholder: "in your own words", "aria-label": "Other, in your own words" });
  words.addEventListener("input", () => {
    box.value = words.value.trim();
    box.checked = !!box.value;
  });
  return h("div", { class: "choice" }, h("label", { class: "choice" }, box, "Other"), words);
}
