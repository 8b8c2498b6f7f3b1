// The questions of the CLI that wait for a person: which are open, and by what each is settled. Pure.

import { asObject, type Json } from "./wire.js";

/** The CLI asks whether a tool may run. `n`, `raw` and `line` are those of its line. */
export interface Approval {
  type: "approval";
  n: number;
  raw: string;
  line: Json;
  request_id: string;
  tool_name: string;
  input: Json;
  tool_use_id?: string;
  /** Whether it was asked before this client came. */
  pending: boolean;
  [name: string]: unknown;
}

/** An approval is not open any more: it was answered here, or the CLI does not want to know, or it went on without. */
export interface Settled {
  type: "settled";
  request_id: string;
  how: "answered" | "cancelled" | "refused" | "timeout" | "elsewhere";
}

/** Approvals that are kept open; of a CLI that asks more, the oldest is forgotten, as the server does. */
const OPEN_LIMIT = 1000;

export class Approvals {
  readonly open = new Map<string, Approval>();

  /** Return a line as an approval, undefined where it is none, or one that is open already. */
  ask(n: number, raw: string, line: Json | undefined, pending = false): Approval | undefined {
    const request = asObject(line?.["request"]);
    if (!line || line["type"] !== "control_request" || request?.["subtype"] !== "can_use_tool") return undefined;
    const id = String(line["request_id"]);
    if (this.open.has(id)) return undefined;
    const input = asObject(request["input"]) ?? {};
    const tool_name = String(request["tool_name"]);
    const approval: Approval = { ...request, type: "approval", n, raw, line, request_id: id, tool_name, input, pending };
    if (this.open.size >= OPEN_LIMIT) this.open.delete(this.open.keys().next().value as string);
    this.open.set(id, approval);
    return approval;
  }

  settle(id: unknown, how: Settled["how"]): Settled[] {
    return this.open.delete(String(id)) ? [{ type: "settled", request_id: String(id), how }] : [];
  }

  /** Return what a line of the CLI settles. */
  settledBy(line: Json): Settled[] {
    if (line["type"] === "control_cancel_request") return this.settle(line["request_id"], "cancelled");
    if (line["type"] !== "user" || this.open.size === 0) return [];
    const content = asObject(line["message"])?.["content"];
    const used = new Set(Array.isArray(content) ? content.map((block) => block?.tool_use_id) : []);
    const done = [...this.open.values()].filter((one) => one.tool_use_id && used.has(one.tool_use_id));
    return done.flatMap((one) => this.settle(one.request_id, "elsewhere"));
  }

  /** Return what an event of the server settles. */
  settledByEvent(said: Json): Settled[] {
    if (said["event"] === "denied") return this.settle(said["request"], "timeout");
    if (said["event"] === "refused" && said["request_id"]) return this.settle(said["request_id"], "refused");
    return [];
  }
}
