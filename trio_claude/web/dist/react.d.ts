import { type Approval, type Json, type State, type TrioClaudeError, type Way, type WireOptions } from "./client.js";
export interface HookOptions extends Way {
    /** The options of the wire contract, for each run. */
    options?: WireOptions | undefined;
    /** Whether a person here answers what the CLI asks: `approvals`, `approve`, `deny`. */
    approvals?: boolean | undefined;
    /** Seconds for which a run goes on behind a broken connection, which is made anew. */
    grace?: number | undefined;
    messageLimit?: number | undefined;
}
/** What was counted at the end of a run; `left` is null where it can't be proven. */
export interface HookReceipt {
    cause: string;
    processes: number | undefined;
    left: number | null | undefined;
    ms: number | undefined;
}
export interface View {
    /** The CLI's lines as objects, an assistant's as `{type: "message", content: […]}`; a line that is no JSON as text. */
    messages: (Json | string)[];
    isConnected: boolean;
    state: State | "idle";
    /** The answer so far; with the option `partial` piece by piece. */
    text: string;
    error: TrioClaudeError | Error | undefined;
    receipt: HookReceipt | undefined;
    /** The approvals that are open; none without the option. */
    approvals: Approval[];
}
export interface Hook extends View {
    /** Send a prompt; a run that goes on is ended. */
    connect(prompt: string, meta?: string): void;
    approve(id: string, updatedInput?: Json): void;
    deny(id: string, message?: string): void;
    /** End the run; what was said stays. */
    stop(): void;
}
/** Ask a server from a component. Throws a `TypeError` for a name that is none of the options'. */
export declare function useClaudeWebSocket(options?: HookOptions): Hook;
