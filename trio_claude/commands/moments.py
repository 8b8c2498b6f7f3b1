"""A time as it is typed: seconds since 1970, a date, a date and time, or an age."""

from __future__ import annotations

import datetime
import re
import time

import click

LONGEST = 1e15
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


def take_moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of an option's time; a callback of click."""
    if value is None:
        return None
    try:
        return moment(value, time.time())
    except (ValueError, OverflowError):
        text = "is no time; say seconds since 1970, 2026-11-27, 2026-11-27T10:00, 90m, 2h or 7d"
        raise click.BadParameter(f"{value!r} {text}") from None


def take_day(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the day of UTC in which an option's time lies; a date alone is that day. A callback of click."""
    seconds = take_moment(ctx, param, value)
    if value is None or seconds is None or _DATE.fullmatch(value):
        return value
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{value!r} lies behind the year 9999") from None


def moment(text: str, now: float) -> float:
    """Return the seconds since 1970 of a time; a date without a zone is this machine's. Raises ValueError."""
    if age := _AGE.fullmatch(text):
        return max(0.0, now - float(age[1]) * UNITS[age[2]])
    try:
        seconds = float(text)
    except ValueError:
        seconds = datetime.datetime.fromisoformat(text).timestamp()
        if -UNITS["d"] < seconds < 0:  # east of Greenwich 1970 begins before it does there
            return 0.0
    if not 0 <= seconds <= LONGEST:  # nor is NaN
        raise ValueError(text)
    return seconds


def shown(seconds: object, zone: str = "") -> str:
    """Return a time as a person of this machine reads it, empty where it is none."""
    if not isinstance(seconds, int | float):
        return ""
    try:
        return time.strftime(f"%Y-%m-%d %H:%M:%S{zone}", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)
