// A page around the printed hook: it shows `isConnected`, and keeps what was shown and what `handleMessage` was given.
import { createElement, useEffect } from "react";
import { createRoot } from "react-dom/client";
import { useClaudeWebSocket } from "original-hook";

globalThis.frames = [];
globalThis.shown = [];
globalThis.handleMessage = (data) => globalThis.frames.push(data); // the name that the printed hook leaves open

function Page() {
  const { isConnected, connect } = useClaudeWebSocket();
  useEffect(() => {
    globalThis.shown.push(document.getElementById("connected").textContent);
  }, [isConnected]);
  useEffect(() => {
    globalThis.connect = connect;
  }, [connect]);
  return createElement("p", { id: "connected" }, String(isConnected));
}

createRoot(document.getElementById("root")).render(createElement(Page));
