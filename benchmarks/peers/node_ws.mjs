// Node and the `ws` package: child_process.spawn, readline for the lines, a send for each.
import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { WebSocketServer } from "ws";
import { CLI, FLAGS, INFO, PORT, userLine } from "./contract.mjs";

function stream(ws, line) {
  const child = spawn(CLI, FLAGS, { stdio: ["pipe", "pipe", "ignore"] });
  child.stdin.end(line);
  createInterface({ input: child.stdout, crlfDelay: Infinity }).on("line", (text) => ws.send(text));
  child.on("error", () => ws.close(1011));
  child.on("close", (status) => ws.close(status ? 1011 : 1000));
  return child;
}

const http = createServer((_, response) => response.writeHead(404).end());
const server = new WebSocketServer({ server: http, path: "/ws/claude", perMessageDeflate: false });
server.on("connection", (ws) => {
  let child = null;
  ws.send(INFO);
  ws.on("message", (data) => {
    if (child) return;
    try {
      child = stream(ws, userLine(data.toString()));
    } catch (error) {
      ws.send(JSON.stringify({ error: String(error) }));
      ws.close(1008);
    }
  });
  ws.on("close", () => child?.kill());
});
http.listen(PORT, "127.0.0.1", 1024);
