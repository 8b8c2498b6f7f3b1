// A tool call as a card that folds: what goes in, what comes out, how long it took, and the question whether it may.
// Rule: what goes in and out is drawn by the frame, where it is still shown then, and coloured once it is unfolded.
import { codeBlock, COLOURED } from "./markdown";
import { atFrame, beginning, copyButton, h, unfold } from "./dom";
import { questionForm, questionsOf, questionsShown, type Question } from "./questions";
import { seconds } from "./words";

/** Characters of an input or an output that are shown; frames and history have all. */
export const SHOWN = 50_000;

/** Characters of a card's label, and those that are read for it: spaces count as one. */
const LABEL = 160;
const LABEL_READ = 4096;

/** What a command is shown without: of whatever has more than these all is shown, because all is what is allowed. */
const PLAIN = new Set(["command", "description"]);

/** Controls, characters without a width, and those that turn the direction of a text; neither a line's end nor a tab. */
const UNSEEN = /[^\P{Cc}\n\t]|[\p{Cf}\u2028\u2029]/gu;

export type Json = Record<string, any>;

export interface Answers {
  allow(request: string, input?: Json): void;
  deny(request: string, message: string): void;
}

export class ToolCard {
  readonly element: HTMLDetailsElement;
  /** Where what a subagent says goes. */
  readonly inner = h("div", { class: "inner", hidden: true });
  private readonly label = h("span", { class: "tool-input" });
  private readonly state = h("span", { class: "tool-state" }, "…");
  private readonly input = h("div", { class: "tool-part" });
  private readonly output = h("div", { class: "tool-part", hidden: true });
  private readonly question = h("div", { class: "question", role: "group", tabindex: "-1", hidden: true });
  private given: Json = {};
  private came = "";
  private drawn: "nothing" | "plain" | "coloured" = "nothing";
  private open = "";

  constructor(
    readonly name: string,
    private readonly begun: number | null,
    private readonly answers: () => Answers | null,
  ) {
    const summary = h("summary", {}, h("span", { class: "tool-name" }, visible(name)), this.label, this.state);
    this.element = h("details", { class: "tool" }, summary, this.input, this.question, this.output, this.inner);
    this.element.addEventListener("toggle", this.drawInput);
    this.setState("running", "running");
  }

  /** Show what the tool is given. */
  setInput(input: Json): void {
    this.given = input;
    this.label.textContent = short(input);
    this.drawn = "nothing";
    atFrame(this.drawInput);
  }

  /** Show what came of it; how long it took where its beginning was seen. */
  setOutput(text: string, failed: boolean): void {
    const took = this.begun === null ? "" : ` · ${seconds(performance.now() - this.begun)}`;
    this.settle();
    this.setState(failed ? "failed" : "done", `${failed ? "failed" : "done"}${took}`);
    this.came = limited(text) || "(nothing)";
    this.output.hidden = false;
    atFrame(this.drawOutput);
  }

  /** Ask whether the tool may run; `request` is what the answer names. */
  ask(request: string): void {
    if (this.open === request) return;
    this.open = request;
    unfold(this.element); // an agent's card is folded, and has those of its own tools in it
    this.drawInput();
    const answers = this.answers();
    const questions = questionsOf(this.name, this.given);
    const words = answers ? "Claude asks you" : "Claude asks";
    const asked = questions ? [words] : ["May ", h("bdi", {}, visible(this.name)), " run?"];
    this.question.setAttribute("aria-label", questions ? words : `May ${visible(this.name)} run?`);
    this.setState("asks", answers ? "asks you" : "asks");
    this.input.hidden = !!questions;
    const way = (given: Answers) => (questions ? this.form(questions, request, given) : this.buttons(request, given));
    const shown = questions && !answers && questionsShown(questions);
    this.question.replaceChildren(h("p", { class: "ask" }, ...asked), shown || "", answers ? way(answers) : h("span", {}, "its owner is asked"));
    this.question.hidden = false;
  }

  /** Bring the question to where it is seen. */
  showQuestion(): void {
    this.question.scrollIntoView({ block: "nearest" });
  }

  /** Take that the question is answered, by whomever. */
  settle(said = ""): void {
    if (!this.open) return;
    this.open = "";
    this.input.hidden = false;
    this.setState("running", "running");
    const focused = this.question.contains(document.activeElement);
    this.question.replaceChildren(h("p", { class: "ask" }, said || "answered"));
    if (focused) this.question.focus({ preventScroll: true }); // a key has answered, and goes on from here
  }

