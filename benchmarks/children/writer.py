"""Keep a disk busy: write 64 KiB to a file and sync it, again and again, until stdin ends.

writer.py FILE
"""

from __future__ import annotations

import os
import select
import sys

CHUNK = b"x" * 65536
MOST = 1000
"""Chunks that the file has at most."""


def main():
    """Write, and print how often."""
    file, count = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600), 0
    while not select.select([0], [], [], 0)[0]:
        os.pwrite(file, CHUNK, count % MOST * len(CHUNK))
        os.fsync(file)
        count += 1
    print(count)


main()
