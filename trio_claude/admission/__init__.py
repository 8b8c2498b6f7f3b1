"""Who may come in and how much they may use: places, slots, rates, budgets.

Rules: no await, no trio, no clock; `now` is an argument. A decision either changes this room's state or raises.
"""

from .allowance import ALL, Allowance, check_budgets, check_rates
from .budgets import Ledger
from .doors import Crowd, Doorstep, place_of
from .limits import Limits, Member, own_limits, total_limits
from .locks import SessionLocks
from .slots import Slots, Waiter

__all__ = [
    "ALL",
    "Allowance",
    "Crowd",
    "Doorstep",
    "Ledger",
    "Limits",
    "Member",
    "SessionLocks",
    "Slots",
    "Waiter",
    "check_budgets",
    "check_rates",
    "own_limits",
    "place_of",
    "total_limits",
]
