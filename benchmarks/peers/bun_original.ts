// The original design: Bun.spawn, a reader loop, a split at newlines, and a ws.send for each line. It never looks at
// what ws.send returns, so that a client which does not read loses what is over Bun's backpressure limit.
import { CLI, FLAGS, INFO, PORT, userLine } from "./contract.mjs";

const TIMEOUT = 300_000;

async function stream(ws, line: string) {
  const proc = Bun.spawn([CLI, ...FLAGS], { stdin: "pipe", stdout: "pipe", stderr: "ignore" });
  ws.data.proc = proc;
  const timer = setTimeout(() => proc.kill(), TIMEOUT);
  proc.stdin.write(line);
  proc.stdin.end();
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of proc.stdout) {
    rest += decoder.decode(chunk, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop()!;
    for (const text of lines) ws.send(text);
  }
  if (rest) ws.send(rest);
  const status = await proc.exited;
  clearTimeout(timer);
  ws.close(status ? 1011 : 1000);
}

Bun.serve({
  port: PORT,
  hostname: "127.0.0.1",
  fetch(request, server) {
    const ours = new URL(request.url).pathname === "/ws/claude";
    if (ours && server.upgrade(request, { data: {} })) return;
    return new Response("not found", { status: 404 });
  },
  websocket: {
    open: (ws) => void ws.send(INFO),
    message(ws, text) {
      if (ws.data.proc) return;
      try {
        stream(ws, userLine(text));
      } catch (error) {
        ws.send(JSON.stringify({ error: String(error) }));
        ws.close(1008);
      }
    },
    close: (ws) => void ws.data.proc?.kill(),
  },
});
