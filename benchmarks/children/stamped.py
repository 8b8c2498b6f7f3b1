"""A CLI for measurements: it says lines that hold the time at which they were written.

The prompt is `COUNT RATE SIZE`: so many lines, so many a second (0: as fast as the pipe takes them), of so many bytes.
"""

import json
import sys
import time


def main() -> None:
    """Read the prompt and say the lines."""
    count, rate, size = map(int, json.loads(sys.stdin.readline())["message"]["content"].split())
    write, flush = sys.stdout.write, sys.stdout.flush
    began = time.monotonic()
    for number in range(count):
        if rate and (wait := began + number / rate - time.monotonic()) > 0:
            time.sleep(wait)
        line = f'{{"type":"line","n":{number},"t":{time.monotonic_ns()}'
        write(f'{line},"pad":"{"x" * max(0, size - len(line) - 9)}"}}\n')
        if rate:
            flush()


main()
