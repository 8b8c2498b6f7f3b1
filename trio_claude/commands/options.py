"""The fields of `Config` as command-line options, so that a setting is declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import click

from ..config import Config
from .completing import for_field
from .settings import load

DEFAULTS: Final = {"journal": "auto"}
"""What commands take where nothing is given, in place of a field's own default."""
_REPEATED = tuple(field.name for field in attrs.fields(Config) if isinstance(field.default, tuple))


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every field, and `--config FILE`."""
    return options_for(*(field.name for field in attrs.fields(Config)))(function)


def options_for(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for each of the fields `names`, and `--config FILE`, which takes all of them."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = _option(attrs.fields_dict(Config)[name])(function)
        file = click.Path(dir_okay=False, path_type=Path)
        return click.option("--config", "config_file", type=file, help="A TOML file with any of the settings.")(
            function
        )

    return add


def _option(field: attrs.Attribute[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return one option, named as the field; not given is None, so that environment and file can speak."""
    flag = f"--{field.name.replace('_', '-')}"
    unit = field.metadata["unit"]
    text = f"{field.metadata['help']}{f', in {unit}' if unit else ''}"
    shown = f"{text} [default: {_shown(DEFAULTS.get(field.name, field.default))}]"
    if field.name in _REPEATED:
        return click.option(flag, multiple=True, help=f"{text} (may be repeated)", shell_complete=for_field(field))
    if isinstance(field.default, bool):
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    return click.option(flag, type=type(field.default), default=None, help=shown, shell_complete=for_field(field))


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def read_config(values: dict[str, Any], config_file: Path | None, **defaults: Any) -> Config:
    """Return the configuration out of the options that were given; `defaults` are the command's own.

    Raises `ConfigError`.
    """
    given = {name: value for name, value in values.items() if value not in (None, ())}
    return load(given, config_file, defaults={**DEFAULTS, **defaults})
