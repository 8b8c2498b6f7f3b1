// A page around the hook in StrictMode: it asks as soon as it is mounted, where it has a prompt, keeps what was shown, and
// can be hidden and taken away.
import { Activity, StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useClaudeWebSocket } from "trio-claude/react";
import { Chat } from "documented";

globalThis.shown = [];
globalThis.hook = { messages: [], approvals: [] };

function Asking({ options, prompt, meta }) {
  const hook = useClaudeWebSocket(options);
  const { connect, ...view } = hook;
  globalThis.hook = hook;
  useEffect(() => {
    if (prompt) connect(prompt, meta);
  }, [connect, prompt, meta]);
  useEffect(() => {
    globalThis.shown.push([view.state, view.isConnected]);
  }, [view.state, view.isConnected]);
  return <p>{view.text}</p>;
}

function Hideable(given) {
  const [mode, setMode] = useState("visible");
  globalThis.setMode = setMode;
  return <Activity mode={mode}><Asking {...given} /></Activity>;
}

globalThis.mount = (given) => {
  const root = createRoot(document.getElementById("root"));
  root.render(<StrictMode>{given.chat ? <Chat {...given.chat} /> : <Hideable {...given} />}</StrictMode>);
  return root;
};
globalThis.until = async (check) => {
  for (let tries = 0; !check(); tries += 1) {
    if (tries > 4000) throw new Error(`never: ${check}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
};
