// A tuned Bun: one decoding and one split for all lines of a chunk, sent under one cork, and the pipe rests while the
// client's buffer is full.
import { CLI, FLAGS, INFO, PORT, userLine } from "./contract.mjs";

const HIGH = 4 << 20;

async function stream(ws, line: string) {
  const state = ws.data;
  const proc = (state.proc = Bun.spawn([CLI, ...FLAGS], { stdin: "pipe", stdout: "pipe", stderr: "ignore" }));
  proc.stdin.write(line);
  proc.stdin.end();
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of proc.stdout) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop()!;
    ws.cork(() => {
      for (const text of lines) ws.sendText(text);
    });
    if (ws.getBufferedAmount() > HIGH) await new Promise((drained) => (state.drained = drained));
  }
  if (rest) ws.sendText(rest);
  ws.close((await proc.exited) ? 1011 : 1000);
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
    backpressureLimit: 64 << 20,
    perMessageDeflate: false,
    open: (ws) => void ws.sendText(INFO),
    message(ws, text) {
      if (ws.data.proc) return;
      try {
        stream(ws, userLine(text));
      } catch (error) {
        ws.sendText(JSON.stringify({ error: String(error) }));
        ws.close(1008);
      }
    },
    drain(ws) {
      ws.data.drained?.();
      ws.data.drained = null;
    },
    close(ws) {
      ws.data.proc?.kill();
      ws.data.drained?.();
    },
  },
});
