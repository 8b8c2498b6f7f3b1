// The page's one duty: send a prompt to /ws/claude and show what comes. Text goes into text nodes only.
// A key stays in its field: it buys a ticket for one socket and is kept nowhere.
const FRAMES_SHOWN = 2000;
const element = (id) => document.getElementById(id);
let socket = null;

function say(parent, text) {
  parent.append(document.createTextNode(text));
}

function note(text) {
  const frames = element("frames");
  const line = document.createElement("div");
  say(line, text);
  frames.append(line);
  if (frames.childElementCount > FRAMES_SHOWN) frames.firstElementChild.remove();
  frames.scrollTop = frames.scrollHeight;
}

function showBlock(block) {
  if (block.type === "text") say(element("answer"), block.text + "\n");
  if (block.type === "tool_use") say(element("answer"), `[${block.name}] ${JSON.stringify(block.input)}\n`);
}

function showFrame(data) {
  note(data);
  let said;
  try {
    said = JSON.parse(data);
  } catch {
    return say(element("answer"), data + "\n");
  }
  if (said.error) say(element("answer"), `Error: ${said.error}\n`);
  if (said.type === "message") said.content.forEach(showBlock);
}

function setState(text, running) {
  element("state").textContent = text;
  element("send").disabled = running;
  element("stop").disabled = !running;
}

async function buyTicket(key) {
  const headers = { Authorization: `Bearer ${key}` };
  const answer = await fetch("/api/ticket", { method: "POST", headers });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return btoa(said.ticket).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function subprotocols() {
  const key = element("key").value;
  return key ? ["trio-claude.v1", `ticket.${await buyTicket(key)}`] : ["trio-claude.v1"];
}

async function ask(prompt, meta) {
  element("answer").replaceChildren();
  element("frames").replaceChildren();
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  let offered;
  try {
    offered = await subprotocols();
  } catch (error) {
    return setState(`refused: ${error.message}`, false);
  }
  socket = new WebSocket(`${scheme}://${location.host}/ws/claude`, offered);
  socket.onopen = () => {
    setState("running", true);
    socket.send(JSON.stringify({ prompt, meta }));
  };
  socket.onmessage = (event) => showFrame(event.data);
  socket.onclose = (event) => setState(`closed ${event.code}: ${event.reason}`, false);
}

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(element("prompt").value, element("meta").value);
});
element("stop").addEventListener("click", () => socket?.close(1000));

const { notice, credentials } = await (await fetch("/notice")).json();
element("key").hidden = element("key-label").hidden = !credentials;
if (notice) {
  element("notice").textContent = notice;
  element("notice").hidden = false;
}
