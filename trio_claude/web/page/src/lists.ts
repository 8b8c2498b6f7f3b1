// The panels that are lists: runs now, history, usage. Each is read when it is looked at, and again while it is.
import { find, h, setText } from "./dom";
import { api, ApiRefused, KEY_CODES } from "./link";
import { getRun, listRuns, tell, type Row } from "./past";
import { isSeen, onSeen, showTab } from "./tabs";
import type { Talk } from "./talk";
import { Transcript } from "./transcript";
import { clock, count, dollars, moment, receiptWords, type Receipt } from "./words";

/** Milliseconds after which live runs are read again. */
const PERIOD = 2000;
/** Runs of the history that are kept on the page. */
const ROWS_KEPT = 2000;

type Cell = string | Node;

function table(name: string, heads: string[], rows: Cell[][]): HTMLElement {
  const cells = (row: Cell[]) => h("tr", {}, ...row.map((cell, at) => h("td", { "data-head": heads[at]! }, cell)));
  const head = h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text))));
  const body = h("tbody", {}, ...rows.map(cells));
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": name }, h("table", {}, head, body));
}

function button(text: string, act: () => void, label = text): HTMLButtonElement {
  const made = h("button", { type: "button", "aria-label": label }, text);
  made.addEventListener("click", act);
  return made;
}

const code = (text: string) => h("code", {}, text);

/** Say what went wrong; where a better key would help, one is asked for, once. */
function tellFault(told: HTMLElement, error: unknown, talk: Talk): void {
  setText(told, (error as Error).message);
  if (error instanceof ApiRefused && KEY_CODES.has(error.code) && find("unlock").hidden) talk.onKeyWanted(error.message);
}

/** Put something in place of what was there; the button that had the focus has it still. */
function renew(place: HTMLElement, made: HTMLElement): void {
  const focused = document.activeElement;
  const label = place.contains(focused) ? focused?.getAttribute("aria-label") : null;
  place.replaceChildren(made);
  if (label) place.querySelector<HTMLElement>(`[aria-label="${CSS.escape(label)}"]`)?.focus({ preventScroll: true });
}

// -- runs now -----------------------------------------------------------------------------------------------------------

export function openRunning(talk: Talk): void {
  const panel = find("running");
  const told = h("p", { class: "small", role: "status" });
  const place = h("div");
  panel.append(h("div", { class: "page" }, h("h2", {}, "Runs now"), told, place));
  let drawn = "";
  const read = async () => {
    try {
      const [{ runs }, ready] = await Promise.all([listRuns(talk.key, { state: "live", limit: "100" }), readiness(talk.key)]);
      setText(told, `${count(runs.length, "run")}${runs.length === 100 ? " or more" : ""}; this server holds each by ${ready}.`);
      const now = JSON.stringify([talk.leads, ...runs.map((run) => run.id)]);
      if (now === drawn) return age(place, runs);
      drawn = now;
      renew(place, runs.length ? running(runs, ready, talk, told) : h("p", {}, "Nothing runs."));
    } catch (error) {
      drawn = "";
      tellFault(told, error, talk);
      place.replaceChildren();
    }
  };
  poll("running", read);
}

