// Markdown to nodes. Rule 1: whatever the text says, nothing of it runs or loads: HTML in it is text, images from
// elsewhere are links, and all that marked makes goes through DOMPurify into a fragment, never through a string sink.
// Rule 2: what is finished is rendered once; of an answer that still comes only the last block is rendered anew. Rule 3:
// twice the text is twice the work: marked gets no long text whole, no long word is coloured, and a large table is shown
// as its text.
import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { Lexer, Marked, type Token, type Tokens } from "marked";
import { atFrame, beginning, copyButton, h } from "./dom";

/** Characters of one block; a longer paragraph is cut at a space and goes on in a next one, any other text goes on as it is. */
const BLOCK_LIMIT = 8192;
/** Characters before the @ of an address, as the mail's own rules have it. */
const NAME_LIMIT = 64;
/** Cells of a table. */
const CELLS_LIMIT = 2000;
/** Where that is which the page does not show; its history shows no more. */
export const ALL = "the journal has all, where one is kept";
/** Characters of one answer that are shown. */
const ANSWER_LIMIT = 1_000_000;
/** Characters of code that are coloured: while it still comes, and once it is there. */
const COLOURED_OPEN = 4096;
export const COLOURED = 65_536;
/** Characters of a word in code that is coloured: from each letter some rules look ahead to the end of the word. */
const COLOURED_WORD = 256;
/** How many times the time of the last rendering must pass before the next one. */
const REST = 3;

const languages = { bash, css, diff, go, ini, java, javascript, json, python, rust, sql, typescript, xml, yaml };
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language);
hljs.registerAliases(["shell", "console"], { languageName: "bash" });

const escapes: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text: string) => text.replace(/[&<>"']/g, (sign) => escapes[sign]!);
const EMBEDDED = /^data:image\/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+$/;

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }: Tokens.HTML | Tokens.Tag) => escape(text),
    image: ({ href, text }: Tokens.Image) =>
      EMBEDDED.test(href)
        ? `<img src="${escape(href)}" alt="${escape(text)}">`
        : `<a href="${escape(href)}">image: ${escape(text || href)}</a>`,
    table: ({ raw, header, rows }: Tokens.Table) =>
      header.length * rows.length > CELLS_LIMIT ? `<pre><code>${escape(raw)}</code></pre>` : false,
  },
});

/** Marked's own, but that a long text is read in parts: some of its rules look ahead to the end from each place. */
class PartsLexer extends Lexer {
  override inlineTokens(text: string, tokens: Token[] = []): Token[] {
    for (let at = 0; at < text.length; ) {
      const end = cutAt(text, at);
      super.inlineTokens(text.slice(at, end), tokens);
      at = end;
    }
    return tokens;
  }
}

/** Return where a part of a text ends: behind a space, if there is one, else at the limit. */
function cutAt(text: string, at: number): number {
  if (text.length - at <= BLOCK_LIMIT) return text.length;
  const space = text.lastIndexOf(" ", at + BLOCK_LIMIT - 1);
  return space > at ? space + 1 : between(text, at + BLOCK_LIMIT);
}

/** Return a place in a text, or the one before where a character would be cut in two. */
function between(text: string, at: number): number {
  return /[\ud800-\udbff]/.test(text[at - 1]!) ? at - 1 : at;
}

const { gfm } = Lexer.rules.inline;
for (const rule of ["text", "url"] as const) {
  const bounded = gfm[rule].source.replaceAll(/\]\+(?=@|\(@\))/g, `]{1,${NAME_LIMIT}}`); // it looks for an @ behind each letter of a word
  gfm[rule] = new RegExp(bounded, gfm[rule].flags);
}

const tokensOf = (text: string) => new PartsLexer(marked.defaults).lex(text);

const clean = DOMPurify(window);
clean.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "IMG" && !EMBEDDED.test(node.getAttribute("src") ?? "")) node.remove();
  if (node.tagName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});
