// Play one scene with the client and print what was seen as one JSON object.
// Usage: node --experimental-websocket js_client.mjs CLIENT SCENE JSON
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const [file, scene, given] = process.argv.slice(2);
const client = await import(file);
const { ask, openSession } = client;
const { url, prompt, ...more } = JSON.parse(given);

const KINDS = ["Refused", "TooLarge", "RunFailed", "ServerGone", "Busy", "ConnectionLost", "Overflow"];

function told(error) {
  if (!(error instanceof client.TrioClaudeError)) return { name: error.name, message: error.message };
  const kind = KINDS.find((name) => error.constructor === client[name]) ?? "TrioClaudeError";
  const { message, code, reason, closeCode, retryAfter, exitStatus, limit } = error;
  return { kind, message, code, reason, closeCode, retryAfter, exitStatus, limit };
}

async function failure(work) {
  try {
    return { value: await work() };
  } catch (error) {
    return told(error);
  }
}

const typeOf = (event) => (event.type === "line" ? event.line?.type : (event.event ?? event.type));

async function read(events, seen = [], each = () => undefined) {
  for await (const event of events) {
    seen.push(typeOf(event));
    await each(event);
  }
  return seen;
}

/** Read a turn; return its result, and the numbers of its lines. */
async function result(turn, each = () => undefined) {
  const seen = { text: undefined, numbers: [], types: [] };
  for await (const event of turn) {
    seen.types.push(typeOf(event));
    if ("n" in event) seen.numbers.push(event.n);
    if (event.line?.type === "result") seen.text = event.line.result;
    await each(event);
  }
  return seen;
}

/** A network of this program alone, which breaks and is back when it is told. */
function network(code = 1006) {
  const open = new Set();
  const net = { isDown: false };
  net.WebSocket = class extends WebSocket {
    constructor(address, ...given) {
      super(net.isDown ? "ws://127.0.0.1:1" : address, ...given);
      open.add(this);
    }
  };
  net.cut = () => {
    net.isDown = true;
    for (const socket of open) {
      socket.onclose?.({ code, reason: "" });
      socket.close();
    }
    open.clear();
  };
  return net;
}

