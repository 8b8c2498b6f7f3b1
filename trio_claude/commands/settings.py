"""A `Config` out of flags, the environment and a TOML file.

Duty: the first that names a field wins, and whatever is wrong is told with where it stands. This module must never hold
a default: those are the fields' own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from ..config import Config, kind
from ..containment import MARK
from ..errors import ConfigError
from .completing import FILES, FOLDERS
from .credentials import KEY

ENV_PREFIX: Final = "TRIO_CLAUDE_"
_UNCONVERTED = re.compile(
    r"Could not convert value (?P<value>.*) for option '(?P<name>\w+)' from loader (?P<loader>.*): \w+\(.*\)", re.DOTALL
)
_CHECKED = "Could not convert loaded settings: - ConfigError: "
SHOWN: Final = 64
"""Characters of a wrong value, or of a name, that are told."""


def load(flags: Mapping[str, Any], file: Path | None = None, *, defaults: Mapping[str, Any] | None = None) -> Config:
    """Build a `Config` from flags, then TRIO_CLAUDE_… variables, then a TOML file; the first that names a field wins.

    `defaults` stand in place of the fields' own.
    Raises `ConfigError` for an unknown key, a value of the wrong type or one out of bounds.
    """
    try:
        Path.cwd()  # the library asks for it when it is imported
    except FileNotFoundError:
        raise ConfigError("--cwd: the folder that this was started in is gone; start it in another") from None
    import cattrs
    import typed_settings as ts  # takes a quarter of a second, and only commands need it

    try:
        if file and not file.is_file():
            raise ConfigError(f"no such config file: {file}; --config names another")
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}; name another") from None
    files: list[ts.loaders.Loader] = [ts.FileLoader({"*": ts.TomlFormat(None)}, files=[file])] if file else []
    converter = ts.default_converter(resolve_paths=False)
    assert isinstance(converter, cattrs.Converter)
    ts.register_strlist_hook(converter, fn=_words)
    converter.register_structure_hook(str, lambda value, _: _text(value))
    converter.register_structure_hook(int, lambda value, _: _whole(value))
    converter.register_structure_hook(float, lambda value, _: _number(value))
    first = ts.loaders.DictLoader(dict(defaults or {}))
    loaders = [first, *files, ts.EnvLoader(ENV_PREFIX), ts.loaders.DictLoader(dict(flags))]
    try:
        config = ts.load_settings(Config, loaders, converter=converter)
    except (ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"--config {file}: {error}") from error
    except ts.exceptions.ConfigFileLoadError as error:
        raise ConfigError(f"--config {file}: {error}") from error
    except ts.exceptions.TsError as error:
        told = "; ".join(_told(text) for text in _leaves(error))
        raise ConfigError(f"{told}; `trio-claude serve --help` tells of each setting") from error
    for name in (*FILES, *FOLDERS, "journal"):
        _check_name(name, getattr(config, name))
    return config


def _check_name(name: str, value: str | tuple[str, ...]) -> None:
    """Raise `ConfigError` for a path that this locale can't say: a file's words are UTF-8 whatever the locale.

    So it does for one that only a shell knows: a folder of the name `~` is nobody's wish.
    """
    for path in (value,) if isinstance(value, str) else value:
        if path.removeprefix("sqlite:").startswith("~"):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{name}: {path} begins with ~, which only a shell knows; {flag} and --config take the whole path"
            )
        try:
            os.fsencode(path)
        except UnicodeEncodeError as error:
            told = f"{name}: {path!a} is no name in {error.encoding}"
            raise ConfigError(f"{told}; --config takes it with LC_ALL=C.UTF-8") from None


def strange_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the names of variables that look like settings and are none: nothing reads them."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in attrs.fields_dict(Config)} | {KEY, MARK}
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def _words(text: str) -> list[str]:
    """Return the words of a list in a variable: none where it is empty, and without the spaces around a comma."""
    return [word for word in map(str.strip, text.split(",")) if word]


def _text(value: object) -> str:
    """Return a string; a whole number will do, as for a user. Raises ValueError: `false` is no name of a file."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("not a string")
    return str(value)


def _whole(value: object) -> int:
    """Return a whole number. Raises ValueError: a fraction is not cut, and `true` is no number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("not a whole number")
    return int(value)


def _number(value: object) -> float:
    """Return a number. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    return float(value)


def _told(text: str) -> str:
    """Return what a person is told of an error: the field, what it takes, and where the wrong value stands."""
    found = _UNCONVERTED.fullmatch(text)
    if not found:
        return text.removeprefix(_CHECKED)
    name, value = found["name"], found["value"]
    shown = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    takes = kind(name).replace("a tuple of", "a list of")  # as TOML calls it
    instead = f", not {shown}" if attrs.fields_dict(Config)[name].repr else ""  # a password may stand in it
    return f"{name} takes {takes}{instead} ({_place(name, found['loader'])})"


def _place(name: str, loader: str) -> str:
    """Return where a value stands: its variable, else its file."""
    if loader == "EnvLoader":
        return f"{ENV_PREFIX}{name.upper()}"
    return loader.removeprefix("FileLoader[").removesuffix("]")


def _leaves(error: BaseException) -> list[str]:
    """Return the texts of an exception group's innermost errors, each on one line."""
    if isinstance(error, BaseExceptionGroup):
        return [text for part in error.exceptions for text in _leaves(part)]
    return [" ".join(str(error).split())]
