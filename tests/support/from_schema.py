"""Messages out of a JSON Schema, good ones and bent ones: the words of draft 7 that /asyncapi.json uses, and no others."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

KNOWN = {
    "type", "properties", "required", "additionalProperties", "propertyNames", "enum", "const", "anyOf", "allOf", "items",
    "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "description",
}  # fmt: skip
NAMES = st.text("abz_", min_size=1, max_size=4)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0.1, 0.9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
OTHERS = st.sampled_from([None, True, 0, -1, 1.5, 10**18, "", "x y", "\n", "owner", [], [0], {}, {"type": "text"}])


def messages(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return what a schema allows; `allOf` is left to whoever filters."""
    assert schema.keys() <= KNOWN, schema
    if "anyOf" in schema:
        return st.one_of([messages(arm) for arm in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return KINDS[schema.get("type")](schema)


def _text(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 10**6)
    if "pattern" not in schema:
        return st.text(min_size=least, max_size=min(most, least + 8))
    pattern = re.compile(schema["pattern"].removeprefix("^").removesuffix("$"))
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: least <= len(text) <= most)


def _number(schema: dict[str, Any]) -> st.SearchStrategy[float]:
    above = "exclusiveMinimum" in schema
    low = schema.get("exclusiveMinimum", schema.get("minimum", -1e6))
    return st.floats(low, schema.get("maximum", 1e6), exclude_min=above)


def _object(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in schema:
        keys = messages({"type": "string", **schema.get("propertyNames", {})}) if "propertyNames" in schema else NAMES
        return st.dictionaries(keys, messages(schema.get("additionalProperties", {})), max_size=2)
    known = {name: messages(told) for name, told in schema["properties"].items()}
    return st.fixed_dictionaries(
        {name: known[name] for name in schema["required"]},
        optional={name: told for name, told in known.items() if name not in schema["required"]},
    )


KINDS = {
    None: lambda _: ANY,
    "null": lambda _: st.none(),
    "boolean": lambda _: st.booleans(),
    "string": _text,
    "number": _number,
    "integer": lambda told: st.integers(told.get("minimum"), told.get("maximum")),
    "array": lambda told: st.lists(messages(told["items"]), min_size=told.get("minItems", 0), max_size=2),
    "object": _object,
}


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each part of a value."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield from _places(part, (*path, key))


@st.composite
def bent(draw: st.DrawFn, message: dict[str, Any]) -> Any:
    """Return a message of which one part is another: gone, too much, too long, too large, or of another type."""
    message = copy.deepcopy(message)
    *path, last = draw(st.sampled_from([place for place in _places(message) if place]))
    holder: Any = message
    for key in path:
        holder = holder[key]
    how = draw(st.sampled_from(["other", "less", "more", "bent"]))
    if how == "less":
        del holder[last]
    elif how == "more" and isinstance(holder[last], dict):
        holder[last]["more"] = draw(ANY)
    elif how == "more":
        message["more"] = draw(ANY)
    else:
        holder[last] = draw(OTHERS if how == "other" else _bent(holder[last]))
    return message


def _bent(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, str):
        longer = st.sampled_from([0, 36, 64, 128, 200, 256, 8192, 32768]).map(lambda size: "a" * (size + 1))
        return longer | st.sampled_from(["\n", "\0", " ", "=", "Z"]).map(lambda end: value + end)
    if isinstance(value, list):
        return st.sampled_from([value * 3, (value * 1001)[:1001], [*value, None]])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return OTHERS
    return st.sampled_from([-value - 1, value + 0.5, value + 10**12])
