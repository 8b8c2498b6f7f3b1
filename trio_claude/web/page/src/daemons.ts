// The demonstration: a real CLI leaves processes behind, the run ends, and what is left stands beside what the usual
// way would have left. Rule: every number is the receipt's, or counted out of what the tool said.
import { find, h } from "./dom";
import type { Talk, Script } from "./talk";
import type { Json } from "./tools";
import { receiptWords, type Receipt } from "./words";

export const PROMPT = 'Leave some processes behind.\n\n@@{"do": "daemons"}@@';
const NAMES: Record<string, string> = {
  background: "in the background",
  nohup: "nohup",
  deaf: "deaf to SIGTERM",
  setsid: "a session of its own",
  forked: "forked twice",
};

interface Process {
  how: string;
  pid: number;
  group: number;
  session: number;
}

export function openDaemons(talk: Talk): void {
  find("daemons").addEventListener("click", () => {
    if (!talk.isLive) talk.send(PROMPT, lead(talk));
  });
}

function lead(talk: Talk): Script {
  let said = "";
  return {
    onQuestion: (name) => name === "Bash",
    onLine(line) {
      if (line.type === "user") said += output(line);
      if (line.type === "result") talk.end();
    },
    onEnded: (ended) => prove(read(said), ended.receipt as Receipt | null),
  };
}

function output(line: Json): string {
  const blocks: Json[] = Array.isArray(line.message?.content) ? line.message.content : [];
  return blocks.map((block) => (typeof block.content === "string" ? `${block.content}\n` : "")).join("");
}

/** Return the processes that the tool told of: its name for each, pid, process group, session. */
export function read(text: string): Process[] {
  const found = [...text.matchAll(/^([a-z]+) (\d+) (\d+) (\d+)$/gm)];
  return found.map(([, how, ...numbers]) => {
    const [pid, group, session] = numbers.map(Number);
    return { how: how!, pid: pid!, group: group!, session: session! };
  });
}

function prove(processes: Process[], receipt: Receipt | null): void {
  const cli = processes.find((one) => one.how === "cli");
  const daemons = processes.filter((one) => one.how in NAMES);
  const proof = find("proof");
  if (!cli || !daemons.length || !receipt) {
    proof.replaceChildren(h("p", {}, "The command did not tell of its processes, so there is nothing to compare."));
  } else {
    const missed = daemons.filter((one) => one.group !== cli.group);
    proof.replaceChildren(h("h3", {}, "What is left"), sides(receipt, missed.length, daemons.length), list(cli, daemons));
  }
  proof.hidden = false;
  setTimeout(() => proof.scrollIntoView({ block: "start" }));
}

function sides(receipt: Receipt, missed: number, all: number): HTMLElement {
  const kind = receipt.survivors === 0 ? "here" : "usual";
  const here = side(kind, receipt.survivors == null ? "?" : String(receipt.survivors), "left by trio-claude", `The receipt: ${receiptWords(receipt)}.`);
  const told = `killpg ends the CLI's own process group; ${missed} of these ${all} are not in it.`;
  return h("div", { class: "sides" }, here, side("usual", String(missed), "a killpg would have left", told));
}

function side(kind: string, number: string, what: string, more: string): HTMLElement {
  return h("div", { class: "side-by", "data-side": kind }, h("strong", {}, number), h("span", {}, what), h("p", { class: "small" }, more));
}

function list(cli: Process, daemons: Process[]): HTMLElement {
  const row = (one: Process, name: string, held: string) =>
    h("tr", {}, ...[name, String(one.pid), String(one.group), String(one.session), held].map((text) => h("td", {}, text)));
  const rows = daemons.map((one) => row(one, NAMES[one.how]!, one.group === cli.group ? "ended" : "missed"));
  const head = h("tr", {}, ...["Process", "PID", "Group", "Session", "By killpg"].map((text) => h("th", { scope: "col" }, text)));
  const body = h("tbody", {}, row(cli, "the CLI", "ended"), ...rows);
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Processes" }, h("table", {}, h("thead", {}, head), body));
}
