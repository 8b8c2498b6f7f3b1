"""Say when how much of a run is stored: for each change its time and the number of lines, looked at all the time.

    stored.py JOURNAL

It looks at the latest run, ends when stdin does, and changes nothing.
"""

from __future__ import annotations

import select
import sqlite3
import sys
import time

PAUSE = 0.0005
LATEST = "SELECT id, stored FROM runs ORDER BY started DESC LIMIT 1"


def main():
    """Look, and print nanoseconds of CLOCK_MONOTONIC and lines."""
    db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
    seen = None
    while not select.select([0], [], [], PAUSE)[0]:
        found = db.execute(LATEST).fetchone()
        if found and found != seen:
            seen = found
            print(time.monotonic_ns(), found[1], flush=True)


main()
