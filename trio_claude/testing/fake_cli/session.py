"""Hold one process's conversation: read, queue, answer control requests, and run one turn at a time.

Rule: what must outlive a turn stands here; a turn's own affairs never do.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time

from ..model import Directive, Json, Model
from .flags import Options, resolve_model
from .lines import NO_USAGE, WHOLE_USAGE, initialize_fields
from .shell import TERM_GRACE_SECONDS, Shell
from .turn import Turn
from .wire import LIFE_SECONDS, Ended, FatalError, Interrupted, Wire, new_uuid, write_line, write_stderr

READS_STATE = "CLAUDE_CODE_SDK_READS_SESSION_STATE"
"""The variable by which a host asks to be told whether the CLI has work to do."""
SETTABLE_MODES = ("acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan")


class Session:
    """One conversation. Error handling: `run` turns every way to end into an exit status."""

    def __init__(self, options: Options) -> None:
        self.options: Options = options
        self.id: str = options.session
        self.model: str = options.model
        self.mode: str = options.mode
        self.mind: Model = Model()
        self.wire: Wire = Wire(self._receive)
        self.turn: Turn | None = None
        self.queue: list[str] = []
        self.replies: dict[str, Json] = {}
        self.asking: str | None = None
        self.tasks: list[Shell] = []
        self.tool: Shell | None = None
        self.last: Directive = Directive({})
        self.spent: dict[str, tuple[int, int]] = {}
        self.results: int = 0
        self.failed: bool = False
        self.state: str = "idle"
        self.lingering: float = 0.0

    def emit(self, kind: str, subtype: str | None = None, /, **fields: object) -> None:
        """Say one line of this session."""
        head = {"type": kind, "subtype": subtype} if subtype else {"type": kind}
        write_line({**head, **fields, "session_id": self.id, "uuid": new_uuid()})

    def run(self) -> int:
        """Run turns until stdin closes or a signal ends it; return the exit status."""
        try:
            if self.options.resume_error:
                self._refuse_resume(self.options.resume_error)
            while self._next_turn():
                pass
            return int(self.failed)
        except Interrupted:
            return 0
        except Ended as ended:
            return ended.status
        except FatalError as fatal:
            write_stderr(str(fatal))
            return 1
        finally:
            self._end_tools()

    def _next_turn(self) -> bool:
        self.wire.wait(LIFE_SECONDS, until=self._has_work)
        if self.queue:
            prompt, self.queue = "\n".join(self.queue), []
            self._run_turn(prompt)
        elif ended := self._ended_tasks():
            self._end_task(ended[0])
        return bool(self.queue or self.tasks or not self.wire.eof)

    def _has_work(self) -> bool:
        return bool(self.queue or self._ended_tasks()) or (self.wire.eof and not self.tasks)

    def _run_turn(self, prompt: str, **origin: object) -> None:
        self._tell_state("running")
        self.turn = Turn(self, prompt)
        try:
            self.turn.run(**origin)
        finally:
            self.turn = None
        if not self.queue:
            self._tell_state("idle")
        if self.wire.signal:
            raise Ended(self.wire.exit_status)
        if self.lingering:
            self.wire.wait(self.lingering)
            raise Ended(int(self.failed))

    def _tell_state(self, state: str) -> None:
        """Tell the host whether there is work to do, where it wants to know."""
        if os.environ.get(READS_STATE) == "1" and state != self.state:
            self.emit("system", "session_state_changed", state=state, sdk_host_only=True)
        self.state = state

    def _refuse_resume(self, error: str) -> None:
        self.wire.wait(LIFE_SECONDS, until=lambda: self.queue or self.wire.eof)
        if self.queue:
            zeros = dict.fromkeys(("duration_ms", "duration_api_ms", "num_turns", "total_cost_usd", "result_index"), 0)
            known = {"usage": {**NO_USAGE, **WHOLE_USAGE}, "modelUsage": {}, "permission_denials": []}
            fields = {**zeros, **known, "is_error": True, "stop_reason": None, "errors": [error]}
            self.emit("result", "error_during_execution", **fields)
        raise FatalError(error)

    # Background tasks

    def add_task(self, task: Shell) -> None:
        """Take over a command that goes on in the background."""
        self.tasks.append(task)
        self._report_tasks()
        fields = {"tool_use_id": task.use, "description": task.description, "is_backgrounded": True}
        self.emit("system", "task_started", **task.task_fields, **fields, task_type="local_bash")

    def _ended_tasks(self) -> list[Shell]:
        return [task for task in self.tasks if task.ended]

    def _report_tasks(self) -> None:
        fields = {"task_type": "local_bash"}
        tasks = [{**task.task_fields, **fields, "description": task.description} for task in self.tasks]
        self.emit("system", "background_tasks_changed", tasks=tasks)

    def _end_task(self, task: Shell) -> None:
        """Report a background command that has ended; the real CLI gives the model a turn on that."""
        self.tasks.remove(task)
        code = task.process.wait()
        status = "failed" if code else "completed"
        patch = {"status": status, "end_time": int(time.time() * 1000)}
        self.emit("system", "task_updated", **task.task_fields, patch=patch)
        summary = f'Background command "{task.description}" completed (exit code {code})'
        fields = {"tool_use_id": task.use, "status": status, "output_file": task.path, "summary": summary}
        self.emit("system", "task_notification", **task.task_fields, **fields)
        self._report_tasks()
        self._run_turn("", origin={"kind": "task-notification", "producer": "session-task", "runId": task.run})

    def _end_tools(self) -> None:
        """Do what the real CLI does on a signal: end every tool's tree that it still knows."""
        if self.wire.signal:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for shell in [*self.tasks, *([self.tool] if self.tool else [])]:
                shell.kill(TERM_GRACE_SECONDS)

    # What comes in

    def _receive(self, raw: bytes) -> None:
        """Take one line of stdin."""
        text = raw.decode("utf-8", "replace")
        if not text.strip():
            return
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            kind = re.match(r'\{"type":"(\w+)"', text)
            name = kind[1] if kind else "unknown"
            raise FatalError(_unreadable(name, text, "SyntaxError")) from None
        if line is None:
            raise FatalError(_unreadable("unknown", text, "TypeError"))
        match line:
            case {"type": "user"}:
                self._queue(line)
            case {"type": "control_request"}:
                self._control(line)
            case {"type": "control_response", "response": dict(response)}:
                self.replies[str(response.get("request_id"))] = response

    def _queue(self, line: Json) -> None:
        message = line.get("message")
        role = message.get("role", "undefined") if isinstance(message, dict) else "undefined"
        if role != "user" or not isinstance(message, dict):
            raise FatalError(f"Error: Expected message role 'user', got '{role}'")
        self.queue.append(_text_of(message.get("content")))

    def _control(self, line: Json) -> None:
        request = line.get("request")
        body = self._obey(request if isinstance(request, dict) else {})
        if "request_id" in line:
            body["request_id"] = line["request_id"]
        write_line({"type": "control_response", "response": body})
        if "mode" in body.get("response", {}):
            self.emit("system", "status", status=None, permissionMode=self.mode)

    def _obey(self, request: Json) -> Json:
        """Do what a control request asks for; return the answer."""
        match request.get("subtype", "undefined"):
            case "initialize":
                answer = initialize_fields(self)
            case "interrupt":
                self.wire.interrupt = self.turn is not None
                if self.asking:
                    write_line({"type": "control_cancel_request", "request_id": self.asking})
                answer = {"still_queued": []}
            case "set_model":
                self.model = resolve_model(request.get("model"))
                answer = {"model": self.model}
            case "set_permission_mode" if (mode := request.get("mode")) in SETTABLE_MODES:
                self.mode = str(mode)
                answer = {"mode": mode}
            case "set_permission_mode":
                error = f"Cannot set permission mode: must be one of {', '.join(SETTABLE_MODES)}"
                return {"subtype": "error", "error": error, "error_code": "invalid_mode"}
            case other:
                error = f"Unsupported control request subtype: {other}"
                return {"subtype": "error", "error": error, "error_code": "unsupported_request"}
        return {"subtype": "success", "response": answer}


def _unreadable(kind: str, text: str, error: str) -> str:
    return f"Error parsing streaming input line (type={kind}, {len(text)} chars): {error}"


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    return "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
