// The client of a trio-claude server, for browsers and Node. See docs/javascript.md.

export { ask, type AskOptions, Run } from "./ask.js";
export type { Approval, Settled } from "./approvals.js";
export {
  Busy,
  ConnectionLost,
  type ErrorFields,
  Overflow,
  Refused,
  RunFailed,
  ServerGone,
  TooLarge,
  TrioClaudeError,
} from "./errors.js";
export { BUFFER_LIMIT } from "./inbox.js";
export type { State } from "./link.js";
export {
  type AttachOptions,
  type Content,
  type GatewayEvent,
  type LineEvent,
  type OpenOptions,
  openSession,
  type Receipt,
  Session,
  type SessionEnded,
  type SessionEvent,
} from "./session.js";
export type { Way, WebSocketClass, WebSocketObject } from "./sockets.js";
export { AnswerText, type Ended, type Json, type Line, parseReason, type SessionOptions, type WireOptions } from "./wire.js";
