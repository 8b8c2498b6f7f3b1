"""Tasks of a batch: lines of JSON to checked prompts, and prompts to the runs that are planned.

Rule 1: all tasks are checked before one runs; an error names the line, the field and the limit. Rule 2: this module
opens no file and knows no clock.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from ..errors import BadMessage, TrioClaudeError
from ..messages import Options, Prompt, make_prompt, parse_object

TASKS_LIMIT = 100_000
"""Tasks of a batch; they are kept in memory."""
FILE_LIMIT = 256 * 1024 * 1024
"""Bytes of a file of tasks, which bounds the memory that tasks take."""
LINE_LIMIT = 1024 * 1024
"""Bytes of a task; the wire contract's limits, each character escaped, come to less."""
RUNS_LIMIT = 1_000_000
"""Runs of a batch: tasks times models times repeats."""
_ID = re.compile(r"[A-Za-z0-9_\-]{1,64}")


class BadTasks(TrioClaudeError):
    """Tasks that can't be run; the text names the line, the field and the limit."""


@attrs.frozen
class Rules:
    """What tasks are held to: the options they may name, the seconds a run may last, and what is given to all.

    `models` is the matrix; empty: each task's own model, or the CLI's default. `workspaces` says whether there are any.
    """

    allowed: tuple[str, ...]
    max_timeout: float
    models: tuple[str, ...] = ()
    repeat: int = 1
    timeout: float | None = None
    workspaces: bool = True


@attrs.frozen
class Task:
    """One line of the file: its place among the tasks, counted from 1, its id, and what to ask."""

    number: int
    line: int
    id: str
    prompt: Prompt


@attrs.frozen
class Item:
    """One run that is planned: `place` counts from 0 in the order of results, `repeat` from 1.

    `name` is unique in a batch and can be a file's name.
    """

    place: int
    task: Task
    prompt: Prompt
    repeat: int
    name: str

    @property
    def model(self) -> str | None:
        """The model that is asked for, None for the CLI's default."""
        return self.prompt.options.model


@attrs.frozen
class Plan:
    """Every run of a batch, made when it is needed: each task times each model times each repeat."""

    tasks: tuple[Task, ...]
    models: tuple[str, ...] = ()
    repeat: int = 1

    def __len__(self) -> int:
        return len(self.tasks) * self._per_task

    def __iter__(self) -> Iterator[Item]:
        places = itertools.count()
        for task in self.tasks:
            turns = itertools.product(self.models or (None,), range(1, self.repeat + 1))
            for turn, (model, repeat) in enumerate(turns, 1):
                name = task.id if self._per_task == 1 else f"{task.id}.{turn}"
                yield Item(next(places), task, _with_model(task.prompt, model), repeat, name)

    def place(self, task: int, model: str | None, repeat: int) -> int | None:
        """Return the place of a task's run, by its number, counted from 1; None where no such run is planned."""
        if not (1 <= task <= len(self.tasks) and 1 <= repeat <= self.repeat):
            return None
        if self.models and model not in self.models:
            return None
        turn = self.models.index(model) if self.models and model is not None else 0
        return (task - 1) * self._per_task + turn * self.repeat + repeat - 1

    @property
    def _per_task(self) -> int:
        return max(1, len(self.models)) * self.repeat


def make_plan(data: bytes, rules: Rules) -> Plan:
    """Return the plan of a file's tasks. Raises `BadTasks`."""
    _check_models(rules)
    plan = Plan(tuple(parse_tasks(data.splitlines(), rules)), rules.models, rules.repeat)
    if not plan.tasks:
        raise BadTasks("there are no tasks: give one JSON object a line")
    if len(plan) > RUNS_LIMIT:
        raise BadTasks(f"{len(plan)} runs (tasks x models x repeats) are over the limit of {RUNS_LIMIT}")
    _check_sessions(plan)
    return plan


def parse_tasks(lines: Iterable[bytes], rules: Rules) -> Iterator[Task]:
    """Yield the tasks of `lines`; empty ones are no tasks. Raises `BadTasks`."""
    ids: dict[str, int] = {}
    number = 0
    for line, raw in enumerate(lines, 1):
        if not raw.removeprefix(codecs.BOM_UTF8).strip():
            continue
        number += 1
        try:
            task = _parse(raw, number, line, rules)
        except BadMessage as error:
            raise BadTasks(f"line {line}: {error}") from error
        if (first := ids.setdefault(task.id, line)) != line:
            raise BadTasks(f"line {line}: id {task.id!r} is the id of line {first} too")
        yield task


def _parse(raw: bytes, number: int, line: int, rules: Rules) -> Task:
    """Return one task. Raises `BadMessage`."""
    if number > TASKS_LIMIT:
        raise BadMessage(f"more than {TASKS_LIMIT} tasks")
    if len(raw) > LINE_LIMIT:
        raise BadMessage(f"a task must be at most {LINE_LIMIT} bytes, not {len(raw)}")
    said = parse_object(_text(raw))
    if "prompt" not in said:
        raise BadMessage("prompt is missing")
    if rules.models and "model" in said:
        raise BadMessage("model stands in the task and on the command line; give it once")
    if "workspace" in said and not rules.workspaces:
        raise BadMessage("workspace needs a folder of workspaces (--workspaces)")
    prompt, meta, identity = said.pop("prompt"), said.pop("meta", f"TASK-{number}"), said.pop("id", str(number))
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise BadMessage(f"id must be text that matches ^{_ID.pattern}$")
    given = {"timeout": rules.timeout} if rules.timeout is not None else {}
    return Task(number, line, identity, make_prompt(prompt, meta, {**given, **said}, rules.allowed, rules.max_timeout))


def _text(raw: bytes) -> str:
    """Return a line as text. Raises `BadMessage`."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadMessage(f"a task must be UTF-8; byte {error.start} is not") from None


def _check_models(rules: Rules) -> None:
    if not 1 <= rules.repeat <= RUNS_LIMIT:
        raise BadTasks(f"repeat must be from 1 to {RUNS_LIMIT}, not {rules.repeat}")
    if len(set(rules.models)) < len(rules.models):
        raise BadTasks("model: each can be named once only; `repeat` repeats")
    for model in rules.models:
        try:
            make_prompt("x", "X", {"model": model}, rules.allowed, rules.max_timeout)
        except BadMessage as error:
            raise BadTasks(str(error)) from error


def _check_sessions(plan: Plan) -> None:
    """Two runs that resume one session at once would lose a turn without a word."""
    lines: dict[str, int] = {}
    for task in plan.tasks:
        if (session := task.prompt.options.resume) is None:
            continue
        if len(plan) > len(plan.tasks):
            raise BadTasks(f"line {task.line}: resume can't be repeated: each run would go on from another's")
        if session in lines:
            raise BadTasks(f"line {task.line}: resume names the session of line {lines[session]} too")
        lines[session] = task.line


def _with_model(prompt: Prompt, model: str | None) -> Prompt:
    return prompt if model is None else attrs.evolve(prompt, options=attrs.evolve(prompt.options, model=model))


def options_of(options: Options) -> dict[str, Any]:
    """Return the options that are set."""
    return attrs.asdict(options, filter=lambda _, value: value is not None)