const FENCE = {
  ALLOWED_TAGS: (
    "a p br hr h1 h2 h3 h4 h5 h6 strong em del code pre blockquote ul ol li input table thead tbody tr th td img span"
  ).split(" "),
  ALLOWED_ATTR: ["href", "title", "class", "align", "start", "type", "checked", "disabled", "src", "alt"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["align", "start", "type", "checked", "disabled"],
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
};

/** What goes in the direction of its text, where that is not so long that it takes the browser the square of its length. */
const DIRECTED = "p, li, h1, h2, h3, h4, h5, h6, th, td, blockquote";

function markLong(fragment: DocumentFragment): void {
  const sizes = new Map<Element, number>();
  const texts = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  for (let text; (text = texts.nextNode() as Text | null); ) {
    const block = text.parentElement?.closest(DIRECTED);
    if (block) sizes.set(block, (sizes.get(block) ?? 0) + text.length);
  }
  for (const [block, size] of sizes) if (size > BLOCK_LIMIT) block.classList.add("long");
}

/** Return the nodes of some tokens of Markdown. */
function render(tokens: Token[], open = false): DocumentFragment {
  const fragment = clean.sanitize(marked.parser(tokens), FENCE);
  for (const code of fragment.querySelectorAll("pre > code")) {
    const language = /(?:^|\s)language-(\S+)/.exec(code.className)?.[1] ?? "";
    code.parentElement!.replaceWith(codeBlock(code.textContent ?? "", language, open ? COLOURED_OPEN : COLOURED));
  }
  markLong(fragment);
  for (const box of fragment.querySelectorAll("input")) box.setAttribute("aria-label", "task");
  for (const table of fragment.querySelectorAll("table")) {
    const wide = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(wide);
    wide.append(table);
  }
  return fragment;
}

/** Return a block of code with its language and a button that copies it; one of more characters than `limit` is not coloured. */
export function codeBlock(text: string, language: string, limit: number): HTMLElement {
  const code = h("code");
  if (hljs.getLanguage(language) && text.length <= limit && !hasLongWord(text)) {
    code.append(clean.sanitize(hljs.highlight(text, { language, ignoreIllegals: true }).value, FENCE));
  } else code.append(text);
  const name = h("span", {}, language.slice(0, 32) || "text");
  const pre = h("pre", { tabindex: "0", "aria-label": "Code" }, code);
  return h("figure", { class: "code" }, h("figcaption", {}, name, copyButton(() => text.replace(/\n$/, ""))), pre);
}

function hasLongWord(text: string): boolean {
  return text.split(/\s+/).some((word) => word.length > COLOURED_WORD);
}

/** An answer that comes piece by piece. */
export class MarkdownStream {
  readonly element = h("div", { class: "markdown" });
  text = "";
  private tail = "";
  private readonly last = h("div", { class: "last" });
  private readyAt = 0;
  private done = false;

  constructor(private readonly onDrawn: () => void = () => {}) {
    this.element.append(this.last);
  }

  add(text: string): void {
    const room = ANSWER_LIMIT - this.text.length;
    this.text += text;
    this.tail += beginning(text, Math.max(0, room));
    atFrame(this.draw);
  }

  /** Take the whole text, which is what came in pieces, or says it anew. */
  finish(text = this.text): void {
    if (text !== this.text) {
      this.element.replaceChildren(this.last);
      this.text = text;
      this.tail = beginning(text, ANSWER_LIMIT);
    }
    if (text.length > ANSWER_LIMIT && !this.done) {
      this.element.append(h("p", { class: "note" }, `${text.length - ANSWER_LIMIT} more characters are not shown; ${ALL}.`));
    }
    this.done = true;
    atFrame(this.draw);
  }

  private readonly draw = (): void => {
    if (!this.element.isConnected) return; // it is shown no more
    const begun = performance.now();
    if (!this.done && begun < this.readyAt) return atFrame(this.draw);
    try {
      this.drawTail();
    } catch {
      this.drawPlain(); // it is nested deeper than marked can go
    }
    this.readyAt = performance.now() + REST * (performance.now() - begun);
    this.onDrawn();
  };

  private drawTail(): void {
    const tokens = tokensOf(this.tail);
    const keep = this.done ? tokens.length : lastBlock(tokens);
    if (keep) {
      this.last.before(render(tokens.slice(0, keep)));
      this.tail = tokens.slice(keep).map((token) => token.raw).join("");
    }
    this.drawLast(tokens.slice(keep));
  }

  /** Show what is not finished as it is. */
  private drawPlain(): void {
    this.last.before(h("p", { class: this.tail.length > BLOCK_LIMIT ? "plain long" : "plain" }, this.tail));
    this.last.replaceChildren();
    this.tail = "";
  }

  /** Render what is not finished; a paragraph over the limit is cut at spaces. */
  private drawLast(tokens: Token[]): void {
    if (!tokens.length) return this.last.replaceChildren();
    let at = 0;
    while (tokens[0]?.type === "paragraph" && this.tail.length - at > BLOCK_LIMIT) {
      const space = this.tail.lastIndexOf(" ", at + BLOCK_LIMIT);
      const cut = space > at ? space : between(this.tail, at + BLOCK_LIMIT);
      this.last.before(render(tokensOf(this.tail.slice(at, cut))));
      at = space > at ? cut + 1 : cut;
    }
    this.tail = this.tail.slice(at);
    this.last.replaceChildren(render(at ? tokensOf(this.tail) : tokens, true));
  }
}

/** Return where the last block begins: what stands before it changes no more. */
function lastBlock(tokens: Token[]): number {
  let at = tokens.length - 1;
  while (at > 0 && tokens[at]!.type === "space") at -= 1;
  return Math.max(0, at);
}
