// The page at /: what is where, and which key does what.
import "./page.css";
import { openDaemons } from "./daemons";
import { find } from "./dom";
import { openFrames, showFrames } from "./frames";
import { api, ApiRefused, KEY_CODES } from "./link";
import { openHistory, openRunning, openUsage } from "./lists";
import { takeLength } from "./prompts";
import { isSeen, onSeen, openTabs, showTab } from "./tabs";
import { Talk } from "./talk";
import { openTheme } from "./theme";
import { whyOf } from "./words";

interface Notice {
  notice: string;
  credentials: boolean;
  demo: boolean;
  grace: number;
}

/** Milliseconds until a server that did not say what it is is asked again. */
const ASK_AGAIN = 1000;

/** Seconds for which a run waits for a page at the most: who has closed it comes back no more. */
const COMING_BACK = 60;

openTheme();
openTabs();
openFrames();
onSeen("raw", showFrames);
const talk = new Talk();
openRunning(talk);
openHistory(talk);
openUsage(talk);
openDaemons(talk);
openForm(openDoor());

/** Take prompts; one that is sent before it is known what this server is waits for that: how long its run is to wait, too. */
function openForm(door: Promise<void>): void {
  const prompt = find<HTMLTextAreaElement>("prompt");
  find("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!prompt.value.trim() || find<HTMLButtonElement>("send").disabled) return;
    const text = prompt.value;
    void door.then(() => talk.send(text));
    prompt.value = "";
    prompt.focus();
  });
  prompt.addEventListener("beforeinput", ({ data }) => takeLength(prompt, prompt.value.length + (data?.length ?? 0)));
  prompt.addEventListener("input", () => takeLength(prompt, prompt.value.length));
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
    event.preventDefault();
    find<HTMLFormElement>("ask").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && stops(event)) talk.stop();
    if (!isAltA(event)) return;
    event.preventDefault();
    talk.transcript.focusQuestion(() => showTab("talk"));
  });
  find("stop").addEventListener("click", () => talk.stop());
  find("end").addEventListener("click", () => talk.end());
  find("latest").addEventListener("click", () => talk.transcript.toEnd());
}

/** Whether a key is an input method's; Safari says so of the last one by its old code alone. */
function isComposing(event: KeyboardEvent): boolean {
  return event.isComposing || event.keyCode === 229;
}

/** Whether Escape means the turn: held it means no more, and in a field that has a use for it, or another panel, that alone. */
function stops(event: KeyboardEvent): boolean {
  const isField = event.target instanceof Element && event.target.matches("[type=search], [list]");
  return !event.repeat && !isComposing(event) && !isField && isSeen("talk");
}

/** Whether it is Alt+A and no letter: on some keyboards those keys type one. */
function isAltA(event: KeyboardEvent): boolean {
  return event.altKey && !event.ctrlKey && !event.metaKey && !event.getModifierState("AltGraph") && event.key.toLowerCase() === "a";
}

/** Learn what this server is; where it wants a key, ask for that first. */
async function openDoor(): Promise<void> {
  const { notice, credentials, demo, grace } = await askNotice();
  find("notice").textContent = notice;
  find("notice").hidden = !notice;
  find("demo").hidden = !demo;
  talk.onKeyWanted = wantKey;
  talk.grace = Math.min(grace, COMING_BACK);
  find("unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    void useKey();
  });
  find("unlock").hidden = !credentials;
  if (!credentials) talk.comeBack();
  else find("key").focus();
}

/** Ask what this server is, until it says so. */
async function askNotice(): Promise<Notice> {
  for (;;) {
    const answer = await fetch("notice").catch(() => null);
    if (answer?.ok) return (await answer.json()) as Notice;
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN));
  }
}

function wantKey(why: string): void {
  find("unlock").hidden = false;
  find("key-fault").textContent = `${why}. The key or token is not good here.`;
  if (!talk.isLive) find("state").textContent = "refused: no good key or token";
  find("key").focus();
}

/** Take the key that was typed, if the server knows it. */
async function useKey(): Promise<void> {
  const field = find<HTMLInputElement>("key");
  const key = field.value.trim(); // HTTP takes one with a space behind it, the session does not
  if (!/^[!-~]*$/.test(key)) return wantKey("the key has characters that no key has");
  try {
    await api("api/ticket", key, { method: "POST" });
  } catch (error) {
    if (error instanceof ApiRefused && KEY_CODES.has(error.code)) return wantKey(error.message);
    find("key-fault").textContent = whyOf(error);
    return;
  }
  talk.key = key;
  field.value = "";
  find("key-fault").textContent = "";
  find("unlock").hidden = true;
  if (!talk.isLive) find("state").textContent = "ready";
  talk.comeBack();
  find("prompt").focus();
}
