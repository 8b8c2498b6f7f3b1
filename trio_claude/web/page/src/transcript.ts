// What was said in a run, as it comes or out of the journal: one place where lines of the CLI become things to see.
// Rule: each line is taken once, in order, and what is kept on the page is bounded.
import { asObject } from "../../client/wire";
import { behindDrawing, h, unfold } from "./dom";
import { ALL, MarkdownStream } from "./markdown";
import { limited, ToolCard, type Answers, type Json } from "./tools";
import { count, counted, dollars, receiptWords, seconds } from "./words";

/** Things that a transcript keeps; the oldest go first, open questions last, and it says so. */
const ITEMS_KEPT = 500;
/** Nearness to the end, in pixels, at which the page follows what comes. */
const FOLLOW = 80;
/** Blocks of one answer that may come in pieces. */
const BLOCKS = 10_000;
/** A card whose question is open. */
const ASKS = "[data-state=asks]";
/** What the CLI says of a command of its own, as a change of the model is to it. */
const OWN_WORDS = /^<local-command-stdout>([^]*)<\/local-command-stdout>$/;

interface Piece {
  kind: string;
  stream: MarkdownStream | null;
  element: HTMLElement | null;
  final: boolean;
}

export class Transcript {
  private readonly cards = new Map<string, ToolCard>();
  private readonly asking = new Map<string, ToolCard>();
  private pieces = new Map<string, (Piece | undefined)[]>();
  private message = "";
  private answer = "";
  private following = true;
  /** Where the page has scrolled to by itself: what has come since does not mean that its user has left the end. */
  private placed = -1;
  private removed = 0;
  private readonly cut = h("p", { class: "note", hidden: true });

  /** `answers` is null where this page may not answer. */
  constructor(
    readonly root: HTMLElement,
    private readonly scroller: HTMLElement,
    private readonly answers: () => Answers | null = () => null,
  ) {
    scroller.addEventListener("scroll", () => this.setFollowing(this.isAtEnd() || scroller.scrollTop === this.placed), { passive: true });
    this.clear();
  }

  clear(): void {
    this.cards.clear();
    this.asking.clear();
    this.pieces.clear();
    this.removed = 0;
    this.cut.hidden = true;
    this.following = true;
    this.placed = -1;
    this.root.replaceChildren(this.cut);
  }

  /** Show what the user said. */
  say(text: string): void {
    this.following = true;
    this.put(this.root, h("div", { class: "said" }, h("h3", { class: "who" }, "You"), h("p", {}, limited(text))));
  }

  note(text: string, kind = "note"): HTMLElement {
    return this.put(this.root, h("p", { class: kind }, limited(text)));
  }

  /** Take a line of the CLI; `told` is one of the past, whose time is not known. */
  take(line: Json, told = false): void {
    const into = this.place(line.parent_tool_use_id);
    if (line.type === "stream_event") this.takeEvent(line, line.event ?? {}, into);
    else if (line.type === "assistant" || line.type === "message") this.takeAnswer(line, into, told);
    else if (line.type === "user") this.takeResults(line);
    else if (line.type === "result") this.takeEnd(line);
    else if (line.type === "system") this.takeSystem(line);
    else if (line.type === "control_request") this.takeQuestion(line, told);
    else if (line.type === "control_cancel_request") this.settle(line.request_id, "no longer asked");
    else if (typeof line.text === "string") this.note(line.text);
  }

  /** Ask for leave; a tool that is not known yet gets its card. */
  ask(request: string, name: string, input: Json, tool = ""): void {
    const known = this.asking.get(request) ?? this.cards.get(tool) ?? (tool ? undefined : this.waitingCard(name));
    const card = known ?? this.newCard(tool || request, name, this.root, false);
    card.setInput(input);
    this.asking.set(request, card);
    card.ask(request);
    this.follow();
    if (!this.following) return;
    card.showQuestion(); // an agent in the background asks where its card is
    this.setFollowing(this.isAtEnd()); // a hidden tab is told of no scrolling
  }

  /** Take that a question is answered. */
  settle(request: string, said = ""): void {
    this.asking.get(request)?.settle(said);
  }

  /** Take what was answered before: a tool that was allowed with another input ran with that. */
  answered(request: string, input: unknown): void {
    if (typeof input === "object" && input) this.asking.get(request)?.setInput(input);
  }

  /** Take that the questions are another's to answer. */
  unask(): void {
    for (const card of this.asking.values()) card.settle("another page is asked");
  }

  /** Take that the run is over. */
  end(): void {
    for (const card of this.cards.values()) card.abandon();
    for (const pieces of this.pieces.values()) for (const piece of pieces) piece?.stream?.finish();
    this.pieces.clear();
  }

