// client/errors.ts
/**
* The root of what this client throws. `code` is a word for programs, `reason` the close reason or the server's
* text, `closeCode` the WebSocket's, undefined where the connection stays; `said` is the server's own object.
*/
var TrioClaudeError = class extends Error {
	code;
	reason;
	closeCode;
	said;
	constructor(message, { code = "error", reason = message, closeCode, said = {} } = {}) {
		super(message);
		this.name = new.target.name;
		this.code = code;
		this.reason = reason;
		this.closeCode = closeCode;
		this.said = said;
	}
};
/** The server took no part of it: a bad message (1008), a `refused` event, or HTTP 401 or 403 at the door. */
var Refused = class extends TrioClaudeError {};
/** A message was larger than the server takes (1009). */
var TooLarge = class extends TrioClaudeError {};
/** The run came to a bad end (1011). */
var RunFailed = class extends TrioClaudeError {
	/** The CLI's exit status, null where it has none. */
	get exitStatus() {
		return numberOr(this.said["exit_status"], null);
	}
};
/** The server goes down (1012). */
var ServerGone = class extends TrioClaudeError {};
/** The server is full, or a limit is reached (1013): try again in `retryAfter` seconds. */
var Busy = class extends TrioClaudeError {
	get retryAfter() {
		return numberOr(this.said["retry_after"], 1);
	}
};
/** The connection broke (1006 and the like), or there never was one. */
var ConnectionLost = class extends TrioClaudeError {};
/** More came than was read: the unread lines went over `limit` characters, and the run was left. */
var Overflow = class extends TrioClaudeError {
	limit;
	constructor(limit) {
		super(`more than bufferLimit (${limit} characters) came unread`, { code: "overflow" });
		this.limit = limit;
	}
};
var CLOSES = {
	1008: [Refused, "refused"],
	1009: [TooLarge, "too-large"],
	1011: [RunFailed, "failed"],
	1012: [ServerGone, "server-gone"],
	1013: [Busy, "busy"]
};
/** Return what a close means, undefined for a good one; `said` is the last error that the server told. */
function errorOfClose(closeCode, reason, said = {}) {
	if (closeCode === 1e3) return said["event"] === "refused" ? void 0 : errorOfEnd(closeCode, {
		reason,
		...said
	});
	const [kind, word] = CLOSES[closeCode] ?? [ConnectionLost, "lost"];
	const code = typeof said["code"] === "string" ? said["code"] : word;
	return new kind((typeof said["error"] === "string" ? said["error"] : reason) || "the connection broke", {
		code,
		reason,
		closeCode,
		said
	});
}
/** Return what a run's end means by its own words, undefined for a good one. */
function errorOfEnd(closeCode, said) {
	if (typeof said["error"] !== "string") return void 0;
	const [kind, code] = said["reason"] === "drained" ? [ServerGone, "server-gone"] : [RunFailed, "failed"];
	return new kind(said["error"], {
		code,
		reason: String(said["reason"]),
		closeCode,
		said
	});
}
/** Return a `refused` event as an error. */
function errorOfRefusal(said) {
	return new ("retry_after" in said ? Busy : Refused)(String(said["error"]), {
		code: String(said["code"]),
		said
	});
}
/** Return an HTTP refusal as an error. */
function errorOfStatus(status, said = {}) {
	const kind = status === 401 || status === 403 ? Refused : status === 429 || status === 503 ? Busy : ConnectionLost;
	const code = typeof said["code"] === "string" ? said["code"] : `http-${status}`;
	return new kind(typeof said["error"] === "string" ? said["error"] : `the server answered HTTP ${status}`, {
		code,
		said
	});
}
function numberOr(value, other) {
	return typeof value === "number" ? value : other;
}
// client/inbox.ts
/** Characters of unread lines that are kept by default: twice the longest line that a server takes. */
var BUFFER_LIMIT = 33554432;
/** Characters that a thing counts for beside its own, of which it may have none. */
var EACH = 100;
/** A queue with one reader; `close` ends it behind what is there, `fail` at once. */
var Inbox = class {
	limit;
	things = [];
	first = 0;
	size = 0;
	waiting = [];
	closed = false;
	error;
	/** Whether anybody has ever read. */
	isRead = false;
	constructor(limit) {
		this.limit = limit;
	}
	/** Put a thing of so many characters in; return false, and take nothing, where it would go over the limit. */
	push(thing, characters) {
		if (this.closed) return true;
		const waiter = this.waiting.shift();
		if (waiter) {
			waiter.resolve({
				value: thing,
				done: false
			});
			return true;
		}
		const size = characters + EACH;
		if (this.size > 0 && this.size + size > this.limit) return false;
		this.things.push({
			thing,
			size
		});
		this.size += size;
		return true;
	}
	/** Say that no more comes; whoever reads to the end gets the error, once, where there is one. */
	close(error) {
		if (this.closed) return;
		this.closed = true;
		this.error = error;
		for (const waiter of this.waiting.splice(0)) this.settle(waiter);
	}
	/** Let go what is unread, and say that no more comes. */
	fail(error) {
		this.drop();
		if (this.closed) this.error = error;
		this.close(error);
	}
	/** Let go what is unread because of the limit. */
	overflow() {
		const error = new Overflow(this.limit);
		this.fail(error);
		return error;
	}
	next() {
		this.isRead = true;
		const head = this.things[this.first];
		if (head) {
			this.shift(head.size);
			return Promise.resolve({
				value: head.thing,
				done: false
			});
		}
		return new Promise((resolve, reject) => {
			if (this.closed) this.settle({
				resolve,
				reject
			});
			else this.waiting.push({
				resolve,
				reject
			});
		});
	}
	settle(waiter) {
		const error = this.error;
		this.error = void 0;
		if (error === void 0) waiter.resolve({
			value: void 0,
			done: true
		});
		else waiter.reject(error);
	}
	/** Forget the head; the list is cut only now and again, so that each reading costs the same. */
	shift(size) {
		this.size -= size;
		this.first += 1;
		if (this.first < 1024 && this.first < this.things.length) return;
		this.things.splice(0, this.first);
		this.first = 0;
	}
	drop() {
		this.things = [];
		this.first = this.size = 0;
	}
};
// client/names.ts
var WAY = {
	url: true,
	key: true,
	ticket: true,
	WebSocket: true
};
var WIRE = {
	model: true,
	system_prompt: true,
	append_system_prompt: true,
	max_turns: true,
	max_budget_usd: true,
	effort: true,
	partial: true,
	resume: true,
	temperature: true,
	max_output_tokens: true,
	json_schema: true,
	timeout: true,
	workspace: true,
	tools: true,
	allowed_tools: true,
	disallowed_tools: true,
	permission_mode: true,
	mcp_servers: true,
	fallback_model: true,
	max_thinking_tokens: true
};
var OF_SESSION = {
	...WIRE,
	fork: true,
	recall: true,
	on_disconnect: true
};
var ASK = {
	...WAY,
	...WIRE,
	meta: true,
	signal: true,
	bufferLimit: true,
	onNote: true,
	onOpen: true
};
var OPEN$1 = {
	...WAY,
	meta: true,
	options: true,
	grace: true,
	attach: true,
	signal: true,
	onState: true,
	onEvent: true,
	bufferLimit: true
};
var ATTACH = {
	run: true,
	after: true,
	as: true
};
/** Take an object with names that are known. Throws a `TypeError` that names any other. */
function checkNames(what, given, known) {
	if (typeof given !== "object" || given === null) throw new TypeError(`${what} takes an object, not ${given === null ? "null" : `a ${typeof given}`}`);
	const odd = Object.keys(given).find((name) => !Object.hasOwn(known, name));
	if (odd === void 0) return;
	const why = Object.hasOwn(known, "options") && Object.hasOwn(OF_SESSION, odd) ? "it is one of `options`" : `there are ${Object.keys(known).join(", ")}`;
	throw new TypeError(`${what} takes no \`${odd}\`: ${why}`);
}
/** Take what `openSession` is given, with what lies in it. Throws as `checkNames` does. */
function checkOpen(given) {
	checkNames("openSession", given, OPEN$1);
	checkNames("options", given.options ?? {}, OF_SESSION);
	checkNames("attach", given.attach ?? {}, ATTACH);
}
// client/wire.ts
var GRAMMAR = /^(.*); (\d+) process(?:es)?, (?:(\d+) left|unproven), (\d+) ms$/;
/** Read `CAUSE; N processes, M left, T ms`. */
function parseReason(code, reason) {
	const found = GRAMMAR.exec(reason);
	if (!found) return {
		code,
		reason,
		cause: reason
	};
	const [, cause = "", processes, left, ms] = found;
	const ended = {
		code,
		reason,
		cause,
		processes: Number(processes),
		left: left === void 0 ? null : Number(left),
		ms: Number(ms)
	};
	const status = /^(exit|signal) (\d+)$/.exec(cause);
	if (status) ended[status[1] === "exit" ? "exit_status" : "signal"] = Number(status[2]);
	return ended;
}
/** Return a text as an object, undefined where it is none. */
function parseObject(text) {
	try {
		return asObject(JSON.parse(text));
	} catch {
		return;
	}
}
function asObject(value) {
	return typeof value === "object" && value !== null && !Array.isArray(value) ? value : void 0;
}
/** Whether a frame of `/ws/claude` is the server's own: an object without a type. */
function isNote(said) {
	return said !== void 0 && !("type" in said) && ("info" in said || "error" in said || "stderr" in said);
}
/** Return the text of an assistant line, or of an inner message. */
function textOf(line) {
	const content = (asObject(line["message"]) ?? line)["content"];
	if (typeof content === "string") return content;
	if (!Array.isArray(content)) return "";
	return content.map((block) => block?.type === "text" ? String(block.text) : "").join("");
}
/** Return the piece of text that a `stream_event` line brings, empty where it brings none. */
function deltaOf(line) {
	const delta = asObject(asObject(line["event"])?.["delta"]);
	return delta?.["type"] === "text_delta" ? String(delta["text"]) : "";
}
/** Follows the lines of one answer and knows its text so far; a `result` line has the last word. */
var AnswerText = class {
	text = "";
	done = "";
	piece = "";
	take(line) {
		if (line?.["type"] === "stream_event" && !line["parent_tool_use_id"]) this.piece = line["abandoned_blocks"] ? "" : this.piece + deltaOf(line);
		else if (line?.["type"] === "assistant" && !line["parent_tool_use_id"]) {
			this.done += textOf(line);
			this.piece = "";
		} else if (line?.["type"] === "result" && typeof line["result"] === "string") {
			this.done = line["result"];
			this.piece = "";
		} else return;
		this.text = this.done + this.piece;
	}
};
// client/sockets.ts
var PROTOCOL = "trio-claude.v1";
var OPEN = 1;
/** Milliseconds for a handshake, for an answer to a request, and for a close that nobody answers. */
var CONNECT_MS = 1e4;
var ASK_MS = 5e3;
var CLOSE_MS = 2e3;
var ERROR_MS = 100;
var BROKEN = 1006;
/** A connection that was opened. */
var Socket = class {
	socket;
	settle;
	closing;
	constructor(socket, settle) {
		this.socket = socket;
		this.settle = settle;
	}
	/** Take that it is over. */
	forget() {
		clearTimeout(this.closing);
	}
	/** Say something; what can't go out any more is lost with the connection. */
	send(text) {
		if (this.socket.readyState === OPEN) this.socket.send(text);
	}
	/** Close; a server that does not answer is not waited for. */
	close(reason) {
		this.socket.close(1e3);
		this.closing ??= setTimeout(() => this.settle({
			code: 1e3,
			reason
		}), CLOSE_MS);
	}
	/** Leave a connection that may be dead, at once. */
	cut(reason) {
		this.settle({
			code: BROKEN,
			reason
		});
		this.socket.close(1e3);
	}
};
/** Connect, and hear to the end; never throws for what the network does. A signal ends it at any point. */
async function hold(way, path, handlers, signal, ms = CONNECT_MS) {
	const kind = findClass(way);
	const base = baseOf(way.url);
	const stopped = {
		code: BROKEN,
		reason: "stopped"
	};
	let protocols;
	await Promise.resolve();
	if (signal.aborted) return stopped;
	try {
		protocols = await within(credentials(way, base), ms, signal);
	} catch (error) {
		return told(failed(error), (known) => hint(base, known), signal);
	}
	if (signal.aborted) return stopped;
	return told(await listen(kind, `${base.replace(/^http/, "ws")}${path}`, protocols, handlers, signal, ms), (error) => explain(way, base, error), signal);
}
/** Have an error say more, where somebody knows more in time. */
async function told(closed, more, signal) {
	const { error } = closed;
	if (!error || signal.aborted) return closed;
	return {
		...closed,
		error: await within(more(error), ASK_MS, signal).catch(() => error)
	};
}
function failed(error) {
	const known = error instanceof TrioClaudeError ? error : new ConnectionLost(`can't get a ticket: ${text(error)}`);
	return {
		code: BROKEN,
		reason: known.message,
		error: known
	};
}
function text(error) {
	return error instanceof Error ? error.message : String(error);
}
function listen(kind, address, protocols, handlers, signal, ms) {
	return new Promise((resolve) => {
		const never = (reason) => ({
			code: BROKEN,
			reason,
			error: ofStatus(reason) ?? new ConnectionLost(reason, LOST$1)
		});
		let socket;
		try {
			socket = new kind(address, protocols);
		} catch (error) {
			return resolve(never(`can't reach ${address}: ${text(error)}`));
		}
		let isOpen = false;
		let why = "";
		const settle = (closed) => {
			clearTimeout(timer);
			opened.forget();
			signal.removeEventListener("abort", stop);
			socket.onopen = socket.onmessage = socket.onclose = null;
			resolve(closed);
		};
		const stop = () => isOpen ? opened.close("stopped") : opened.cut("stopped");
		const opened = new Socket(socket, settle);
		const unreachable = () => `can't reach ${address}${why && `: ${why}`}`;
		let timer = setTimeout(() => {
			settle(never(`no handshake with ${address} within ${ms / 1e3} s`));
			socket.close();
		}, ms);
		signal.addEventListener("abort", stop);
		socket.onopen = () => {
			isOpen = true;
			clearTimeout(timer);
			handlers.open(opened);
		};
		socket.onmessage = (event) => handlers.message(String(event.data));
		socket.onerror = (event) => {
			why = typeof event?.message === "string" ? event.message : "";
			if (isOpen) return;
			clearTimeout(timer);
			timer = setTimeout(() => settle(never(unreachable())), ERROR_MS);
		};
		socket.onclose = (event) => {
			if (isOpen) settle({
				code: event.code || BROKEN,
				reason: event.reason
			});
			else settle(never(unreachable()));
		};
	});
}
var LOST$1 = {
	code: "lost",
	closeCode: BROKEN
};
/** The package `ws`, Bun and Deno say with what status a handshake was refused: return that as an error. */
function ofStatus(reason) {
	const status = /(?:server response|status code): (\d{3})/.exec(reason)?.[1];
	return status ? errorOfStatus(Number(status)) : void 0;
}
/** Return the class to connect with. Throws where there is none. */
function findClass(way) {
	const found = way.WebSocket ?? globalThis.WebSocket;
	if (found) return found;
	throw new TrioClaudeError("there is no WebSocket here: use Node 22 or later, or node --experimental-websocket, or give `WebSocket` from the package ws", { code: "no-websocket" });
}
/** Whether this is a page, or a worker of one. */
function page() {
	const { location } = globalThis;
	return location && location.origin !== "null" ? location : void 0;
}
/** Return a server's address as `http(s)://HOST[/PREFIX]`. Throws for what is none. */
function baseOf(given) {
	let url;
	try {
		url = new URL(given ?? page()?.origin ?? "http://127.0.0.1:3000", page()?.href);
	} catch {
		throw new TrioClaudeError("url: not an address", { code: "url" });
	}
	const scheme = {
		"ws:": "http:",
		"wss:": "https:"
	}[url.protocol] ?? url.protocol;
	if (!/^https?:$/.test(scheme) || url.username || url.password) throw new TrioClaudeError("url: http, https, ws or wss, without a name or password", { code: "url" });
	return `${scheme}//${url.host}${url.pathname.replace(/\/(ws\/(claude|session)\/?)?$/, "")}`;
}
/** Return the subprotocols that say who we are. */
async function credentials(way, base) {
	if (way.ticket !== void 0) return [PROTOCOL, `ticket.${base64url(typeof way.ticket === "function" ? await way.ticket() : way.ticket)}`];
	if (!way.key) return [PROTOCOL];
	checkKey(way.key);
	if (!page()) return [PROTOCOL, `bearer.${base64url(way.key)}`];
	return [PROTOCOL, `ticket.${base64url(await buyTicket(base, way.key))}`];
}
function checkKey(key) {
	if (!/^[!-~]+$/.test(key)) throw new Refused("the key has characters that no key has", { code: "credentials" });
}
async function buyTicket(base, key) {
	const headers = { Authorization: `Bearer ${key}` };
	return String((await request(`${base}/api/ticket`, {
		method: "POST",
		headers
	}))["ticket"]);
}
/** Return what the server answers. Throws what it refuses, and what `fetch` does. */
async function request(address, init = {}) {
	const answer = await fetch(address, {
		...init,
		signal: AbortSignal.timeout(ASK_MS)
	});
	const said = await answer.json().then(asObject, () => void 0) ?? {};
	const after = Number(answer.headers.get("Retry-After"));
	if (!answer.ok) throw errorOfStatus(answer.status, after > 0 ? {
		retry_after: after,
		...said
	} : said);
	return said;
}
/** A browser says of a refused handshake only that there was none, `ws`, Bun and Deno only its status: ask over HTTP why. */
async function explain(way, base, error) {
	try {
		if (way.key) await buyTicket(base, way.key);
		else if ((await request(`${base}/notice`))["credentials"] === true && way.ticket === void 0) return new Refused("the server wants a key or token", { code: "credentials" });
	} catch (refusal) {
		if (refusal instanceof Refused || refusal instanceof Busy) return refusal;
	}
	return hint(base, error);
}
/** A browser tells a page of a refusal of its origin only that nothing came: look whether the server is there for others. */
async function hint(base, error) {
	const own = page()?.origin;
	if (!own || new URL(base).origin === own || !(error instanceof ConnectionLost)) return error;
	const answers = (mode) => fetch(`${base}/healthz`, {
		mode,
		signal: AbortSignal.timeout(ASK_MS)
	}).then(() => true, () => false);
	if (await answers("cors") || !await answers("no-cors")) return error;
	return new ConnectionLost(`${error.message}: something answers there, but not to a page of ${own}; the server's operator can name that with --allow-origin`, LOST$1);
}
function base64url(text) {
	return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
/** Wait for a promise for so long at most, and not behind a signal. */
async function within(promise, ms, signal) {
	let done = () => void 0;
	const over = new Promise((_, reject) => {
		const timer = setTimeout(() => reject(new ConnectionLost("no ticket in time", LOST$1)), ms);
		const stop = () => reject(new ConnectionLost("stopped", LOST$1));
		if (signal.aborted) stop();
		signal.addEventListener("abort", stop);
		done = () => {
			clearTimeout(timer);
			signal.removeEventListener("abort", stop);
		};
	});
	return Promise.race([promise, over]).finally(() => done());
}
// client/ask.ts
/** Notes of the server that a run keeps. */
var NOTES = 1e3;
/**
* What comes back for one prompt: iterate over the CLI's lines, or wait for `text`.
*
* A bad end is thrown where the program iterates, and by `text`; `ended` never throws. Who does not iterate loses
* nothing but lines: over the limit they are let go, and only who comes to read them then hears so.
*/
var Run = class {
	/** The final answer's text. */
	text;
	/** How it ended, with what the server counted. */
	ended;
	/** What the server itself said, at most a thousand. */
	notes = [];
	lines;
	answer = new AnswerText();
	leaving = new AbortController();
	failure;
	error = {};
	n = 0;
	/** @internal */
	constructor(prompt, given) {
		checkNames("ask", given, ASK);
		const { url, key, ticket, WebSocket, signal, bufferLimit, onNote, onOpen, meta = "ASK", ...rest } = given;
		const way = {
			url,
			key,
			ticket,
			WebSocket
		};
		findClass(way);
		baseOf(url);
		this.lines = new Inbox(bufferLimit ?? 33554432);
		const first = JSON.stringify({
			meta,
			...rest,
			prompt
		});
		const abort = () => this.leave(signal?.reason);
		if (signal?.aborted) abort();
		signal?.addEventListener("abort", abort);
		const open = (socket) => {
			socket.send(first);
			onOpen?.();
		};
		const closed = hold(way, "/ws/claude?frames=verbatim", {
			open,
			message: (text) => this.take(text, onNote)
		}, this.leaving.signal);
		this.ended = closed.then((end) => this.finish(end)).finally(() => signal?.removeEventListener("abort", abort));
		this.text = this.ended.then(() => {
			if (this.failure !== void 0) throw this.failure;
			return this.answer.text;
		});
		this.text.catch(() => void 0);
	}
	/** End the run; what was said stays, and no error is thrown. */
	stop() {
		this.leave(void 0);
	}
	async *[Symbol.asyncIterator]() {
		try {
			for (let next = await this.lines.next(); !next.done; next = await this.lines.next()) yield next.value;
		} finally {
			this.stop();
		}
	}
	leave(why) {
		if (this.leaving.signal.aborted) return;
		this.failure ??= why;
		this.leaving.abort();
		if (why === void 0) this.lines.close();
		else this.lines.fail(why);
	}
	take(raw, onNote) {
		if (this.leaving.signal.aborted) return;
		const line = parseObject(raw);
		if (isNote(line)) {
			if ("error" in line) this.error = line;
			if (this.notes.length < NOTES) this.notes.push(line);
			onNote?.(line);
			return;
		}
		this.answer.take(line);
		this.n += 1;
		if (this.lines.push({
			n: this.n,
			raw,
			line
		}, raw.length)) return;
		const over = this.lines.overflow();
		if (this.lines.isRead) this.leave(over);
	}
	finish(closed) {
		const stopped = this.leaving.signal.aborted;
		const error = stopped ? void 0 : closed.error ?? errorOfClose(closed.code, closed.reason, this.error);
		this.failure ??= error;
		this.lines.close(error);
		this.leaving.abort();
		const ended = parseReason(closed.code, closed.reason || (stopped ? "stopped" : ""));
		const known = this.failure instanceof TrioClaudeError ? this.failure : error;
		return known ? {
			...ended,
			error: known
		} : ended;
	}
};
/** Send a prompt; the rest of `options` are those of the wire contract. */
function ask(prompt, options = {}) {
	return new Run(prompt, options);
}
// client/approvals.ts
/** Approvals that are kept open; of a CLI that asks more, the oldest is forgotten, as the server does. */
var OPEN_LIMIT = 1e3;
var Approvals = class {
	open = /* @__PURE__ */ new Map();
	/** Return a line as an approval, undefined where it is none, or one that is open already. */
	ask(n, raw, line, pending = false) {
		const request = asObject(line?.["request"]);
		if (!line || line["type"] !== "control_request" || request?.["subtype"] !== "can_use_tool") return void 0;
		const id = String(line["request_id"]);
		if (this.open.has(id)) return void 0;
		const input = asObject(request["input"]) ?? {};
		const tool_name = String(request["tool_name"]);
		const approval = {
			...request,
			type: "approval",
			n,
			raw,
			line,
			request_id: id,
			tool_name,
			input,
			pending
		};
		if (this.open.size >= OPEN_LIMIT) this.open.delete(this.open.keys().next().value);
		this.open.set(id, approval);
		return approval;
	}
	settle(id, how) {
		return this.open.delete(String(id)) ? [{
			type: "settled",
			request_id: String(id),
			how
		}] : [];
	}
	/** Return what a line of the CLI settles. */
	settledBy(line) {
		if (line["type"] === "control_cancel_request") return this.settle(line["request_id"], "cancelled");
		if (line["type"] !== "user" || this.open.size === 0) return [];
		const content = asObject(line["message"])?.["content"];
		const used = new Set(Array.isArray(content) ? content.map((block) => block?.tool_use_id) : []);
		return [...this.open.values()].filter((one) => one.tool_use_id && used.has(one.tool_use_id)).flatMap((one) => this.settle(one.request_id, "elsewhere"));
	}
	/** Return what an event of the server settles. */
	settledByEvent(said) {
		if (said["event"] === "denied") return this.settle(said["request"], "timeout");
		if (said["event"] === "refused" && said["request_id"]) return this.settle(said["request_id"], "refused");
		return [];
	}
};
// client/said.ts
/** Characters of what was said that are kept beside the last message, to be said again where it was not heard. */
var OUTBOX_LIMIT = 1048576;
var Said = class {
	limit;
	texts = [];
	size = 0;
	first = 0;
	nextIndex = 0;
	/** @param limit 0 where nothing is ever said again. */
	constructor(limit) {
		this.limit = limit;
	}
	/** Take a message. Throws where too much was not said yet. */
	add(text) {
		const waiting = this.texts.slice(this.nextIndex - this.first).reduce((size, one) => size + one.length, 0);
		if (this.limit && waiting && waiting + text.length > this.limit) throw new ConnectionLost("the connection is broken, and too much waits for the next one", { code: "lost" });
		this.texts.push(text);
		this.size += text.length;
	}
	/** Return what is to be said next, and take that it is being said; undefined where all was. */
	next() {
		const text = this.texts[this.nextIndex - this.first];
		if (text !== void 0) this.nextIndex += 1;
		return text;
	}
	/** Keep of what was said the last, and of those before as much as the limit allows. */
	forget() {
		while (this.first < this.nextIndex && (!this.limit || this.size > this.limit && this.texts.length > 1)) this.drop();
	}
	/** Go back to what was not heard. Throws where that is not kept any more. */
	rewind(heard) {
		if (heard > this.nextIndex) throw new ConnectionLost("the server has heard more than was said", { code: "lost" });
		while (this.first < heard) this.drop();
		if (heard < this.first) throw new ConnectionLost("what was said last was not heard, and is not kept any more", { code: "lost" });
		this.nextIndex = heard;
	}
	drop() {
		this.size -= (this.texts.shift() ?? "").length;
		this.first += 1;
	}
};
// client/link.ts
/** Close codes behind which the run may still be there: nobody said that it is over. */
var LOST = /* @__PURE__ */ new Set([
	1001,
	1005,
	1006
]);
/** Those of a server that goes down, or has no way to the run just now; without an `ended` the run may still be there. */
var NOT_NOW = /* @__PURE__ */ new Set([1012, 1013]);
/** Codes of refusals that a close comes behind; behind `attached` all others are of one message, and the run goes on. */
var CLOSING = /* @__PURE__ */ new Set([
	"draining",
	"journal",
	"no-answer"
]);
/** Milliseconds for which a connection to the run holds that is one, though no line comes; a failing server is quicker. */
var STEADY = 100;
/** Bytes of a character at the most, as it travels. */
var BYTES = 3;
/** Milliseconds between two tries to come back; they double from the first to the longest, and vary by half. */
var FIRST_WAIT = 50;
var LONGEST_WAIT = 5e3;
/** Milliseconds between two looks at the clock; and so late that the machine has slept: a hidden tab looks once a minute. */
var LOOK_MS = 5e3;
var SLEPT_MS = 9e4;
var Link = class {
	way;
	first;
	grace;
	listener;
	/** The run's id, empty until there is one and once it is over. */
	run = "";
	isOver = false;
	lines = 0;
	role = "owner";
	isAttached = false;
	wasThere = false;
	isEnded = false;
	isAhead = false;
	refusal;
	/** A refusal that may be for a moment, and the close behind it. */
	kept;
	last;
	failure;
	socket;
	current;
	until = Infinity;
	back = Infinity;
	wait = FIRST_WAIT;
	asked = 0;
	limit = Infinity;
	state;
	answerTimer;
	wake = () => void 0;
	looked = Date.now();
	token = newToken();
	said;
	leaving = new AbortController();
	constructor(way, first, grace, listener) {
		this.way = way;
		this.first = first;
		this.grace = grace;
		this.listener = listener;
		this.said = new Said(grace ? OUTBOX_LIMIT : 0);
		if (first["op"] === "attach") {
			this.run = String(first["run"]);
			this.lines = Number(first["after"] ?? 0);
			this.role = first["as"];
		}
	}
	/** Connect, and hear to the end; return how it ended, and the error where it was no good end. */
	async go() {
		const online = () => this.reconsider();
		const window = globalThis;
		window.addEventListener?.("online", online);
		const looking = this.grace ? setInterval(() => this.look(), LOOK_MS) : void 0;
		try {
			this.tell("connecting");
			let closed = await this.connect(this.first);
			if (closed.error && (this.first["op"] === "start" || closed.error instanceof Refused)) this.isOver = true;
			while (this.grace && this.run && !this.isOver) closed = await this.comeBack(this.grace, closed);
			if (this.kept) this.listener.event(this.kept.said, this.kept.size);
			return this.conclude(closed);
		} finally {
			this.isOver = true;
			clearInterval(looking);
			window.removeEventListener?.("online", online);
			this.tell("closed");
		}
	}
	/** Say something, now or on the next connection. Throws once it is over, or where it is too long, or too much waits. */
	send(said) {
		if (this.isOver || this.isEnded || !this.socket && !this.grace) throw new TrioClaudeError("the session is over", { code: "over" });
		this.said.add(this.checked(JSON.stringify(said)));
		this.speak();
	}
	/** Return a message that the server takes: one that is too long would end the connection. */
	checked(text) {
		const bytes = text.length * BYTES > this.limit ? new TextEncoder().encode(text).length : 0;
		if (bytes <= this.limit) return text;
		throw new Refused(`message must be at most ${this.limit} bytes, not ${bytes}`, { code: "bad-message" });
	}
	/** Whether a run was asked for that may begin before a last word is heard. */
	get isStarting() {
		return this.socket !== void 0 && !this.isAttached && !this.last;
	}
	/** Leave, for `why` where that is an error. */
	leave(why) {
		this.failure ??= why;
		this.isOver = true;
		this.leaving.abort();
		this.wake();
	}
	/** Say what was not said yet, in order. */
	speak() {
		for (let text; this.socket && (text = this.said.next()) !== void 0; this.said.forget()) this.socket.send(text);
	}
	/** Hold one connection from its first message to its end. */
	async connect(first) {
		this.isAttached = this.isAhead = false;
		this.back = Infinity;
		const ms = Math.min(CONNECT_MS, this.until - performance.now());
		const open = (socket) => this.open(socket, first, ms);
		const handlers = {
			open,
			message: (text) => this.hear(text)
		};
		const closed = await hold(this.way, "/ws/session", handlers, this.leaving.signal, ms);
		clearTimeout(this.answerTimer);
		this.socket = this.current = void 0;
		if (closed.error instanceof Busy) this.waitAsAsked(closed.error.said["retry_after"]);
		if (closed.error) return closed;
		this.isOver ||= !(this.isAhead || LOST.has(closed.code) || NOT_NOW.has(closed.code));
		if (this.kept && !LOST.has(closed.code)) this.kept.closed = closed;
		return closed;
	}
	open(socket, first, ms) {
		this.current = socket;
		socket.send(JSON.stringify({
			...first,
			client: this.token
		}));
		if (first["op"] === "start") this.socket = socket;
		else this.waitFor("answer to attach", ms);
	}
	waitFor(what, ms) {
		clearTimeout(this.answerTimer);
		this.answerTimer = setTimeout(() => this.current?.cut(`no ${what}`), ms);
	}
	hear(raw) {
		if (this.isOver) return;
		const said = parseObject(raw);
		if (said?.["type"] === "gateway") {
			this.note(said);
			if (!this.isAhead && !this.keeps(said, raw.length)) this.listener.event(said, raw.length);
			return;
		}
		this.lines += 1;
		this.until = Infinity;
		this.wait = FIRST_WAIT;
		this.listener.line(this.lines, raw, said);
	}
	/** Take from what the server says what it takes to come back, and what was heard. */
	note(said) {
		switch (said["event"]) {
			case "hello":
				this.limit = Number(asObject(said["limits"])?.["message"] ?? Infinity);
				return;
			case "started":
				this.isAttached = this.wasThere = true;
				this.run = String(said["run"]);
				return this.tell("open");
			case "attached": return this.attached(said);
			case "gap":
				this.lines = Math.max(this.lines, Number(said["to"]));
				return;
			case "refused":
				if (!this.isAttached || CLOSING.has(said["code"])) this.refuse(said);
				return;
			case "ended":
				this.last = said;
				this.run = "";
		}
	}
	/** Keep what may be a refusal for a moment: it is told only where it was the last word. */
	keeps(said, size) {
		if (said["event"] !== "refused" || !this.grace || !this.run) return false;
		if (this.isAttached && !CLOSING.has(said["code"])) return false;
		this.kept = {
			said,
			size
		};
		this.waitFor("close behind a refusal", CLOSE_MS);
		this.waitAsAsked(said["retry_after"]);
		return true;
	}
	/** Take the seconds that a server asks for before the next try. */
	waitAsAsked(seconds) {
		this.asked = typeof seconds === "number" && seconds > 0 ? seconds * 1e3 : 0;
	}
	refuse(said) {
		this.refusal = said;
		const last = said["last"];
		if (said["code"] !== "ahead" || typeof last !== "number" || last >= this.lines) return;
		if (!this.wasThere) return;
		this.lines = last;
		this.isAhead = true;
		this.refusal = void 0;
	}
	/** Be there; say what was not heard, unless the run is over, and only told again. */
	attached(said) {
		clearTimeout(this.answerTimer);
		const isBack = this.wasThere;
		this.isAttached = this.wasThere = true;
		this.isEnded = Boolean(said["ended"]);
		this.role = said["role"];
		this.back = performance.now();
		this.refusal = this.kept = void 0;
		if (!this.isEnded) {
			try {
				this.said.rewind(Number(said["heard"] ?? 0));
			} catch (error) {
				return this.leave(error);
			}
			this.socket = this.current;
			this.speak();
		}
		this.tell(isBack ? "back" : "open");
	}
	/**
	* Come back once, and hold that connection; give up where that lasts too long, or the server says no for good.
	* A connection that breaks again at once, before a line, is none: time and pauses go on from the one before.
	*/
	async comeBack(grace, lost) {
		if (this.until === Infinity || performance.now() > this.back + STEADY) {
			this.until = performance.now() + grace * 1e3;
			this.wait = FIRST_WAIT;
		}
		this.tell("lost");
		let closed = lost;
		while (!this.isOver && performance.now() < this.until) {
			await this.pause(Math.min(this.nextPause(), this.until - performance.now()));
			if (this.isOver || performance.now() >= this.until) break;
			const attach = {
				type: "gateway",
				op: "attach",
				run: this.run,
				after: this.lines,
				as: this.role
			};
			closed = await this.connect(attach);
			if (!closed.error) return closed;
			if (!(closed.error instanceof Refused)) continue;
			this.kept = void 0;
			break;
		}
		this.isOver = true;
		return this.kept?.closed ?? closed;
	}
	/** Return the milliseconds until the next try: a little more than a server has asked for, else longer each time. */
	nextPause() {
		const asked = this.asked;
		this.asked = 0;
		if (asked) return asked * (1 + Math.random() / 2);
		const wait = this.wait;
		this.wait = Math.min(2 * wait, LONGEST_WAIT);
		return wait * (.5 + Math.random() / 2);
	}
	pause(ms) {
		return new Promise((resolve) => {
			const timer = setTimeout(resolve, ms);
			this.wake = () => {
				clearTimeout(timer);
				resolve();
			};
		});
	}
	/** Look whether this program has slept, with its machine or as a tab that was frozen. */
	look() {
		const before = this.looked;
		this.looked = Date.now();
		if (this.looked - before > SLEPT_MS) this.reconsider();
	}
	/** The network is another one, maybe, or was away: a connection over the old one can be dead without a word. */
	reconsider() {
		this.wake();
		if (this.grace && this.isAttached) this.current?.cut("the connection may be dead");
	}
	conclude(closed) {
		const left = this.leaving.signal.aborted;
		const error = this.failure ?? (left ? void 0 : closed.error ?? this.told(closed));
		return error ? {
			...closed,
			error
		} : {
			code: closed.code,
			reason: closed.reason
		};
	}
	/** Judge by the close, but by the run's end where the connection broke behind it. */
	told(closed) {
		if (this.last && LOST.has(closed.code)) return errorOfEnd(closed.code, this.last);
		return errorOfClose(closed.code, closed.reason, this.last ?? this.refusal);
	}
	tell(state) {
		if (state === this.state) return;
		this.state = state;
		this.listener.state(state);
	}
};
function newToken() {
	return Array.from(crypto.getRandomValues(/* @__PURE__ */ new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
/** Whether a message is refused, or who said it: neither what another message is, nor what comes before the end. */
function isRefusal(event, uuid) {
	if (event.type !== "gateway" || event.event !== "refused" || "request_id" in event) return false;
	return event["code"] !== "ending" && (event["uuid"] ?? uuid) === uuid;
}
function isResult(event) {
	return event.type === "line" && event.line?.["type"] === "result";
}
/**
* Whether a line is of a message's turn: of those it names, or none where the CLI began the turn by itself. Undefined
* where it does not say.
*/
function isOf(event, uuid) {
	const names = namesOf(event);
	if (names) return names.includes(uuid);
	return (asObject(event.type === "line" ? event.line?.["origin"] : void 0)?.["kind"] ?? "human") === "human" ? void 0 : false;
}
/** The messages that a result answers, where it names them. */
function namesOf(event) {
	const names = event.type === "line" ? event.line?.["user_message_uuids"] : void 0;
	return Array.isArray(names) ? names : void 0;
}
/** Whether an event is told also in a turn that waits for the end of another one: it is of neither. */
function isForAll(event) {
	return event.type === "approval" || event.type === "settled" || event.type === "gateway" && "uuid" in event;
}
// client/session.ts
/** Milliseconds in which a run that is left has to say how it ended. */
var PARTING_MS = 2e3;
/** The code of what is refused because the CLI does not ask any more. */
var NOT_OPEN = "not-open";
/** Answers to approvals that are remembered, in case that the server refuses them. */
var TOLD = 64;
/**
* A conversation with one CLI: iterate over what happens, or over one `turn`; one loop at a time.
* Leaving a loop leaves the session open; `close` ends its run. A bad end is thrown where the program iterates.
*/
var Session = class {
	/** The run's id, for `attach`. */
	run = "";
	/** The CLI's id of this session, for the option `resume`; known of a run that was started here. */
	id = "";
	role = "owner";
	hello = {};
	/** Lines that nobody can give any more. */
	gaps = 0;
	state = "connecting";
	ended;
	/** @internal */
	begun;
	link;
	events;
	asked = new Approvals();
	/** The turns that are read and have no result yet, by their messages. */
	turns = /* @__PURE__ */ new Map();
	answers = /* @__PURE__ */ new Map();
	told = /* @__PURE__ */ new Set();
	onState;
	onEvent;
	begin;
	last;
	/** The turn that was said last and has no result yet. */
	unfinished;
	asking = 0;
	isLeaving = false;
	leavingTimer;
	stay;
	mustStay;
	/** @internal */
	constructor(given) {
		checkOpen(given);
		const { url, key, ticket, WebSocket, grace, signal } = given;
		findClass(given);
		baseOf(url);
		this.mustStay = !grace && !given.attach;
		this.onState = given.onState;
		this.onEvent = given.onEvent;
		this.events = new Inbox(given.bufferLimit ?? 33554432);
		this.begun = new Promise((resolve, reject) => {
			this.begin = (error) => error === void 0 ? resolve() : reject(error);
		});
		const take = {
			event: (said, size) => this.takeEvent(said, size),
			line: (n, raw, line) => this.takeLine(n, raw, line),
			state: (state) => this.setState(state)
		};
		this.link = new Link({
			url,
			key,
			ticket,
			WebSocket
		}, firstOf(given), grace, take);
		const abort = () => this.abort(signal?.reason);
		if (signal?.aborted) abort();
		signal?.addEventListener("abort", abort);
		this.ended = this.link.go().then((closed) => this.finish(closed)).finally(() => signal?.removeEventListener("abort", abort));
		this.ended.catch(() => void 0);
	}
	/** The approvals that are open, by `request_id`. */
	get approvals() {
		return this.asked.open;
	}
	/** Say something to the model; return the message's name, by which a `refused` event has it as `uuid`. */
	send(content) {
		const uuid = newUuid();
		this.say(content, uuid);
		return uuid;
	}
	/**
	* Say something, and iterate up to and with the turn's `result` line. A turn that the CLI begins by itself, because a
	* background task has ended, comes with its `result` on the way. Of a turn whose loop was left early the next turn lets
	* the rest go, but for approvals. Of turns that the CLI answers at once the same `result` ends each, whichever reads it. What is said to a run that is just ending is not done, and throws nothing: `ended`
	* tells why.
	*/
	async *turn(content) {
		const uuid = newUuid();
		this.say(content, uuid);
		try {
			yield* this.readTurn(uuid);
		} finally {
			this.turns.delete(uuid);
		}
	}
	/** Let a tool run, with `updatedInput` in place of its own input where it is given. */
	approve(id, given = {}) {
		checkNames("approve", given, { updatedInput: true });
		const { updatedInput } = given;
		this.answer(id, {
			behavior: "allow",
			...updatedInput && { updatedInput }
		});
	}
	/** Keep a tool from running; the model reads the message. `interrupt` ends the turn. */
	deny(id, given = {}) {
		checkNames("deny", given, {
			message: true,
			interrupt: true
		});
		const { message = "denied by the user", interrupt = false } = given;
		this.answer(id, {
			behavior: "deny",
			message,
			...interrupt && { interrupt }
		});
	}
	/** End the turn; what was said of the answer is kept, and the turn's `result` comes. */
	interrupt() {
		this.stop("interrupt");
	}
	/** End the turn, or the run behind the turn, or the process tree now. */
	stop(mode) {
		this.link.send({
			type: "gateway",
			op: "stop",
			mode
		});
	}
	/** Choose a model from the next turn on, null for the CLI's own. */
	async setModel(name) {
		await this.control("set_model", { model: name });
	}
	/** Make a control request of the CLI; return its answer. Throws `Refused`, also where the CLI refuses. */
	control(subtype, fields = {}) {
		const request_id = `client-${this.asking += 1}-${Math.random().toString(36).slice(2)}`;
		return new Promise((resolve, reject) => {
			this.link.send({
				type: "control_request",
				request_id,
				request: {
					subtype,
					...fields
				}
			});
			this.answers.set(request_id, {
				resolve,
				reject
			});
		});
	}
	/**
	* Leave, and let the run go on; only where it was started with a grace, or this client only watches. Throws `Refused`
	* where it was not, and stays.
	*/
	async detach() {
		if (this.mustStay) throw new Refused("detach: the session was opened without `grace`", { code: "not-allowed" });
		if (!this.link.isOver) this.link.send({
			type: "gateway",
			op: "detach"
		});
		const refused = new Promise((_, reject) => this.stay = reject);
		return Promise.race([this.leave(), refused]);
	}
	/** End the run, whatever it is at, and the session; a viewer only leaves. */
	async close() {
		if (this.role === "owner" && !this.link.isOver && (this.run || this.link.isStarting)) {
			try {
				this.stop("kill");
			} catch {}
			return this.leave();
		}
		this.isLeaving = true;
		this.link.leave();
		return this.ended;
	}
	[Symbol.asyncIterator]() {
		return { next: () => this.read() };
	}
	async *readTurn(uuid) {
		let stale = this.unfinished;
		const turn = { before: stale };
		this.turns.set(uuid, turn);
		this.unfinished = turn;
		while (this.turns.has(uuid)) {
			const next = await this.read();
			if (next.done) return;
			const event = next.value;
			if (isRefusal(event, uuid)) turn.refusal = errorOfRefusal(event);
			if (turn.refusal) break;
			while (stale?.refusal) stale = stale.before;
			const own = isOf(event, uuid);
			if (own) stale = void 0;
			const ends = isResult(event) && (own ?? !stale);
			if (isResult(event)) this.unfinished = ends ? void 0 : turn;
			if (!stale || isForAll(event)) yield event;
			if (ends) return;
			if (isResult(event) && (own === void 0 || namesOf(event))) stale = void 0;
		}
		if (!turn.refusal) return;
		if (this.unfinished === turn) this.unfinished = stale;
		throw turn.refusal;
	}
	async read() {
		const next = await this.events.next();
		if (next.done) return next;
		const event = next.value;
		if (event.type === "gateway" && isRefusal(event, event["uuid"])) this.refuseTurn(event);
		if (!isResult(event)) return next;
		this.unfinished = void 0;
		for (const name of namesOf(event) ?? []) this.turns.delete(name);
		return next;
	}
	/** Take that a message is refused: its turn is over, whichever reads that. */
	refuseTurn(said) {
		const turn = this.turns.get(said["uuid"]);
		if (turn) turn.refusal = errorOfRefusal(said);
		this.turns.delete(said["uuid"]);
	}
	say(content, uuid) {
		this.link.send({
			type: "user",
			message: {
				role: "user",
				content
			},
			uuid
		});
	}
	answer(id, response) {
		if (!this.asked.open.has(id)) throw new Refused(`no approval ${id} is open`, { code: "not-open" });
		this.link.send({
			type: "control_response",
			response: {
				subtype: "success",
				request_id: id,
				response
			}
		});
		this.told.add(id);
		if (this.told.size > TOLD) this.told.delete(this.told.values().next().value);
		this.push(this.asked.settle(id, "answered"));
	}
	/** Wait a while for the end that was asked for, then go. */
	async leave() {
		this.isLeaving = true;
		clearTimeout(this.leavingTimer);
		this.leavingTimer = setTimeout(() => this.link.leave(), PARTING_MS);
		return this.ended.finally(() => clearTimeout(this.leavingTimer));
	}
	abort(why) {
		this.begin(why);
		this.events.fail(why);
		this.close();
	}
	takeEvent(said, size) {
		if (said.event === "hello") this.hello = said;
		if (said.event === "gap") this.gaps += Number(said["to"]) - Number(said["from"]) + 1;
		if (said.event === "ended") this.last = said;
		if (said.event === "refused") this.refuse(said);
		if (said.event === "started" || said.event === "attached") this.enter(said);
		aside(() => this.onEvent?.(said));
		if (!this.stays(said)) this.push([said], size);
		this.push(this.asked.settledByEvent(said));
		if (said.event === "attached") this.push(this.reconcile(said));
		if (said.event === "started" || said.event === "attached") this.begin();
	}
	/** Return which questions are open at a run that is come to, and which are not any more: somebody answered meanwhile. */
	reconcile(said) {
		const pending = pendingOf(said);
		const gone = [...this.asked.open.keys()].filter((id) => !pending.some((one) => one.id === id));
		const asked = pending.filter(({ id }) => !this.told.has(id));
		return [...gone.flatMap((id) => this.asked.settle(id, "elsewhere")), ...asked.flatMap(({ n, raw, line }) => this.asked.ask(n, raw, line, true) ?? [])];
	}
	enter(said) {
		this.run = String(said["run"]);
		if (said["session"]) this.id = String(said["session"]);
		if (said["role"]) this.role = said["role"] === "viewer" ? "viewer" : "owner";
	}
	takeLine(n, raw, line) {
		const approval = this.asked.ask(n, raw, line);
		if (approval) return this.push([approval], raw.length);
		if (line?.["type"] === "control_response") this.answered(asObject(line["response"]) ?? {});
		if (!this.id && typeof line?.["session_id"] === "string") this.id = line["session_id"];
		this.push([{
			type: "line",
			n,
			raw,
			line
		}], raw.length);
		if (line) this.push(this.asked.settledBy(line));
	}
	answered(response) {
		const waiting = this.answers.get(String(response["request_id"]));
		this.answers.delete(String(response["request_id"]));
		if (response["subtype"] === "success") waiting?.resolve(asObject(response["response"]) ?? {});
		else waiting?.reject(new Refused(String(response["error"]), {
			code: "cli",
			said: response
		}));
	}
	/** Tell who waits; of an approval whose answer is refused the CLI is told that there is none, or it would wait for it. */
	refuse(said) {
		const id = String(said["request_id"]);
		this.answers.get(id)?.reject(errorOfRefusal(said));
		this.answers.delete(id);
		if (!this.told.delete(id) || said["code"] === "ending" || said["code"] === NOT_OPEN) return;
		const response = {
			subtype: "error",
			request_id: id,
			error: "the client's answer was refused"
		};
		this.link.send({
			type: "control_response",
			response
		});
	}
	/** Stay where a detach is refused, and tell who asked for it, nobody else; return whether this was that. */
	stays(said) {
		if (!this.stay || said["event"] !== "refused" || said["code"] !== "not-allowed") return false;
		if ("request_id" in said || "uuid" in said) return false;
		this.isLeaving = false;
		clearTimeout(this.leavingTimer);
		this.stay(errorOfRefusal(said));
		this.stay = void 0;
		return true;
	}
	push(events, size = 0) {
		for (const event of events) {
			if (this.events.push(event, size)) continue;
			const error = this.events.overflow();
			this.link.leave(error);
		}
	}
	setState(state) {
		this.state = state;
		aside(() => this.onState?.(state));
	}
	finish(closed) {
		const { type: _, event: __, ...told } = this.last ?? {};
		const failure = this.isLeaving ? void 0 : closed.error;
		const over = failure ?? new TrioClaudeError("the session is over", { code: "over" });
		this.begin(over);
		for (const waiting of this.answers.values()) waiting.reject(over);
		this.answers.clear();
		this.asked.open.clear();
		this.events.close(failure);
		const ended = {
			reason: "",
			...told,
			code: closed.code,
			close_reason: closed.reason
		};
		return failure ? {
			...ended,
			failure
		} : ended;
	}
};
/** Call what a program gave; what it throws is nobody's to catch here, and stops nothing. */
function aside(call) {
	try {
		call();
	} catch (error) {
		queueMicrotask(() => {
			throw error;
		});
	}
}
/** Return a name for a message; a page without TLS has no `crypto.randomUUID`. */
function newUuid() {
	return newToken().replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
function firstOf({ meta = "SESSION", options = {}, grace, attach }) {
	if (attach) return {
		type: "gateway",
		op: "attach",
		after: 0,
		...attach
	};
	return {
		type: "gateway",
		op: "start",
		meta,
		options: grace ? {
			...options,
			on_disconnect: { grace }
		} : options
	};
}
/** The questions that an `attached` says are open, by their ids. */
function pendingOf(said) {
	return (Array.isArray(said["pending"]) ? said["pending"] : []).map(({ n, line: given }) => {
		const raw = typeof given === "string" ? given : JSON.stringify(given);
		const line = parseObject(raw);
		return {
			id: String(line?.["request_id"]),
			n: Number(n),
			raw,
			line
		};
	});
}
/** Open a session, or come to one; resolves once it has started. `close` ends it. */
async function openSession(options = {}) {
	const session = new Session(options);
	await session.begun;
	return session;
}
export { AnswerText, BUFFER_LIMIT, Busy, ConnectionLost, Overflow, Refused, Run, RunFailed, ServerGone, Session, TooLarge, TrioClaudeError, ask, openSession, parseReason };
