import { useCallback, useEffect, useRef, useState } from "react";
import { AnswerText, ask, openSession } from "./client.js";
// client/react.ts
/** Messages that are kept by default; of more the oldest go. */
var MESSAGE_LIMIT = 1e4;
var NAMES = {
	url: true,
	key: true,
	ticket: true,
	WebSocket: true,
	options: true,
	approvals: true,
	grace: true,
	messageLimit: true
};
var IDLE = {
	messages: [],
	isConnected: false,
	state: "idle",
	text: "",
	error: void 0,
	receipt: void 0,
	approvals: []
};
/** One run: gathers what comes and shows it, at most once a tick, as long as it is the component's own. */
var Running = class {
	show;
	limit;
	leaving = new AbortController();
	session;
	view = {
		...IDLE,
		state: "connecting"
	};
	messages = [];
	answer = new AnswerText();
	isDue = false;
	constructor(show, limit) {
		this.show = show;
		this.limit = limit;
	}
	change(part) {
		this.view = {
			...this.view,
			...part
		};
		if (this.isDue) return;
		this.isDue = true;
		queueMicrotask(() => {
			this.isDue = false;
			this.messages.splice(0, Math.max(0, this.messages.length - this.limit));
			this.view.messages = [...this.messages];
			this.show(this.view);
		});
	}
	state = (state) => this.change({
		state,
		isConnected: state === "open" || state === "back"
	});
	line(raw, line) {
		this.answer.take(line);
		this.messages.push(line ? asMessage(line) : raw);
		this.change({ text: this.answer.text });
	}
	/** Have one prompt answered over `/ws/claude`. */
	async ask(prompt, meta, given) {
		const { url, key, ticket, WebSocket, options } = given;
		const onOpen = () => this.state("open");
		const run = ask(prompt, {
			...options,
			url,
			key,
			ticket,
			WebSocket,
			meta,
			onOpen,
			signal: this.leaving.signal
		});
		run.ended.then(({ cause, processes, left, ms }) => {
			this.change({
				state: "closed",
				isConnected: false,
				receipt: {
					cause,
					processes,
					left,
					ms
				}
			});
		});
		for await (const { raw, line } of run) this.line(raw, line);
	}
	/** Have one prompt answered over `/ws/session`. */
	async talk(prompt, meta, given) {
		const { url, key, ticket, WebSocket, options = {}, grace } = given;
		const way = {
			url,
			key,
			ticket,
			WebSocket
		};
		const signal = this.leaving.signal;
		const session = await openSession({
			...way,
			meta,
			options,
			grace,
			signal,
			onState: this.state
		});
		this.session = session;
		session.ended.then(({ reason, close_reason, receipt }) => {
			const counted = {
				processes: receipt?.seen,
				left: receipt?.survivors,
				ms: receipt?.ms
			};
			this.change({
				receipt: {
					cause: reason || close_reason,
					...counted
				},
				approvals: []
			});
		});
		const take = (event) => {
			if (event.type === "line") this.line(event.raw, event.line);
			if (event.type === "approval" && session.approvals.has(event.request_id) && !given.approvals) session.deny(event.request_id, { message: "nobody is asked here" });
			if (event.type !== "gateway") this.change({ approvals: [...session.approvals.values()] });
		};
		for await (const event of session.turn(prompt)) take(event);
		if (session.state !== "closed") session.stop("end");
		for await (const event of session) take(event);
	}
	async go(work) {
		try {
			await work;
		} catch (error) {
			if (!this.leaving.signal.aborted) this.change({
				state: "closed",
				isConnected: false,
				error
			});
			this.leaving.abort();
		}
	}
};
/** Return a line as the door of the original shows it: an assistant's inner message, the outer fields beside it. */
function asMessage(line) {
	const { type, message, ...outer } = line;
	if (type !== "assistant" || typeof message !== "object" || message === null) return line;
	const renamed = Object.entries(outer).map(([name, value]) => [name in message ? `outer_${name}` : name, value]);
	return {
		...message,
		...Object.fromEntries(renamed),
		type: "message"
	};
}
/** Ask a server from a component. Throws a `TypeError` for a name that is none of the options'. */
function useClaudeWebSocket(options = {}) {
	const odd = Object.keys(options).find((name) => !Object.hasOwn(NAMES, name));
	if (odd !== void 0) throw new TypeError(`useClaudeWebSocket takes no \`${odd}\`: there are ${Object.keys(NAMES).join(", ")}`);
	const [view, setView] = useState(IDLE);
	const running = useRef(void 0);
	const given = useRef(options);
	given.current = options;
	const isGone = useRef(false);
	const stop = useCallback(() => running.current?.leaving.abort(), []);
	useEffect(() => {
		isGone.current = false;
		return () => {
			isGone.current = true;
			stop();
		};
	}, [stop]);
	const connect = useCallback((prompt, meta = "ASK") => {
		running.current?.leaving.abort();
		const show = (next) => {
			if (running.current === own) setView(next);
		};
		const own = new Running(show, given.current.messageLimit ?? MESSAGE_LIMIT);
		running.current = own;
		const talks = given.current.approvals || given.current.grace;
		own.change({});
		queueMicrotask(() => isGone.current && own.leaving.abort());
		own.go(talks ? own.talk(prompt, meta, given.current) : own.ask(prompt, meta, given.current));
	}, []);
	const approve = useCallback((id, updatedInput) => {
		const session = running.current?.session;
		if (session?.approvals.has(id)) session.approve(id, { updatedInput });
	}, []);
	const deny = useCallback((id, message) => {
		const session = running.current?.session;
		if (session?.approvals.has(id)) session.deny(id, message === void 0 ? {} : { message });
	}, []);
	return {
		...view,
		connect,
		approve,
		deny,
		stop
	};
}
export { useClaudeWebSocket };