const scenes = {
  async ask() {
    const states = [];
    const run = ask(prompt, { url, ...more, onOpen: () => states.push("open"), onNote: (note) => states.push(note) });
    const lines = [];
    const failed = await failure(async () => {
      for await (const { n, raw, line } of run) lines.push({ n, raw, type: line?.type });
    });
    const { error, ...ended } = await run.ended;
    const text = await failure(() => run.text);
    return { lines, ended, text, failed, states, notes: run.notes, same: error ? told(error).kind : "" };
  },

  async unnamed() {
    return failure(() => ask("hello", { url, meta: undefined }).text);
  },

  /** Give names that nobody knows; then each that a server may know. */
  async names() {
    const session = await openSession({ url });
    const odd = {
      ask: () => ask(prompt, { url, grace: 30 }),
      openSession: () => openSession({ url, partial: true }),
      options: () => openSession({ url, options: { partly: true } }),
      attach: () => openSession({ url, attach: { run: session.run, role: "viewer" } }),
      approve: () => session.approve("any", { command: "ls" }),
      deny: () => session.deny("any", "not today"),
    };
    const seen = { known: [] };
    for (const [name, give] of Object.entries(odd)) seen[name] = await failure(give);
    await session.close();
    for (const name of more.one_prompt) seen.known.push(await failure(() => ask(prompt, { url, [name]: null, signal: AbortSignal.abort() }).text));
    for (const name of more.start) seen.known.push(await failure(() => openSession({ url, options: { [name]: null }, signal: AbortSignal.abort() })));
    return seen;
  },

  /** Leave the loop at the third line. */
  async leave() {
    const run = ask(prompt, { url, ...more });
    let last = 0;
    for await (const { n } of run) if ((last = n) === 3) break;
    return { last, ended: await run.ended, text: await failure(() => run.text) };
  },

  async abort() {
    const leaving = new AbortController();
    const run = ask(prompt, { url, ...more, signal: leaving.signal });
    const failed = await failure(async () => {
      for await (const { n } of run) if (n === 3) leaving.abort();
    });
    return { failed, text: await failure(() => run.text), ended: await run.ended };
  },

  /** Give up before anything was connected, and while there is no answer to `openSession`. */
  async abort_early() {
    const leaving = new AbortController();
    const run = ask(prompt, { url, signal: leaving.signal });
    const opening = failure(() => openSession({ url, signal: leaving.signal }));
    leaving.abort();
    const late = await failure(() => ask(prompt, { url, signal: leaving.signal }).text);
    return { text: await failure(() => run.text), opened: await opening, late };
  },

  /** Give up where a ticket would be fetched, and while it is asked why there was no handshake. */
  async abort_asking() {
    const asked = [];
    const none = "http://127.0.0.1:1";
    const early = new AbortController();
    const ticket = () => asked.push("ticket");
    const first = ask(prompt, { url: none, ticket, signal: early.signal });
    early.abort();
    const late = new AbortController();
    globalThis.fetch = () => (asked.push("fetch"), late.abort(), new Promise(() => undefined));
    const second = ask(prompt, { url: none, signal: late.signal });
    const ended = [await first.ended, await second.ended].map(({ reason }) => reason);
    return { asked, ended, texts: [await failure(() => first.text), await failure(() => second.text)] };
  },

  /** Connect with a class that throws, as a browser's does in a page of https. */
  async thrown() {
    const WebSocket = class {
      constructor() {
        throw new Error("not from here");
      }
    };
    const run = ask(prompt, { url, WebSocket });
    const text = await failure(() => run.text);
    return { text, ended: (await run.ended).code, opened: await failure(() => openSession({ url, WebSocket, grace: 30 })) };
  },

  /** Give up as soon as the server has said hello, while the run is being started. */
  async abort_opening() {
    const leaving = new AbortController();
    const onEvent = ({ event }) => event === "hello" && leaving.abort();
    return failure(() => openSession({ url, grace: 30, signal: leaving.signal, onEvent }));
  },

  /** Want the text alone, of more than may wait to be read; read in vain afterwards. */
  async text_only() {
    const run = ask(prompt, { url, bufferLimit: 10_000 });
    const text = await run.text;
    return { length: text.length, late: await failure(() => run[Symbol.asyncIterator]().next()) };
  },

  async overflow() {
    const run = ask(prompt, { url, bufferLimit: 10_000 });
    const slow = await failure(async () => {
      for await (const _ of run) await sleep(300);
    });
    const session = await openSession({ url, bufferLimit: 10_000 });
    session.send(prompt);
    const ended = await session.ended;
    return { slow, ended: told(ended.failure), read: await failure(() => read(session)) };
  },

  async no_websocket() {
    globalThis.WebSocket = undefined;
    const without = await failure(() => ask(prompt, { url }).text);
    const given = createRequire(`${more.modules}/`)("ws");
    const session = await openSession({ url, WebSocket: given, key: more.key });
    const turn = await result(session.turn(prompt));
    const wrong = await failure(() => ask(prompt, { url, WebSocket: given, key: "tck_wrong" }).text);
    return { without, text: turn.text, reason: (await session.close()).reason, wrong };
  },

  async keys() {
    const buy = async () => {
      const answer = await fetch(`${url}/api/ticket`, { method: "POST", headers: { Authorization: `Bearer ${more.key}` } });
      return (await answer.json()).ticket;
    };
    const tries = { key: { key: more.key }, ticket: { ticket: await buy() }, function: { ticket: buy } };
    const wrongs = { none: {}, wrong: { key: "tck_wrong" }, odd: { key: "a key" }, used: { ticket: tries.ticket.ticket } };
    const seen = {};
    for (const [name, way] of Object.entries({ ...tries, ...wrongs })) {
      seen[name] = await failure(() => ask(prompt, { url, ...way }).text);
    }
    seen.session = await failure(() => openSession({ url, key: "tck_wrong" }));
    seen.lost = await failure(() => ask(prompt, { url: "http://127.0.0.1:1" }).text);
    seen.addresses = [];
    for (const address of ["ftp://127.0.0.1", "http://name:word@127.0.0.1", "http://"]) {
      seen.addresses.push((await failure(() => ask(prompt, { url: address }).text)).code);
    }
    seen.door = await failure(() => ask(prompt, { url: `${url.replace("http", "ws")}/ws/claude`, key: more.key }).text);
    return seen;
  },

  async session() {
    const states = [];
    const session = await openSession({ url, options: { partial: true }, onState: (state) => states.push(state) });
    const first = await result(session.turn("hello"));
    const approved = await result(session.turn(more.tool), (event) => {
      if (event.type === "approval") session.approve(event.request_id, { updatedInput: { command: "echo changed" } });
    });
    const messages = [];
    const denied = await result(session.turn(more.tool), (event) => {
      if (event.type === "approval") session.deny(event.request_id, { message: "not today" });
      if (event.line?.type === "user") messages.push(JSON.stringify(event.line));
    });
    const stale = await failure(async () => session.approve("no-such", {}));
    await session.setModel("haiku");
    const models = [];
    await result(session.turn("hello"), (event) => event.line?.subtype === "init" && models.push(event.line.model));
    const wrong = await failure(() => session.control("set_permission_mode", { mode: "bypassPermissions" }));
    let pieces = 0;
    const interrupted = await result(session.turn(more.slow), (event) => {
      if (event.line?.type === "stream_event" && (pieces += 1) === 4) session.interrupt();
    });
    const left = [];
    for await (const event of session.turn(more.slow)) if (left.push(typeOf(event)) === 4) break;
    session.interrupt();
    const next = await result(session.turn(more.plain));
    session.send([{ type: "text", text: "hello" }]);
    const plain = [];
    for await (const event of session) if (plain.push(typeOf(event)) && event.line?.type === "result") break;
    const { run, id, role, hello } = session;
    const ended = await session.close();
    const late = await failure(async () => session.send("too late"));
    const numbers = [first, approved, denied].flatMap((turn) => turn.numbers);
    return { first, approved, denied, messages, stale, models, wrong, interrupted, left, next, plain, run, id, role,
      hello, ended, late, states, numbers, open: session.approvals.size };
  },

  /** Say something that is too long, then something else. */
  async too_long() {
    const session = await openSession({ url, grace: more.grace });
    const long = await failure(() => result(session.turn(prompt)));
    const { text } = await result(session.turn("hello"));
    return { long, text, reason: (await session.close()).reason };
  },

  /** Answer a question behind a break, and have another answered by somebody else meanwhile. */
  async answers_away() {
    const net = network();
    const states = [];
    const session = await openSession({ url, WebSocket: net.WebSocket, grace: 30, onState: (state) => states.push(state) });
    const own = await result(session.turn(more.tool), (event) => {
      if (event.type !== "approval") return;
      net.cut();
      session.approve(event.request_id);
      net.isDown = false;
    });
    const types = [];
    for await (const event of session.turn(more.slow)) {
      types.push(typeOf(event));
      if (types.at(-2) === "attached") break;
      if (event.type !== "approval") continue;
      net.cut();
      const second = await openSession({ url, attach: { run: session.run, after: event.n } });
      second.approve(event.request_id);
      second.link.send({ type: "control_response", response: { subtype: "success", request_id: event.request_id, response: { behavior: "allow" } } });
      for await (const { code } of second) if (code === "not-open") break; // the first answer is heard, and the tool still runs
      second.link.leave();
      net.isDown = false;
    }
    const open = session.approvals.size;
    await session.close();
    return { own: own.types, types, open, states };
  },

  /** Ask and answer what is too much to be read. */
  async unreadable() {
    const session = await openSession({ url });
    const numbers = Array(200_000).fill(1);
    const asked = await failure(() => session.control("initialize", { numbers }));
    const refused = [];
    const { types } = await result(session.turn(more.tool), (event) => {
      if (event.type === "approval") session.approve(event.request_id, { updatedInput: { numbers } });
      if (event.event === "refused") refused.push(event.code);
    });
    await session.close();
    return { asked, refused, types };
  },

  /** Say something that is refused while a turn goes on, and in a turn of its own; tell of each refusal, and by which name. */
  async refused() {
    const session = await openSession({ url });
    const bad = "half a character: \ud800";
    const names = [];
    const turn = await result(session.turn(more.tool), (event) => {
      if (event.type === "approval") names.push(session.send(bad));
      if (event.event !== "refused") return;
      names.push(event.uuid);
      for (const id of session.approvals.keys()) session.deny(id);
    });
    const own = await failure(() => result(session.turn(bad)));
    const next = await result(session.turn(more.plain));
    await session.close();
    return { text: turn.text, names, own, next: next.text };
  },

  /** Begin a turn that is refused, and read another one behind it before its refusal is read. */
  async refused_aside() {
    const session = await openSession({ url });
    const first = session.turn("half a character: \ud800");
    await first.next();
    const { text, types } = await result(session.turn(prompt));
    const refused = await failure(() => first.next());
    const { text: next } = await result(session.turn(prompt));
    await session.close();
    return { text, types, refused, next };
  },

  /** Say something that a viewer may not, and leave at once. */
  async viewer_leaves() {
    const owner = await openSession({ url, grace: 30 });
    const viewer = await openSession({ url, attach: { run: owner.run, as: "viewer" } });
    viewer.send("not me");
    const left = await failure(() => viewer.detach());
    await owner.close();
    return left;
  },

  /** Return what each turn was answered. */
  async turns() {
    const session = await openSession({ url });
    const texts = [];
    for (const text of more.prompts) texts.push((await result(session.turn(text))).text);
    await session.close();
    return texts;
  },

  /** Leave a turn at its first piece, and say something more. */
  async left() {
    const session = await openSession({ url });
    for await (const event of session.turn("first")) if (event.line?.type === "assistant") break;
    const seen = await result(session.turn("second"));
    await session.close();
    return seen;
  },

  /** Say two turns one behind the other, and read the second first. */
  async both() {
    const session = await openSession({ url });
    const first = session.turn("first");
    await first.next();
    const second = await result(session.turn("second"));
    const rest = [];
    for await (const event of first) rest.push(typeOf(event));
    await session.close();
    return { second: second.text, rest };
  },

  /** Come to a run that is there, where the first connections fail; tell what was heard of the way. */
  async first_fails() {
    const states = [];
    let tries = 0;
    class Failing extends WebSocket {
      constructor(address, ...given) {
        super((tries += 1) < 3 ? String(address).replace("/ws/session", "/ws/nowhere") : address, ...given);
      }
    }
    const onState = (state) => states.push(state);
    const session = await openSession({ url, WebSocket: Failing, grace: 20, attach: { run: more.run }, onState });
    if (more.ended) await session[Symbol.asyncIterator]().next();
    const late = more.ended && (await failure(async () => session.send("too late")));
    await session.close();
    return { states, tries, late };
  },

  /** Close twice at once; tell of the timers that are left. */
  async closes() {
    const session = await openSession({ url });
    const ended = await Promise.all([session.close(), session.close()]);
    const timers = process.getActiveResourcesInfo().filter((name) => name === "Timeout");
    return { reasons: ended.map(({ reason }) => reason), timers: timers.length };
  },

  /** Lose a connection as Deno tells it; have a handshake refused in the words of some classes. */
  async other_words() {
    const net = network(0);
    const session = await openSession({ url, WebSocket: net.WebSocket, grace: 30 });
    net.cut();
    net.isDown = false;
    const { text } = await result(session.turn(prompt));
    await session.close();
    const refused = [];
    for (const message of more.messages) {
      const WebSocket = class {
        constructor() {
          queueMicrotask(() => (this.onerror({ message }), this.onclose({ code: 1006, reason: "" })));
        }
        close() {}
      };
      refused.push((await failure(() => ask(prompt, { url, WebSocket }).text)).kind);
    }
    return { text, refused };
  },

  /** Sleep for a minute in the middle of a turn, as a hidden tab does between two looks, then for longer. */
  async sleeps() {
    const [every, now] = [setInterval, Date.now];
    globalThis.setInterval = (work) => every(work, 10);
    let slept = 0;
    Date.now = () => now() + slept;
    const states = [];
    const session = await openSession({ url, grace: 30, options: { partial: true }, onState: (state) => states.push(state) });
    let short;
    const seen = await result(session.turn(prompt), async ({ n, event }) => {
      if (n === 5) slept += 60_000;
      if (n === 15) short = [...states];
      if (n === 15) slept += 100_000;
      if (event === "attached") session.interrupt();
    });
    await session.close();
    return { short, states, numbers: seen.numbers, last: seen.types.at(-1) };
  },

  /** End a session in each of its ways. */
  async ends() {
    const seen = {};
    const start = async (grace) => {
      const session = await openSession({ url, grace });
      await result(session.turn("hello"));
      return session;
    };
    const polite = await start();
    polite.stop("end");
    seen.end = { types: await read(polite), ...(await polite.ended) };
    const killed = await start();
    killed.stop("kill");
    await read(killed);
    seen.kill = await killed.ended;
    const aborting = new AbortController();
    const aborted = await openSession({ url, signal: aborting.signal });
    aborting.abort();
    seen.abort = { failed: await failure(() => read(aborted)), ...(await aborted.ended) };
    const dead = await start();
    dead.send(more.exit);
    seen.dead = { failed: await failure(() => read(dead)), ...(await dead.ended) };
    dead.close();
    const late = await openSession({ url });
    late.send(more.slow);
    late.stop("end");
    const types = [];
    for await (const event of late.turn("too late")) types.push(typeOf(event));
    seen.late = { types, rest: await read(late), ...(await late.ended) };
    seen.refused = await failure(() => openSession({ url, meta: "no such meta" }));
    seen.unknown = await failure(() => openSession({ url, attach: { run: "0".repeat(32) } }));
    const stays = await start();
    seen.stays = await failure(() => stays.detach());
    await stays.close();
    return seen;
  },

  /** Leave a run at an open approval, come back to it, and watch it meanwhile. */
  async attach() {
    const first = await openSession({ url, grace: 30 });
    first.send(prompt);
    let asked;
    for await (const event of first) if ((asked = event).type === "approval") break;
    const viewer = await openSession({ url, attach: { run: first.run, as: "viewer" } });
    const watching = result(viewer).then((seen) => seen.numbers);
    const left = await first.detach();
    const second = await openSession({ url, attach: { run: first.run, after: asked.n } });
    const pending = [...second.approvals.values()];
    second.approve(pending[0].request_id, { updatedInput: { command: "echo changed" } });
    const numbers = [];
    let text;
    for await (const event of second) {
      if (event.type === "line") numbers.push(event.n);
      if (event.line?.type === "result" && (text = event.line.result)) break;
    }
    const refused = [];
    viewer.send("not me");
    const ended = await second.close();
    const watched = await watching;
    return { asked: asked.n, id: [asked.request_id, pending[0].request_id], pending: pending[0].pending, numbers, text,
      ended, left, watched, roles: [first.role, second.role, viewer.role], viewer: await viewer.ended };
  },

  /** Try to leave a run that was started without a grace by another client, then go on with it. */
  async detach() {
    const first = await openSession({ url });
    const second = await openSession({ url, attach: { run: first.run, as: "owner" } });
    const failed = await failure(() => second.detach());
    const { text } = await result(second.turn(prompt));
    return { failed, text, ended: await second.close() };
  },

  /** Listen with functions that throw. */
  async listeners() {
    const thrown = [];
    process.on("uncaughtException", ({ message }) => thrown.push(message));
    const fail = (said) => {
      throw new Error(said);
    };
    const session = await openSession({ url, onState: fail, onEvent: ({ event }) => fail(event) });
    const { text } = await result(session.turn(prompt));
    return { text, reason: (await session.close()).reason, thrown };
  },

  /** Want a ticket of a server that is busy, in what looks like a page. */
  async busy_tickets() {
    globalThis.location = new URL(url);
    const headers = { "Retry-After": "30" };
    globalThis.fetch = async () => new Response('{"error":"not at hand","code":"redis"}', { status: 503, headers });
    return failure(() => ask(prompt, { url, key: "tck" }).text);
  },

  /** Be refused in the handshake, as the package `ws` tells it, by a server that says nothing over HTTP then. */
  async mute() {
    const wait = setTimeout;
    globalThis.setTimeout = (work, ms, ...given) => wait(work, Math.min(ms, 50), ...given);
    globalThis.fetch = () => new Promise(() => {});
    class Ws {
      constructor() {
        queueMicrotask(() => this.onerror({ message: `Unexpected server response: ${more.status}` }));
      }
      close() {}
    }
    return failure(() => ask(prompt, { url, WebSocket: Ws }).text);
  },

  /** Come to a run by tickets of a server that has no room at first; tell how long it was let alone. */
  async later() {
    globalThis.location = new URL(url);
    const [buy, wait] = [fetch, setTimeout];
    const said = [];
    let tickets = 0;
    globalThis.fetch = (address, init) => {
      if ((tickets += 1) > 2) return buy(address, init);
      return new Response('{"error":"too many connections","code":"connections"}', { status: 429, headers: { "Retry-After": "20" } });
    };
    globalThis.setTimeout = (work, ms, ...given) => {
      const asked = ms >= 20_000 && ms <= 30_000;
      if (asked) said.push("waits");
      return wait(work, asked ? 0 : ms, ...given);
    };
    const refused = await failure(() => openSession({ url, key: more.key }));
    const onState = (state) => said.push(state);
    const session = await openSession({ url, key: more.key, grace: 60, attach: { run: more.run }, onState });
    await session.close();
    return { said, tickets, refused };
  },

  /** Many turns over a network that is cut; each line and each answer once. */
  async cut() {
    const states = [];
    const session = await openSession({ url, grace: 60, onState: (state) => states.push(state) });
    const texts = [];
    const numbers = [];
    for (let turn = 0; turn < more.turns; turn += 1) {
      const text = `answer ${turn} ${"x".repeat(200)}`;
      const seen = await result(session.turn(`@@${JSON.stringify({ do: "text", text })}@@`));
      texts.push(seen.text === text);
      numbers.push(...seen.numbers);
      await sleep(Math.random() * 20);
    }
    const { run, gaps } = session;
    session.stop("end");
    await result(session).then((seen) => numbers.push(...seen.numbers));
    return { run, gaps, texts, numbers, states, ended: await session.ended };
  },

  /** Have one turn in a session that comes back, then end it. */
  async returns() {
    const states = [];
    const refusals = [];
    const numbers = [];
    const onEvent = (said) => said.event === "refused" && refusals.push(said.code);
    const session = await openSession({ url, grace: more.grace, onState: (state) => states.push(state), onEvent });
    const failed = await failure(async () => {
      for await (const { line } of session.turn(prompt)) if (line?.n) numbers.push(line.n);
      session.stop("end");
      await read(session);
    });
    const { code, reason } = await session.ended;
    return { states, told: refusals, numbers, failed: failed.kind ? failed : {}, ended: { code, reason } };
  },

  /** Cut at an open approval, by way of a file that tells the test. */
  async cut_for_good() {
    const states = [];
    const session = await openSession({ url, grace: 0.5, onState: (state) => states.push(state) });
    process.stderr.write("ready\n");
    const failed = await failure(() => read(session));
    return { failed, states, ended: await session.ended, late: await failure(async () => session.interrupt()) };
  },

  async units() {
    const { parseReason, AnswerText } = client;
    const reasons = ["exit 0; 7 processes, 0 left, 12 ms", "signal 9; 1 process, unproven, 3 ms", "timed out; 2 processes, 1 left, 5 ms", "bad", ""];
    const answer = new AnswerText();
    return { reasons: reasons.map((text) => parseReason(1000, text)), texts: more.lines.map((line) => (answer.take(line), answer.text)) };
  },
};

process.stdout.write(JSON.stringify(await scenes[scene]()));