  /** Take that nothing will come any more. */
  abandon(): void {
    if (this.element.dataset.state === "running" || this.open) this.setState("failed", "no answer");
    this.open = "";
    this.question.hidden = true;
    this.input.hidden = false;
  }

  private readonly drawInput = (): void => {
    const { isConnected, open } = this.element;
    if (!isConnected || this.drawn === (open ? "coloured" : "plain") || this.drawn === "coloured") return;
    this.drawn = open ? "coloured" : "plain";
    const { given } = this;
    const command = typeof given.command === "string" && Object.keys(given).every((name) => PLAIN.has(name));
    const shown = visible(limited(command ? given.command : JSON.stringify(given, null, 2)));
    this.input.replaceChildren(h("h4", {}, "Input"), codeBlock(shown, command ? "bash" : "json", open ? COLOURED : 0));
  };

  private readonly drawOutput = (): void => {
    if (!this.element.isConnected) return;
    const shown = h("pre", { tabindex: "0", "aria-label": "Output" }, this.came);
    const head = h("div", { class: "part-head" }, h("h4", {}, "Output"), copyButton(() => shown.textContent ?? ""));
    this.output.replaceChildren(head, shown);
  };

  private buttons(request: string, answers: Answers): HTMLElement {
    const edit = h("textarea", { rows: "4", "aria-label": `Input of ${visible(this.name)}, as JSON`, spellcheck: "false" });
    const fault = h("p", { class: "fault", role: "alert" });
    const editor = h("div", { class: "editor", hidden: true }, edit, fault);
    const reason = h("input", { type: "text", placeholder: "reason, for the model", "aria-label": "Reason of a denial" });
    const allow = h("button", { type: "button", class: "primary", "data-answer": "allow" }, "Allow");
    const change = h("button", { type: "button", "data-answer": "edit", "aria-expanded": "false" }, "Edit");
    const deny = h("button", { type: "button", "data-answer": "deny" }, "Deny");
    allow.addEventListener("click", () => {
      const input = editor.hidden ? this.given : parsed(edit.value, fault);
      if (!input) return edit.focus();
      const changed = !editor.hidden && JSON.stringify(input) !== JSON.stringify(this.given);
      if (changed) this.setInput(input);
      answers.allow(request, changed ? input : undefined);
      this.settle(changed ? "allowed, changed" : "allowed");
    });
    change.addEventListener("click", () => {
      editor.hidden = !editor.hidden;
      change.setAttribute("aria-expanded", String(!editor.hidden));
      edit.value = visible(JSON.stringify(this.given, null, 2));
      if (!editor.hidden) edit.focus();
      this.question.scrollIntoView({ block: "nearest" });
    });
    deny.addEventListener("click", () => {
      answers.deny(request, reason.value || "the user said no");
      this.settle("denied");
    });
    return h("div", { class: "answers" }, editor, h("div", { class: "row" }, allow, change, deny, reason));
  }

  private form(questions: Question[], request: string, answers: Answers): HTMLElement {
    const asked = this.given;
    const answer = (given: Json) => {
      const input = { ...asked, answers: given };
      this.setInput(input);
      answers.allow(request, input);
      this.settle();
    };
    const decline = () => {
      answers.deny(request, "the user did not want to answer");
      this.settle("not answered");
    };
    return questionForm(questions, answer, decline);
  }

  private setState(state: string, text: string): void {
    this.element.dataset.state = state;
    this.state.textContent = text;
  }
}

/** Return the input that was typed, null with the fault shown where it is none. */
function parsed(text: string, fault: HTMLElement): Json | null {
  try {
    const value: unknown = JSON.parse(text);
    if (value && typeof value === "object" && !Array.isArray(value)) return value as Json;
    fault.textContent = "An input is a JSON object.";
  } catch (error) {
    fault.textContent = `This is no JSON: ${(error as Error).message}`;
  }
  return null;
}

function short(input: Json): string {
  const told = input.command ?? input.file_path ?? input.path ?? input.pattern ?? input.url ?? input.description ?? input.questions?.[0]?.question;
  const label = (typeof told === "string" ? told : JSON.stringify(input)).slice(0, LABEL_READ);
  return visible(beginning(label.replace(/[ \t\n]+/g, " "), LABEL));
}

/** Return a text with all written out that is not seen, or moves what is beside it: what is read is what runs. */
export function visible(text: string): string {
  const written = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return text.replace(UNSEEN, (one) => one.split("").map(written).join(""));
}

export function limited(text: string): string {
  return text.length > SHOWN ? `${beginning(text, SHOWN)}\n… ${text.length - SHOWN} more characters are not shown` : text;
}
