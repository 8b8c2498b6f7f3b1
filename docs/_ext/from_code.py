"""Tables of the reference, made of the code at each build, so that they can't differ from it.

Duty: read the code's own tables, classes, commands and error texts, and write Markdown. This module must never hold a
value that the code has; a sentence about one of the code's names is looked up by that name, and a missing one is an
error.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
import click
from docutils import nodes
from prometheus_client.parser import text_string_to_metric_families
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from trio_claude import commands, config, entrance, errors, events, messages, metrics, workplace
from trio_claude.commands.options import DEFAULTS
from trio_claude.errors import CloseCode, ConfigError, Reason

GROUPS = {
    "host": "The server and the CLI",
    "allow_options": "What clients may ask for",
    "allow_origin": "Who may come in",
    "journal": "What is kept",
    "metrics": "What is counted",
    "redis": "More than one machine",
    "containment": "How a run is held together",
    "log_level": "The log",
    "timeout": "Runs and the queue",
    "session_idle_timeout": "Sessions",
    "pool_size": "CLIs ahead of need",
    "head_limit": "Connections",
    "connections_per_identity": "How much anybody may use",
}
"""The settings with which a group begins, in the order of `Config`; each has all up to the next."""
REASONS = {
    Reason.EXIT: "the CLI exited with status 0, or was ended after its result",
    Reason.FAILED: "the CLI exited with another status, died of a signal, or said a line over `max_line`",
    Reason.DEADLINE: "`timeout`, or a limit of the session's time, was over",
    Reason.STALLED: "the CLI said nothing for `stall_timeout`",
    Reason.STOPPED: "somebody stopped it: the client, `DELETE /api/runs/ID`, `run.stop()`; or it obeyed no interrupt",
    Reason.DISCONNECTED: "the client left, or answered no ping",
    Reason.DRAINED: "the server went down",
    Reason.SPAWN_FAILED: "the CLI could not be started",
    Reason.UNAUTHORIZED: "the API refused the key",
    Reason.OVER_BUDGET: "the day's tokens or dollars were spent",
    Reason.NODE_LOST: "the server died; told of a run out of the journal",
}
CODES = {
    CloseCode.NORMAL: "a good end, or one that was asked for",
    CloseCode.POLICY: "the client broke the contract, or may not do this",
    CloseCode.TOO_LONG: "a message was too long, or in too many frames",
    CloseCode.FAILED: "the run failed; the last frame says why",
    CloseCode.RESTARTING: "the server goes down; try again, here or elsewhere",
    CloseCode.BUSY: "full, or a limit is reached; `retry_after` says when to try again",
}


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, but for what stands in backticks."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part.replace("|", r"\|") if part[:1] == "`" else re.sub(r"([\\<>*_|\[\]])", r"\\\1", part) for part in parts
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table; its cells are Markdown."""
    heads = list(heads)
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def code(value: object) -> str:
    """Return a value as code in a table, a dash for none."""
    return escaped(f"`{value}`") if str(value) else "–"


# -- settings ---------------------------------------------------------------------------------------------------------


def settings() -> Iterator[str]:
    """Yield each setting with its default, what it takes and what it is."""
    groups: dict[str, list[attrs.Attribute[Any]]] = {}
    for field in attrs.fields(config.Config):
        if field.name in GROUPS:
            members = groups.setdefault(GROUPS[field.name], [])
        members.append(field)
    if list(groups) != list(GROUPS.values()):
        raise LookupError(f"Config has not the groups {sorted(set(GROUPS.values()) - set(groups))}")
    for group, fields in groups.items():
        yield f"## {group}"
        yield from table(("setting", "default", "takes", "what it is"), map(_setting, fields))


def _setting(field: attrs.Attribute[Any]) -> tuple[str, str, str, str]:
    reloads = " ↻" if field.name in entrance.RELOADED else ""
    return f"`{field.name}`{reloads}", _default(field), _takes(field), escaped(field.metadata["help"])


def _default(field: attrs.Attribute[Any]) -> str:
    if isinstance(field.default, tuple):
        return " ".join(f"`{one}`" for one in field.default) or "–"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if field.metadata["unit"] == "bytes" and field.default:
        return f"`{field.default}` ({_size(field.default)})"
    own = code(f"{field.default:g}" if isinstance(field.default, float) else field.default)
    return f"`{DEFAULTS[field.name]}`; in a program {own}" if field.name in DEFAULTS else own


