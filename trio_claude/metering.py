"""What a run uses: by the results of its CLI; where it ends without one, by what was seen of its messages. Pure.

Rule: nobody is charged twice for one turn, and nobody reads an answer for nothing. A CLI counts a whole session, the
turns of earlier runs included, so what those came to is the baseline from which a run that goes on with it is counted;
but one that was killed has saved less of that, or nothing, which its next process shows.
"""

from __future__ import annotations

import attrs

from .stream_json import DELTA, Sign, Spent, are_deltas, parse_line, tokens_of

PRICE = 15e-6
"""Dollars that a token is reckoned at where no result has told: between input and output of the larger models."""
DELTA_TOKENS = 4
"""Tokens that a delta is reckoned at."""
TEXT_BYTES = 4
"""Bytes of a message that are reckoned as a token."""
SLACK = 2.0
"""How many times what it found left of the day a run can be charged: a result is only what its processes say."""
MESSAGES = 1000
"""Messages that are each known by their ids: agents speak side by side, and say one message in pieces."""
ID_LENGTH = 128
"""Characters of such an id by which it is known."""
TOLERANCE = 1.01
"""How far a session's total may differ from what was charged for it and still be the same count."""


class Meter:
    """The meter of one run. `baseline` is None where nobody knows it.

    `left` is what the run finds of the day's dollars; never what its client wants it to cost, which one response may
    pass many times over.
    """

    def __init__(self, baseline: Spent | None, left: float | None) -> None:
        self.charged: Spent = Spent()
        self._baseline = baseline
        self._counts = False
        self._left = None if left is None else left * SLACK
        self._messages: dict[str, int] = {}
        self._earlier = 0
        """Tokens of messages that are not known by their ids any more."""
        self._deltas = 0

    def hear(self, lines: list[bytes]) -> None:
        """Take lines, in order, for the case that no result follows."""
        if are_deltas(lines):
            self._deltas += len(lines)
            return
        for line in lines:
            if line.startswith(DELTA):
                self._deltas += 1
            elif b'"assistant"' in line:
                self._note(line)

    def _note(self, line: bytes) -> None:
        message = parse_line(line).get("message")
        if not isinstance(message, dict):
            return
        self._deltas = 0
        said = tokens_of(message.get("usage"))
        name = str(message.get("id"))[:ID_LENGTH]
        self._messages[name] = max(self._messages.pop(name, 0), said) + len(line) // TEXT_BYTES  # as the latest
        if len(self._messages) > MESSAGES:
            self._earlier += self._messages.pop(next(iter(self._messages)))

    def result(self, sign: Sign) -> Spent:
        """Return what is to be charged for a result."""
        assert sign.spent
        whole = sign.spent
        if self._baseline is None or (whole.tokens and not self._counts):
            self._baseline = self._begin(whole, sign)
        used = Spent(max(0, whole.tokens - self._baseline.tokens), max(0.0, whole.dollars - self._baseline.dollars))
        self._baseline = Spent(self._baseline.tokens + used.tokens, self._baseline.dollars + used.dollars)
        self._forget()
        return self._charge(used)

    def _begin(self, whole: Spent, sign: Sign) -> Spent:
        """Return from where on the first result of a process counts: it may know less than was told.

        A CLI that was killed forgot what it had not saved, so it had counted less than the baseline before the turn.
        """
        self._counts = True
        turn, dollars = min(sign.turn_tokens, whole.tokens), sign.turn_dollars
        if dollars is None or not whole.tokens:
            dollars = whole.dollars * (turn / whole.tokens if whole.tokens else 1.0)
        before = Spent(whole.tokens - turn, max(0.0, whole.dollars - dollars))
        if self._baseline is None:  # of a session that somebody else's server, or an earlier one, has begun
            return before
        if before.tokens * TOLERANCE >= self._baseline.tokens:
            return self._baseline
        return before if sign.turn_tokens else Spent()

    def rest(self) -> Spent:
        """Return what is to be charged at the end for what no result has told of."""
        tokens = self._earlier + sum(self._messages.values()) + self._deltas * DELTA_TOKENS
        self._forget()
        price = self.charged.dollars / self.charged.tokens if self.charged.tokens and self.charged.dollars else PRICE
        return self._charge(Spent(tokens, tokens * price))

    def _forget(self) -> None:
        self._messages.clear()
        self._earlier = self._deltas = 0

    @property
    def whole(self) -> Spent | None:
        """What the session has come to, by the CLI's count; None where nobody knows."""
        return self._baseline

    def _charge(self, used: Spent) -> Spent:
        dollars = used.dollars
        if self._left is not None:
            dollars = min(dollars, self._left)
            self._left -= dollars
        used = attrs.evolve(used, dollars=dollars)
        self.charged = Spent(self.charged.tokens + used.tokens, self.charged.dollars + used.dollars)
        return used
