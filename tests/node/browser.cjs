// Lead a real Chromium through one page and print what was seen there as one JSON object.
// Usage: node browser.cjs CHROMIUM PROFILE SCENE URL [JSON]
"use strict";
const { chromium } = require("playwright-core");

const WAIT_MS = 30_000;
const ARGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const scenes = {
  // Fill in the form of the page, send it, end the run behind the answer, and read the page once it is over.
  async demo(page, { prompt, meta }) {
    const text = (selector) => page.locator(selector).innerText();
    const title = await page.title();
    await page.fill("#prompt", prompt);
    await page.fill("#meta", meta);
    await page.click("#send");
    await page.waitForSelector(".turn-end");
    await page.click("#end");
    await page.waitForSelector(".receipt");
    const [answer, state, receipt] = [await text(".answer"), await text("#state"), await text(".receipt")];
    await page.click("#tab-raw");
    return {
      title,
      answer,
      state,
      receipt,
      frames: await page.locator("#frames > div").allInnerTexts(),
      canSend: await page.isEnabled("#send"),
      canStop: await page.isEnabled("#stop"),
    };
  },

  // Ask for a socket and an answer from the page that was opened, whatever that page is; tell what came of each.
  async probe(page, { socket, fetched }) {
    const opened = await page.evaluate(
      (url) =>
        new Promise((resolve) => {
          const socket = new WebSocket(url);
          socket.onmessage = (event) => resolve(`heard ${event.data}`);
          socket.onclose = (event) => resolve(`closed ${event.code}`);
        }),
      socket,
    );
    const answered = await page.evaluate((url) => fetch(url).then((answer) => answer.status, String), fetched);
    return { opened, answered, text: await page.locator("body").innerText() };
  },

  // Have the page run a script, the text of an expression; tell what came of it.
  async play(page, { script }) {
    return { value: await page.evaluate(script) };
  },

  // Call the hook's `connect` for each prompt, the next one as soon as the CLI's first line came; read to the last close.
  async hook(page, prompts) {
    await page.waitForFunction(() => globalThis.connect);
    for (const { prompt, meta } of prompts) {
      const known = await page.evaluate(() => globalThis.frames.length);
      await page.evaluate(([prompt, meta]) => globalThis.connect(prompt, meta), [prompt, meta]);
      await page.waitForFunction((n) => globalThis.frames.slice(n).some((frame) => frame.includes('"init"')), known);
    }
    await page.waitForFunction(
      () =>
        globalThis.frames.some((frame) => frame.includes('"type":"result"')) &&
        document.getElementById("connected").textContent === "false",
    );
    return page.evaluate(() => ({ frames: globalThis.frames, shown: globalThis.shown }));
  },
};

async function main([executablePath, profile, scene, url, input]) {
  const errors = [];
  const given = input && JSON.parse(input);
  const args = [...ARGS, ...(given?.args ?? [])];
  const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args });
  try {
    const [page] = context.pages();
    page.setDefaultTimeout(WAIT_MS);
    page.on("console", (said) => said.type() === "error" && errors.push(said.text()));
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("requestfailed", (request) => errors.push(`${request.url()}: ${request.failure().errorText}`));
    await page.goto(url);
    const seen = await scenes[scene](page, given);
    process.stdout.write(JSON.stringify({ ...seen, errors }));
  } catch (error) {
    process.stderr.write(errors.map((said) => `the page said: ${said}\n`).join(""));
    throw error;
  } finally {
    await context.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
