"""The rules of `/ws/session`: what a client may say to its CLI, in which states, and for how long.

Rule 1: no await, no trio, no clock; `now` is an argument. Rule 2: nothing that a client says reaches a CLI as it is;
each line is built anew from what is allowed.
"""

from .lines import CONTROLS, OWN_REQUEST, ClientLine, Kind, denial, rebuild
from .ops import LINES_LIMIT, Attach, Detach, Start, Stop, parse_op, parse_start, recalling
from .states import READS_STATE, TABLE, Asked, Clock, Due, Happening, Patience, Session, Settled, State

__all__ = [
    "CONTROLS",
    "LINES_LIMIT",
    "OWN_REQUEST",
    "READS_STATE",
    "TABLE",
    "Asked",
    "Attach",
    "ClientLine",
    "Clock",
    "Detach",
    "Due",
    "Happening",
    "Kind",
    "Patience",
    "Session",
    "Settled",
    "Start",
    "State",
    "Stop",
    "denial",
    "parse_op",
    "parse_start",
    "rebuild",
    "recalling",
]