def _size(count: int) -> str:
    """Return a number of bytes as a person says it."""
    power = max(power for power in range(4) if count % 1024**power == 0)
    return f"{count // 1024**power} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _whole(number: re.Match[str]) -> str:
    """Return a large number in full, as the power of two that it is near to, if it is."""
    value = int(float(number[0]))
    power = 1 << (value - 1).bit_length()
    near = [one for one in (power, power // 2) if abs(one - value) < value / 100_000]
    return str(near[0] if near else value)


def _takes(field: attrs.Attribute[Any]) -> str:
    """Return what a setting takes, in the words in which the code refuses what it does not take."""
    many = isinstance(field.default, tuple)
    bad: Any = ("\0",) if many else "\0" if isinstance(field.default, str) else float("-inf")
    if isinstance(field.default, int):
        bad = -(10**9)
    try:
        if field.validator:
            field.validator(None, field, bad)
    except ConfigError as error:
        said = re.sub(r",? not [^,]*$|^.*?(it takes: |takes |must be (one of |from )?)", "", str(error))
        return escaped(re.sub(r"\d[\d.]*e\+\d+", _whole, said.replace(" to inf", " or more")))
    return "several" if many else "text"


def inherited() -> Iterator[str]:
    """Yield the variables that a CLI inherits."""
    yield " ".join(f"`{name}`" for name in workplace.INHERITED)
    yield ""
    yield f"Never, unless `env` names them: {', '.join(f'`{name}`' for name in workplace.KEPT_BACK)}."


# -- ends -------------------------------------------------------------------------------------------------------------


def close_codes() -> Iterator[str]:
    """Yield the close codes."""
    yield from table(("close code", "what it means"), ((f"{one:d}", CODES[one]) for one in CloseCode))


def reasons() -> Iterator[str]:
    """Yield why runs end, and how they close."""
    rows = (
        (f"`{one}`", REASONS[one], _closes(one), _said(one in messages.RETRYABLE), _said(one.is_fault))
        for one in Reason
    )
    yield from table(("reason", "what happened", "close code", "`retryable`", "`failed`"), rows)


def _said(yes: bool) -> str:
    return "yes" if yes else "no"


def _closes(reason: Reason) -> str:
    """Return the close code of a reason, as the server finds it."""
    outcome = events.Outcome(reason, 0, None, 0, 0, events.Receipt(1, 0, 0, 0.0, "namespace"))
    return f"{messages.closing(outcome).code:d}"


def refusals() -> Iterator[str]:
    """Yield the codes with which a message is refused."""
    bases = errors.ClientError, errors.Busy, errors.Draining
    known = {one.code: one for base in bases for one in _below(base)}  # of a code that two have, the nearer one's words
    classes = sorted(known.values(), key=lambda one: one.code)
    yield from table(
        ("code", "close code of a first message", "what it says"),
        ((f"`{one.code}`", f"{one.close_code:d}", escaped(inspect.getdoc(one) or "")) for one in classes),
    )


def _below(base: type[Any]) -> Iterator[type[Any]]:
    """Yield a class and those below it that have a code of their own."""
    if "code" in vars(base):
        yield base
    for one in base.__subclasses__():
        yield from _below(one)


# -- events -----------------------------------------------------------------------------------------------------------


def facts() -> Iterator[str]:
    """Yield each event that an observer may hear, and the classes that stand in them."""
    for one in (*typing.get_args(events.Event), events.Outcome, events.Receipt):
        yield f"## {one.__name__}"
        yield escaped(inspect.getdoc(one) or "").replace(". `", ".\n`")
        types = typing.get_type_hints(one)
        fields = ((f"`{field.name}`", code(_named(types[field.name])), _given(field)) for field in attrs.fields(one))
        yield from table(("field", "type", "default"), fields)


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _given(field: attrs.Attribute[Any]) -> str:
    return "–" if field.default is attrs.NOTHING else code(repr(field.default))


# -- metrics ----------------------------------------------------------------------------------------------------------


def families() -> Iterator[str]:
    """Yield each metric, the Prometheus client's own about the process last."""
    rows = [(one.full_name, one.kind, one.labels, one.text) for one in metrics.FAMILIES]
    for one in text_string_to_metric_families(metrics.Metrics().render()[0].decode()):
        if not one.name.startswith(metrics.PREFIX):
            name = f"{one.name}_total" if one.type == "counter" else one.name
            rows.append((name, one.type, tuple(one.samples[0].labels), one.documentation))
    yield from table(
        ("metric", "kind", "labels", "what it says"),
        ((f"`{name}`", kind, " ".join(map(code, labels)) or "–", escaped(text)) for name, kind, labels, text in rows),
    )


# -- commands ---------------------------------------------------------------------------------------------------------


def programs() -> Iterator[str]:
    """Yield each command with its arguments, options and examples."""
    for name in commands.COMMANDS:
        command = importlib.import_module(f"trio_claude.commands.{name}").command
        yield from _command(command, f"trio-claude {name}", "##")


def _command(command: click.Command, name: str, level: str) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    yield f"{level} {name}"
    yield ""
    yield f"```text\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```"
    yield from _paragraphs(command.help or "")
    shared = set(attrs.fields_dict(config.Config))
    options = [one for one in command.params if isinstance(one, click.Option)]
    own = options if not shared <= {one.name for one in options} else [one for one in options if one.name not in shared]
    if len(own) < len(options):
        yield "Each setting of [the configuration](config.md) is an option too: `result_grace` is `--result-grace`.\n"
    records = [record for one in own if (record := one.get_help_record(context))]
    if records:
        yield from table(("option", "what it is"), ((code(first), escaped(text)) for first, text in records))
    if command.epilog:
        yield from _examples(command.epilog)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found
            yield from _command(found, f"{name} {below}", "###")


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield f"\n```text\n{paragraph[1:].strip()}\n```\n"
        else:
            yield f"\n{escaped(paragraph)}\n"


def _examples(epilog: str) -> Iterator[str]:
    """Yield the examples, which stand behind their heading, two spaces in."""
    title, _, lines = epilog.replace("\b", "").strip().partition("\n")
    yield f"\n{escaped(title)}\n"
    yield f"```sh\n{inspect.cleandoc(lines)}\n```\n"


MAKERS: dict[str, Callable[[], Iterator[str]]] = {
    "settings": settings,
    "inherited": inherited,
    "close-codes": close_codes,
    "reasons": reasons,
    "refusals": refusals,
    "events": facts,
    "metrics": families,
    "commands": programs,
}


class FromCode(SphinxDirective):
    """`{from-code} NAME`: what the maker of that name writes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the Markdown that is made."""
        text = "\n".join(MAKERS[self.arguments[0]]())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directive."""
    app.add_directive("from-code", FromCode)
    return {"parallel_read_safe": True}