  /** Show by what a run has ended; return it in words. */
  close({ receipt, reason, exit_status }: Json): { words: string; how: string } {
    this.end();
    const words = receipt ? receiptWords(receipt) : "no receipt";
    const how = exit_status == null ? String(reason) : `${reason} ${exit_status}`;
    const more = receipt ? `${how} · ${seconds(receipt.ms)} · held by ${receipt.containment}` : how;
    this.put(this.root, h("div", { class: "receipt", "data-clean": String(receipt?.survivors === 0) }, h("strong", {}, words), h("span", {}, more)));
    return { words, how };
  }

  /** Have the transcript shown, and focus the first question that is open, if there is one: itself, for none of its answers is given by a key that is still being typed. */
  focusQuestion(show: () => void): void {
    const question = this.root.querySelector<HTMLElement>(".question:not([hidden]):has(button)");
    if (!question) return;
    show();
    unfold(question);
    question.focus();
  }

  toEnd(): void {
    this.following = true;
    this.follow();
  }

  /** Go to the end at the next frame, if that is looked at. */
  readonly followSoon = (): void => behindDrawing(this.follow);

  toBeginning(): void {
    this.setFollowing(false);
    this.scroller.scrollTop = 0;
  }

  // -- answers, as they come and whole ------------------------------------------------------------------------------

  private takeEvent(line: Json, event: Json, into: HTMLElement): void {
    if (event.type === "message_start") {
      this.message = String(event.message?.id);
      this.pieces.set(this.message, []);
      if (this.pieces.size > 20) this.pieces.delete(this.pieces.keys().next().value!);
    }
    const pieces = this.pieces.get(this.message);
    if (!pieces || counted(event.index) >= BLOCKS) return;
    if (event.type === "content_block_start") pieces[event.index] = this.newPiece(event.content_block ?? {}, into);
    if (line.abandoned_blocks) this.abandon(pieces, counted(line.abandoned_blocks.from_block_index));
    if (event.type !== "content_block_delta") return;
    const text = event.delta?.text ?? event.delta?.thinking;
    if (typeof text === "string") pieces[event.index]?.stream?.add(text);
  }

  /** Take away what was said of an answer that broke off, from a block on: it comes anew. */
  private abandon(pieces: (Piece | undefined)[], from: number): void {
    for (const piece of pieces.splice(from)) if (!piece?.final) piece?.element?.remove();
  }

  private newPiece(block: Json, into: HTMLElement): Piece {
    const kind = String(block.type);
    const stream = kind === "text" || kind === "thinking" ? new MarkdownStream(this.followSoon) : null;
    const element = stream && this.showText(kind, stream, into);
    if (stream && block.text) stream.add(String(block.text));
    return { kind, stream, element, final: false };
  }

  private showText(kind: string, stream: MarkdownStream, into: HTMLElement): HTMLElement {
    if (kind === "text") return this.put(into, h("div", { class: "answer" }, stream.element));
    return this.put(into, h("details", { class: "thinking" }, h("summary", {}, "Thinking"), stream.element));
  }

  private takeAnswer(line: Json, into: HTMLElement, told: boolean): void {
    const message: Json = line.type === "message" ? line : (line.message ?? {});
    for (const block of list(message.content)) {
      if (block.type === "tool_use") this.takeUse(block, into, told);
      if (block.type === "text" || block.type === "thinking") this.takeText(message.id, block, into);
    }
  }

  /** Show a text that came whole; what came in pieces before is that text already. */
  private takeText(message: string, block: Json, into: HTMLElement): void {
    const text = String(block.type === "text" ? block.text : block.thinking);
    if (block.type === "text") this.answer = text;
    const piece = this.pieces.get(message)?.find((one) => one?.kind === block.type && !one?.final);
    if (piece) {
      piece.final = true;
      if (!text && !piece.stream?.text) return piece.element?.remove(); // thinking that is not told
      return piece.stream?.finish(text);
    }
    if (!text) return;
    const stream = new MarkdownStream(this.followSoon);
    this.showText(block.type, stream, into);
    stream.finish(text);
  }

  // -- tools ----------------------------------------------------------------------------------------------------------

  private takeUse(block: Json, into: HTMLElement, told: boolean): void {
    const card = this.cards.get(block.id) ?? this.newCard(String(block.id), String(block.name), into, told);
    card.setInput(block.input ?? {});
  }

  private newCard(id: string, name: string, into: HTMLElement, told: boolean): ToolCard {
    const card = new ToolCard(name, told ? null : performance.now(), this.answers);
    this.cards.set(id, card);
    this.put(into, card.element);
    return card;
  }

  private waitingCard(name: string): ToolCard | undefined {
    return [...this.cards.values()].reverse().find((card) => card.name === name && card.element.dataset.state === "running");
  }