async function readiness(key: string): Promise<string> {
  const answer = await fetch("readyz", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  const said = (await answer.json()) as { containment?: string };
  return said.containment ?? "what only those with a key are told";
}

function age(place: HTMLElement, runs: Row[]): void {
  for (const [at, cell] of place.querySelectorAll('[data-head="Age"]').entries()) {
    if (runs[at]) cell.textContent = clock(Date.now() - runs[at].started * 1000);
  }
}

function running(runs: Row[], containment: string, talk: Talk, told: HTMLElement): HTMLElement {
  const rows = runs.map((run) => [
    run.identity, run.meta, code(run.id.slice(0, 8)), clock(Date.now() - run.started * 1000), run.state, containment, acts(run, talk, told),
  ]);
  return table("Runs now", ["Who", "Meta", "Run", "Age", "State", "Held by", ""], rows);
}

function acts(run: Row, talk: Talk, told: HTMLElement): HTMLElement {
  const row = h("div", { class: "row" });
  const go = (as: "owner" | "viewer") => {
    showTab("talk");
    if (run.id !== talk.leads) void talk.attach(run.id, as);
  };
  const own = run.id === talk.leads;
  if (own) row.append(button("Show", () => go("owner"), `Show run ${run.id}`));
  if (run.door === "session" && !own) {
    row.append(button("Watch", () => go("viewer"), `Watch run ${run.id}`), button("Take over", () => go("owner"), `Take over run ${run.id}`));
  }
  row.append(button("Stop", () => void stop(run, talk, told), `Stop run ${run.id}`));
  return row;
}

async function stop(run: Row, talk: Talk, told: HTMLElement): Promise<void> {
  try {
    await api(`api/runs/${run.id}?state=live`, talk.key, { method: "DELETE" });
    told.textContent = `Run ${run.id.slice(0, 8)} is being ended.`;
  } catch (error) {
    tellFault(told, error, talk);
  }
}

function poll(panel: string, read: () => Promise<void>): void {
  let reading = false;
  const again = async () => {
    if (reading || !isSeen(panel) || document.hidden) return;
    reading = true;
    await read();
    reading = false;
  };
  onSeen(panel, () => void again());
  setInterval(() => void again(), PERIOD);
}

// -- history ------------------------------------------------------------------------------------------------------------

export function openHistory(talk: Talk): void {
  const list = new Past(talk);
  onSeen("history", () => void list.read());
}

class Past {
  private rows: Row[] = [];
  private next: string | null = null;
  private readonly search = h("input", { type: "search", id: "search", placeholder: "meta, who, run, how it ended", autocomplete: "off" });
  private readonly told = h("p", { class: "small", role: "status" });
  private readonly items = h("ul", { class: "runs" });
  private readonly older = button("Older runs", () => void this.read(true));
  private readonly head = h("div", { class: "past-head" });
  private readonly text = h("div", { class: "transcript" });
  private readonly scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The run" });
  private readonly shown: Transcript;
  private wanted = "";
  private turn = 0;

  constructor(private readonly talk: Talk) {
    this.scroll.append(this.head, this.text);
    this.shown = new Transcript(this.text, this.scroll);
    const field = h("label", {}, "Search ", this.search);
    const side = h("div", { class: "side scroll", tabindex: "0", role: "region", "aria-label": "Runs" }, h("h2", {}, "History"), field, this.told, this.items, this.older);
    find("history").append(side, this.scroll);
    this.head.append(h("p", { class: "small" }, "Choose a run to see what was said in it."));
    this.search.addEventListener("input", () => this.draw());
    this.search.addEventListener("keydown", (event) => event.key === "Enter" && void this.read());
  }

  /** Read the newest runs, or the next older ones; a whole meta that is searched for is asked of the server. */
  async read(older = false): Promise<void> {
    const meta = this.search.value.trim().toUpperCase();
    try {
      const found = await (older && this.next ? this.before(this.next) : listRuns(this.talk.key, { limit: "100" }));
      const named = !older && /^[A-Z0-9_-]{1,64}$/.test(meta) ? (await listRuns(this.talk.key, { limit: "100", meta })).runs : [];
      this.rows = merge(older ? this.rows : [], [...found.runs, ...named]);
      this.next = found.next;
      this.draw();
    } catch (error) {
      tellFault(this.told, error, this.talk);
    }
  }

  /** Read the runs before one that was listed; where it was deleted meanwhile, those that began before it. */
  private async before(run: string): Promise<{ runs: Row[]; next: string | null }> {
    try {
      return await listRuns(this.talk.key, { limit: "100", before: run });
    } catch (error) {
      const began = this.rows.find((row) => row.id === run)?.started;
      if (!(error instanceof ApiRefused && error.code === "not-found" && began)) throw error;
      return listRuns(this.talk.key, { limit: "100", until: String(Number(began) + 1e-3) }); // others may have begun in the same moment
    }
  }

  private draw(): void {
    const words = this.search.value.trim().toLowerCase();
    const found = this.rows.filter((row) => text(row).includes(words));
    setText(this.told, `${count(found.length, "run")}${words ? ` of ${this.rows.length}` : ""}`);
    this.items.replaceChildren(...found.map((row) => this.item(row)));
    this.mark();
    this.older.hidden = !this.next || this.rows.length >= ROWS_KEPT;
  }

  /** Mark the run that is shown. */
  private mark(): void {
    for (const one of this.items.querySelectorAll<HTMLElement>(".run")) one.ariaCurrent = one.dataset.run === this.wanted ? "true" : null;
  }

  private item(row: Row): HTMLElement {
    const made = h("button", { type: "button", class: "run", "data-run": row.id },
      h("strong", {}, row.meta), h("span", {}, row.state === "live" ? "live" : (row.reason ?? "ended")),
      h("span", { class: "small" }, `${moment(row.started)} · ${row.identity}`),
      h("span", { class: "small" }, row.receipt ? receiptWords(row.receipt as Receipt) : "–"));
    made.addEventListener("click", () => void this.replay(row.id));
    return h("li", {}, made);
  }

  private async replay(id: string): Promise<void> {
    const turn = ++this.turn;
    const isWanted = () => turn === this.turn;
    this.wanted = id;
    this.mark(); // the list itself stays: a key has chosen there, and goes on from there
    this.shown.clear();
    try {
      const row = await getRun(this.talk.key, id);
      if (!isWanted()) return;
      this.head.replaceChildren(...this.facts(row));
      await tell(this.talk.key, row, this.shown, isWanted);
      if (!isWanted()) return;
      this.shown.end();
      this.shown.toBeginning();
    } catch (error) {
      if (!isWanted()) return;
      const told = h("p", { class: "fault" });
      this.head.replaceChildren(told);
      tellFault(told, error, this.talk);
    }
  }

  private facts(row: Row): HTMLElement[] {
    const how = row.state === "live" ? "live" : (row.reason ?? "ended");
    const left = row.receipt ? receiptWords(row.receipt as Receipt) : "no receipt yet";
    const facts = [`${row.identity} · ${moment(row.started)}`, `${how} · ${left}`, `${count(row.tokens, "token")} · ${dollars(row.dollars)} · ${count(row.lines, "line")}`];
    const shown = [h("h3", {}, row.meta, " ", code(row.id)), ...facts.map((fact) => h("p", { class: "small" }, fact))];
    if (row.error) shown.push(h("p", { class: "fault" }, row.error));
    if (!row.whole) shown.push(h("p", { class: "small" }, "Not all of its lines are kept."));
    return row.session && row.state === "ended" ? [...shown, this.goOn(row.session)] : shown;
  }

  private goOn(session: string): HTMLElement {
    return button("Go on with this conversation", () => {
      showTab("talk");
      this.talk.goOn(session);
    });
  }
}

function merge(known: Row[], more: Row[]): Row[] {
  const all = new Map([...known, ...more].map((row) => [row.id, row]));
  return [...all.values()].sort((one, other) => other.started - one.started).slice(0, ROWS_KEPT);
}

function text(row: Row): string {
  return `${row.meta} ${row.identity} ${row.id} ${row.state} ${row.reason ?? ""} ${row.error ?? ""}`.toLowerCase();
}

// -- usage --------------------------------------------------------------------------------------------------------------

interface Used {
  day: string;
  identity: string;
  runs: number;
  turns: number;
  tokens: number;
  dollars: number;
}

export function openUsage(talk: Talk): void {
  const place = h("div");
  const told = h("p", { class: "small", role: "status" });
  find("usage").append(h("div", { class: "page" }, h("h2", {}, "Usage by day"), told, place));
  onSeen("usage", async () => {
    try {
      const { usage } = (await (await api("api/usage", talk.key)).json()) as { usage: Used[] };
      told.textContent = usage.length ? "Days of UTC; what the CLI reckons." : "Nothing was used yet.";
      place.replaceChildren(usage.length ? used(usage) : "");
    } catch (error) {
      tellFault(told, error, talk);
      place.replaceChildren();
    }
  });
}

function used(usage: Used[]): HTMLElement {
  const most = Math.max(...usage.map((row) => row.tokens), 1);
  const rows = usage
    .toSorted((one, other) => other.day.localeCompare(one.day))
    .map((row) => [row.day, row.identity, String(row.runs), String(row.turns), row.tokens.toLocaleString("en"), bar(row, most), dollars(row.dollars)]);
  return table("Usage by day", ["Day", "Who", "Runs", "Turns", "Tokens", "Share", "Dollars"], rows);
}

function bar(row: Used, most: number): HTMLElement {
  return h("meter", { min: 0, max: most, value: row.tokens, "aria-label": `tokens of ${row.identity} on ${row.day}` });
}
