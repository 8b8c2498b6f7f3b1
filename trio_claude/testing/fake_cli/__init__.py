"""Stand in for the Claude CLI 2.1.330: the same flags, the same stream-json both ways, the same deaths.

Rule 1: nothing here opens a socket, asks a model, or writes outside the working directory and TMPDIR. Rule 2: nothing
it starts for `tree` outlives its bound, so that a broken test leaves nothing for ever. Rule 3: the standard library
alone, and little of it, for it is started hundreds of times: by ``fake-claude``, by ``python -m``, or, where nothing is
installed, by ``python -I -S`` and `FOLDER`.

What a turn does stands in its prompt, as JSON objects between ``@@`` marks, performed in order. Those of the model are
in `trio_claude.testing.model`, so one suite can run against this and against the real CLI before the Messages API stub,
which follows the last one only. As there, a prompt without one repeats the last, with the tool results it already has.
Bash and StructuredOutput work, other tools are unknown. Errors are retried with the real delays; what was streamed
before it broke off is void, and asked again without streaming: at once after `miderr`, 300 s into a `stall`, and when a
`reset` has used up CLAUDE_CODE_MAX_RETRIES (10).

Its own, which say no `assistant` line; a turn that gets past them ends with a `result`:

=========  ============================================  ==========================================================
do         other fields                                  the CLI
=========  ============================================  ==========================================================
lines      n (1), rate (0: as fast as read), size (0),   lines {"type":"fake","n":1…,"pad":"…"} of size bytes each;
           stamp (false)                                 stamp: with "t", nanoseconds of CLOCK_MONOTONIC
stderr     text ("fake stderr"), n (1)                   the text as n lines on stderr
exit       status (0)                                    exits at once, without a result
signal     n                                             dies by (or stops on) that signal
silent                                                   says nothing for ever, reads nothing; first: not even init
raw        text or hex                                   writes just these bytes to stdout
nonewline  bytes (10000000)                              that many "x" on stdout
closeout                                                 closes stdout and lives on, deaf
linger     seconds (10)                                  after the result it stays that long, stdin closed or not
tree       kinds, seconds (60, at most 300), then        starts these, then says {"type":"fake","pids":[…],
                                                         "by_kind":{…}} as all exist; then: "exit" at once, "stay"
                                                         deaf for ever, or go on
=========  ============================================  ==========================================================

Kinds of a tree, each at most once a name in the list: `plain`; `setsid`; `double_fork` (and setsid); `ignore_term`
(TERM, HUP, INT); `env_clear` (an empty environment, double-forked, ignoring TERM); `stopped` (by SIGSTOP, under a
parent that ignores TERM and ends it in time: two pids); `hold_stdout` (double-forked); `comet` (forks its successor
into a new session and exits, every millisecond: no pid to name). Only `hold_stdout` keeps stdout. The clean-up that a
SIGTERM makes, like the real one's, covers Bash tools, not these.

Any directive may carry ``"ignore_term": true``: the CLI ignores SIGTERM and SIGINT from then on. The first may carry
``"init": false``: the turn has no init line. Every UUID can be resumed but the one of zeros only.
"""

from __future__ import annotations

import sys

from .flags import UNKNOWN_SESSION, Options, parse_flags
from .lines import VERSION
from .session import Session
from .wire import FatalError, write_all, write_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FOLDER", "UNKNOWN_SESSION", "VERSION", "main"]

FOLDER: str = __path__[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the CLI until stdin closes; return the exit status."""
    try:
        flags = parse_flags(sys.argv[1:] if arguments is None else arguments)
        if "--version" in flags:
            write_all(f"{VERSION} (Fake Claude)\n".encode())
            return 0
        return Session(Options(flags)).run()
    except FatalError as fatal:
        write_stderr(str(fatal))
        return 1