  private takeResults(line: Json): void {
    const content = line.message?.content;
    for (const block of list(content)) {
      if (block.type === "tool_result") this.cards.get(block.tool_use_id)?.setOutput(plain(block.content), !!block.is_error);
    }
    if (typeof content === "string" && !line.isMeta) this.note(content.replace(OWN_WORDS, "$1"));
    this.followSoon();
  }

  private takeQuestion(line: Json, told: boolean): void {
    const { subtype, tool_use_id: tool, tool_name: name, input } = line.request ?? {};
    if (subtype !== "can_use_tool") return;
    const card = this.cards.get(tool) ?? this.newCard(String(tool ?? line.request_id), String(name), this.root, told);
    card.setInput(input ?? {});
    this.asking.set(line.request_id, card);
  }

  // -- the rest -------------------------------------------------------------------------------------------------------

  private takeEnd(line: Json): void {
    const told = `${count(used(line, "inputTokens", "input_tokens"), "token")} in, ${used(line, "outputTokens", "output_tokens").toLocaleString("en")} out`;
    const took = typeof line.duration_ms === "number" ? `${seconds(line.duration_ms)} · ` : "";
    const fault = String(line.result ?? (errors(line) || (line.subtype ?? "the turn failed")));
    if (line.is_error && fault !== this.answer) this.note(fault, "note fault"); // the CLI says an error of the API as an answer, too
    this.note(`${took}${told} · ${dollars(counted(line.total_cost_usd))} so far`, "note turn-end");
  }

  private takeSystem(line: Json): void {
    if (line.subtype === "api_retry") this.note(`The API did not answer; the CLI tries again (${line.attempt ?? "?"}).`);
    if (line.subtype === "compact_boundary") this.note("The conversation was made shorter.");
  }

  /** Return where a line goes: what a subagent says goes into the card of its tool. */
  private place(parent: unknown): HTMLElement {
    const card = typeof parent === "string" ? this.cards.get(parent) : undefined;
    if (!card) return this.root;
    card.inner.hidden = false;
    return card.inner;
  }

  private put<T extends HTMLElement>(into: HTMLElement, element: T): T {
    into.append(element);
    while (into.childElementCount > ITEMS_KEPT) this.forget(into);
    this.followSoon();
    return element;
  }

  private forget(from: HTMLElement): void {
    const first = from.firstElementChild === this.cut ? this.cut.nextElementSibling : from.firstElementChild;
    let oldest = first;
    while (oldest && asks(oldest)) oldest = oldest.nextElementSibling; // it waits for an answer
    oldest ??= first;
    for (const known of [this.cards, this.asking]) {
      for (const [id, card] of known) if (oldest?.contains(card.element)) known.delete(id);
    }
    oldest?.remove();
    this.removed += 1;
    this.cut.hidden = false;
    this.cut.textContent = `${count(this.removed, "earlier thing is", "earlier things are")} not shown any more; ${ALL}.`;
  }

  /** Take whether the end is looked at; where it is not, a place that the page has scrolled to means nothing any more. */
  private setFollowing(on: boolean): void {
    this.following = on;
    if (!on) this.placed = -1;
  }

  private isAtEnd(): boolean {
    return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < FOLLOW;
  }

  /** Go to the end, if that is looked at. It makes the browser lay out the page: once a frame will do. */
  private readonly follow = (): void => {
    if (!this.following) return;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.placed = this.scroller.scrollTop;
  };
}

/** Whether something has an open question in it. */
function asks(shown: Element): boolean {
  return shown.matches(ASKS) || shown.querySelector(ASKS) !== null;
}

/** Return the tokens of a kind that a turn has used; an older CLI tells only those of the turn, without its agents'. */
function used(line: Json, byModel: string, byTurn: string): number {
  const models = asObject(line.model_usage_since_last_result);
  if (!models) return counted(line.usage?.[byTurn]);
  return Object.values(models).reduce((so: number, one) => so + counted(asObject(one)?.[byModel]), 0);
}

/** Return what the CLI says of a turn without a result, but for what is meant for its makers: that is in brackets. */
function errors(line: Json): string {
  const all: unknown[] = Array.isArray(line.errors) ? line.errors : [];
  return all.filter((one) => typeof one === "string" && !one.startsWith("[")).join("; ");
}

/** Return the objects of a list, none where it is no list. */
export function list(value: unknown): Json[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === "object" && one !== null) : [];
}

/** Return the text of a tool's result. */
function plain(content: unknown): string {
  if (typeof content === "string") return content;
  return list(content).map((block) => (block.type === "text" ? String(block.text) : `[${block.type}]`)).join("\n");
}
