"""Shapes of JSON: each takes a path and a value and returns the value built anew, or raises `BadMessage`.

Each says its own JSON Schema beside its check, out of the same values, for the description of the sockets.

What a shape does not name is refused, never dropped: a client that asks for more must hear that it does not get it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import attrs

from ..errors import BadMessage

Json: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[str, Any], Any]
ITEMS_LIMIT = 1000
"""Things in a list that a client sends: content blocks, hooks, names."""


@attrs.frozen
class Shape:
    """A check, and the same as JSON Schema."""

    check: Check
    schema: Json

    def __call__(self, path: str, value: Any) -> Any:
        """Return the value built anew. Raises `BadMessage`."""
        return self.check(path, value)


def told(schema: Json) -> Callable[[Check], Shape]:
    """Make a shape of a check by saying it as JSON Schema too."""
    return lambda check: Shape(check, schema)


def text(limit: int | None = None) -> Shape:
    """Accept text, of at most `limit` characters."""

    def check(path: str, value: Any) -> Any:
        if not isinstance(value, str):
            raise BadMessage(f"{path} must be text")
        if limit is not None and len(value) > limit:
            raise BadMessage(f"{path} must be at most {limit} characters, not {len(value)}")
        return value

    return Shape(check, {"type": "string"} if limit is None else {"type": "string", "maxLength": limit})


def match(pattern: str, limit: int) -> Shape:
    """Accept text that matches a pattern as a whole."""
    known = re.compile(pattern)

    def check(path: str, value: Any) -> Any:
        if not isinstance(value, str) or len(value) > limit or not known.fullmatch(value):
            raise BadMessage(f"{path} must match ^{pattern}$ and be at most {limit} characters")
        return value

    return Shape(check, {"type": "string", "maxLength": limit, "pattern": f"^{pattern}$"})


def one_of(*choices: Any) -> Shape:
    """Accept one of some values, and of their types: true is not 1."""

    def check(path: str, value: Any) -> Any:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        names = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise BadMessage(f"{path} must be {names}" if len(choices) == 1 else f"{path} must be one of {names}")

    return Shape(check, {"enum": list(choices)})


@told({"type": "boolean"})
def flag(path: str, value: Any) -> Any:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise BadMessage(f"{path} must be true or false")
    return value


@told({"type": "number"})
def number(path: str, value: Any) -> Any:
    """Accept a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadMessage(f"{path} must be a number")
    return value


def whole(low: int, high: int) -> Shape:
    """Accept a whole number within bounds."""

    def check(path: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadMessage(f"{path} must be a whole number from {low} to {high}")
        return value

    return Shape(check, {"type": "integer", "minimum": low, "maximum": high})


@told({"type": "object"})
def any_object(path: str, value: Any) -> Any:
    """Accept an object, whatever is in it: what a tool takes is the tool's to say."""
    if not isinstance(value, dict):
        raise BadMessage(f"{path} must be an object")
    return value


@told({})
def anything(_path: str, value: Any) -> Any:
    """Accept any JSON."""
    return value


def optional(shape: Shape) -> Shape:
    """Accept null beside a shape."""
    return Shape(
        lambda path, value: None if value is None else shape(path, value),
        {"anyOf": [shape.schema, {"type": "null"}]},
    )


def either(*shapes: Shape) -> Shape:
    """Accept what one of some shapes accepts; of the errors the last shape's is told."""

    def check(path: str, value: Any) -> Any:
        for shape in shapes[:-1]:
            try:
                return shape(path, value)
            except BadMessage:
                continue
        return shapes[-1](path, value)

    return Shape(check, {"anyOf": [shape.schema for shape in shapes]})


def array(shape: Shape) -> Shape:
    """Accept a list of at most `ITEMS_LIMIT` things of a shape."""

    def check(path: str, value: Any) -> Any:
        if not isinstance(value, list):
            raise BadMessage(f"{path} must be an array")
        if len(value) > ITEMS_LIMIT:
            raise BadMessage(f"{path} must hold at most {ITEMS_LIMIT} things, not {len(value)}")
        return [shape(f"{path}[{index}]", item) for index, item in enumerate(value)]

    return Shape(check, {"type": "array", "maxItems": ITEMS_LIMIT, "items": shape.schema})


def record(required: Mapping[str, Shape], more: Mapping[str, Shape] | None = None) -> Shape:
    """Accept an object with these keys and no others; those in `more` may be missing."""
    known = {**required, **(more or {})}

    def check(path: str, value: Any) -> Any:
        any_object(path, value)
        for key in required:
            if key not in value:
                raise BadMessage(f"{_join(path, key)} is missing")
        for key in value:
            if key not in known:
                raise BadMessage(f"{_join(path, ascii(key[:40]))} is not allowed here")
        return {key: known[key](_join(path, key), item) for key, item in value.items()}

    return Shape(check, object_of(required, known))


def by_type(shapes: Mapping[str, Shape], key: str = "type") -> Shape:
    """Accept an object whose `key` names one of some shapes."""

    def check(path: str, value: Any) -> Any:
        any_object(path, value)
        kind = value.get(key)
        if not isinstance(kind, str) or kind not in shapes:
            raise BadMessage(f"{_join(path, key)} must be one of {', '.join(shapes)}")
        return shapes[kind](path, value)

    return Shape(check, {"anyOf": [shape.schema for shape in shapes.values()]})


def object_of(required: Collection[str], known: Mapping[str, Shape]) -> Json:
    """Return the schema of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": {key: shape.schema for key, shape in known.items()},
        "required": list(required),
        "additionalProperties": False,
    }


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
