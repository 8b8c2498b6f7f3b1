"""Rule: tasks are accepted whole or refused with the line, the field and the limit, before anything runs."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_claude.batch import tasks
from trio_claude.batch.tasks import BadTasks, Rules, make_plan
from trio_claude.config import OPTIONS

RULES = Rules(OPTIONS, 300)
SESSION = "01234567-89ab-cdef-0123-456789abcdef"


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_a_task_has_defaults_made_from_its_number() -> None:
    plan = make_plan(b"\n" + jsonl({"prompt": "one"}) + b"  \n" + jsonl({"prompt": "two", "max_turns": 3}), RULES)
    assert [(task.number, task.line, task.id, task.prompt.meta) for task in plan.tasks] == [
        (1, 2, "1", "TASK-1"),
        (2, 4, "2", "TASK-2"),
    ]
    assert [task.prompt.options.max_turns for task in plan.tasks] == [None, 3]


def test_a_task_may_name_itself() -> None:
    (task,) = make_plan(b"\xef\xbb\xbf" + jsonl({"prompt": "é", "meta": "X_1", "id": "mine-1"}), RULES).tasks
    assert (task.id, task.prompt.meta, task.prompt.prompt) == ("mine-1", "X_1", "é")


def test_a_byte_order_mark_alone_is_no_task() -> None:
    mark = b"\xef\xbb\xbf"
    plan = make_plan(mark + b"\r\n" + mark + jsonl({"prompt": "one"}) + mark, RULES)
    assert [task.line for task in plan.tasks] == [2]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "there are no tasks"),
        (b"\n \n", "there are no tasks"),
        (b"nonsense\n", "line 1: message is not JSON: Expecting value at character 0"),
        (b"[1]\n", "line 1: message must be a JSON object"),
        (b'{"prompt":"\xff"}\n', "line 1: a task must be UTF-8; byte 11 is not"),
        (jsonl({"meta": "A"}), "line 1: prompt is missing"),
        (jsonl({"prompt": "ok"}, {"prompt": ""}), "line 2: prompt must be 1 to 8192 bytes of UTF-8, not 0"),
        (jsonl({"prompt": 7}), "line 1: prompt must be text, not a number"),
        (jsonl({"prompt": "x" * 8193}), "line 1: prompt must be 1 to 8192 bytes of UTF-8, not 8193"),
        (jsonl({"prompt": "a\0b"}), "line 1: prompt must not hold a NUL character"),
        (jsonl({"prompt": "x", "meta": "low"}), "line 1: meta must match"),
        (jsonl({"prompt": "x", "nonsense": 1}), "line 1: unknown key 'nonsense'"),
        (jsonl({"prompt": "x", "model": None}), "line 1: model must not be null"),
        (jsonl({"prompt": "x", "max_turns": 0}), "line 1: max_turns must be from 1 to 1000, not 0"),
        (jsonl({"prompt": "x", "timeout": 301}), "line 1: timeout must be at most 300"),
        (jsonl({"prompt": "x", "id": 3}), "line 1: id must be text that matches ^[A-Za-z0-9_\\-]{1,64}$"),
        (jsonl({"prompt": "x", "id": "../x"}), "line 1: id must be text"),
        (jsonl({"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a"}), "line 2: id 'a' is the id of line 1 too"),
        (jsonl({"prompt": "x", "id": "2"}, {"prompt": "y"}), "line 2: id '2' is the id of line 1 too"),
        (b'{"prompt":"x","prompt":"y"}', "line 1: duplicate key 'prompt'"),
        (
            jsonl({"prompt": "x", "resume": SESSION}, {"prompt": "y"}, {"prompt": "z", "resume": SESSION}),
            "line 3: resume names the session of line 1 too",
        ),
    ],
)
def test_what_is_wrong_is_named(data: bytes, told: str) -> None:
    with pytest.raises(BadTasks) as caught:
        make_plan(data, RULES)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("rules", "task", "told"),
    [
        (
            Rules(OPTIONS, 300, ("haiku",)),
            {"model": "opus"},
            "line 1: model stands in the task and on the command line",
        ),
        (Rules(OPTIONS, 300, ("a b",)), {}, "model must match"),
        (Rules(OPTIONS, 300, ("haiku", "haiku")), {}, "model: each can be named once only"),
        (Rules(("effort",), 300, ("haiku",)), {}, "model is not allowed"),
        (Rules(("effort",), 300), {"model": "opus"}, "line 1: model is not allowed"),
        (Rules(OPTIONS, 300, repeat=0), {}, "repeat must be from 1"),
        (Rules(OPTIONS, 300, repeat=2), {"resume": SESSION}, "line 1: resume can't be repeated"),
        (Rules(OPTIONS, 300, ("a", "b")), {"resume": SESSION}, "line 1: resume can't be repeated"),
        (Rules(OPTIONS, 300, repeat=tasks.RUNS_LIMIT, models=("a", "b")), {}, "2000000 runs"),
        (Rules(OPTIONS, 300, workspaces=False), {"workspace": "w"}, "line 1: workspace needs a folder of workspaces"),
    ],
)
def test_what_does_not_go_with_the_options_is_named(rules: Rules, task: dict[str, object], told: str) -> None:
    with pytest.raises(BadTasks) as caught:
        make_plan(jsonl({"prompt": "x", **task}), rules)
    assert str(caught.value).startswith(told)


def test_limits_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS_LIMIT", 2)
    monkeypatch.setattr(tasks, "LINE_LIMIT", 40)
    with pytest.raises(BadTasks, match="line 3: more than 2 tasks"):
        make_plan(jsonl(*[{"prompt": "x"}] * 3), RULES)
    with pytest.raises(BadTasks, match="line 1: a task must be at most 40 bytes, not 54"):
        make_plan(jsonl({"prompt": "x" * 40}), RULES)


def test_the_matrix_is_each_task_times_each_model_times_each_repeat() -> None:
    plan = make_plan(jsonl({"prompt": "a", "id": "a"}, {"prompt": "b"}), Rules(OPTIONS, 300, ("haiku", "opus"), 2))
    items = list(plan)
    assert len(plan) == len(items) == 8
    assert [item.place for item in items] == list(range(8))
    assert [(item.task.id, item.model, item.repeat, item.name) for item in items[:4]] == [
        ("a", "haiku", 1, "a.1"),
        ("a", "haiku", 2, "a.2"),
        ("a", "opus", 1, "a.3"),
        ("a", "opus", 2, "a.4"),
    ]
    assert len({item.name for item in items}) == 8


def test_a_timeout_for_all_gives_way_to_a_tasks_own() -> None:
    plan = make_plan(jsonl({"prompt": "a"}, {"prompt": "b", "timeout": 5}), Rules(OPTIONS, 86400, timeout=60))
    assert [task.prompt.options.timeout for task in plan.tasks] == [60, 5]


@given(
    st.binary(max_size=200) | st.lists(st.dictionaries(st.text(), st.integers() | st.text())).map(lambda x: jsonl(*x))
)
def test_any_bytes_are_tasks_or_bad_tasks(data: bytes) -> None:
    with contextlib.suppress(BadTasks):
        make_plan(data, RULES)
