// A real Chromium that a test leads step by step: one JSON command a line on stdin, one JSON answer a line on stdout.
// Usage: node drive.cjs CHROMIUM
//   {"open":NAME,"url":…,"options":{…}}        a page in a context of its own; "with":NAME shares that one's context,
//                                              "late":PATH cuts the first request for that off, and lets another wait a second
//   {"page":NAME,"call":"keyboard.press","with":[…]}   any method of the page; what it returns, where JSON can say it
//   {"until":NAME,"js":…}                      wait until an expression is true
//   {"seen":NAME}                              errors, requests to whom, and violations of the policy, so far
//   {"axe":NAME}                               what axe-core finds that is serious or critical
//   {"live":NAME,"of":CLASS}                   how many objects of a class there are that something holds
//   {"close":NAME}
"use strict";
const { readFileSync } = require("node:fs");
const { createInterface } = require("node:readline");
const { chromium } = require("playwright-core");

const WAIT_MS = 15_000;
const LATE_MS = 1_000;
const COMMAND_MS = 45_000; // for one command, whatever the page or Chromium does
const ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];
const pages = new Map();

const commands = {
  async open({ open, url, options, with: other, late }, browser) {
    const context = other ? pages.get(other).page.context() : await browser.newContext(options);
    const page = await context.newPage();
    page.setDefaultTimeout(WAIT_MS);
    const seen = { errors: [], requests: [], violations: [] };
    pages.set(open, { page, seen });
    page.on("console", (said) => ["error", "warning"].includes(said.type()) && seen.errors.push(`${said.text()} ${said.location().url}`.trim()));
    page.on("pageerror", (error) => seen.errors.push(String(error)));
    page.on("request", (request) => seen.requests.push(request.url()));
    page.on("websocket", (socket) => seen.requests.push(socket.url()));
    await page.exposeBinding("violated", (_source, what) => seen.violations.push(what));
    await page.addInitScript(() =>
      document.addEventListener("securitypolicyviolation", (event) => globalThis.violated(`${event.violatedDirective}: ${event.blockedURI}`)),
    );
    if (late) {
      let asked = 0;
      await page.route(`**${late}`, async (route) => {
        if (!asked++) return route.abort();
        await new Promise((resolve) => setTimeout(resolve, LATE_MS));
        await route.continue();
      });
    }
    await page.goto(url);
  },

  async call({ page, call, with: given = [] }) {
    let [target, method] = [pages.get(page).page, call];
    if (call.includes(".")) [target, method] = [target[call.split(".")[0]], call.split(".")[1]];
    const value = await target[method](...given);
    return ["string", "number", "boolean"].includes(typeof value) || method === "evaluate" ? value : null;
  },

  // Asked from outside: what waits inside the page needs `eval`, which the policy refuses.
  async until({ until, js }) {
    const last = Date.now() + WAIT_MS;
    while (!(await pages.get(until).page.evaluate(js).catch(() => false))) {
      if (Date.now() > last) throw new Error(`it did not come true: ${js}\n${await pages.get(until).page.innerText("body")}`);
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
  },

  async seen({ seen }) {
    return pages.get(seen).seen;
  },

  async axe({ axe }) {
    const { page } = pages.get(axe);
    await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
    const found = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
    return found.violations
      .filter(({ impact }) => ["serious", "critical"].includes(impact))
      .map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
  },

  async live({ live, of }) {
    const { page } = pages.get(live);
    const session = await page.context().newCDPSession(page);
    await session.send("HeapProfiler.collectGarbage");
    const kind = await session.send("Runtime.evaluate", { expression: `${of}.prototype` });
    const { objects } = await session.send("Runtime.queryObjects", { prototypeObjectId: kind.result.objectId });
    const length = { objectId: objects.objectId, functionDeclaration: "function () { return this.length; }", returnByValue: true };
    const { result } = await session.send("Runtime.callFunctionOn", length);
    await session.detach();
    return result.value;
  },

  async close({ close }) {
    const { page } = pages.get(close);
    pages.delete(close);
    await page.close();
    if (!page.context().pages().length) await page.context().close();
  },
};

async function bounded(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer from Chromium after ${COMMAND_MS} ms: ${what}`)), COMMAND_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function main([executablePath]) {
  const browser = await chromium.launch({ executablePath, headless: true, args: ARGS });
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    const name = Object.keys(commands).find((one) => one in command);
    let answer;
    try {
      answer = { value: (await bounded(commands[name](command, browser), line)) ?? null };
    } catch (error) {
      answer = { error: String(error.message), said: [...pages].map(([page, { seen }]) => [page, seen.errors]) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
  await browser.close();
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
