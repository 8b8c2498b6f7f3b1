"""Types a conversation: `typist.py FILE COMMAND…` runs the command, and says what stands behind its prompts in FILE.

Rule: a line is typed when its prompt has come and not before; all that the command says is passed on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PROMPTS = re.compile(r"^(> |allow\? .*?: )(.*)$", re.MULTILINE)


def main() -> int:
    """Converse to the command's end; return its exit status."""
    turns = PROMPTS.findall(Path(sys.argv[1]).read_text())
    said, at = "", 0
    with subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        while data := os.read(process.stdout.fileno(), 65536):
            said += data.decode()
            sys.stdout.write(data.decode())
            sys.stdout.flush()
            while turns and (found := said.find(turns[0][0], at)) >= 0:
                prompt, typed = turns.pop(0)
                at = found + len(prompt)
                sys.stdout.write(f"{typed}\n")
                process.stdin.write(f"{typed}\n".encode())
                process.stdin.flush()
    return process.wait() or len(turns)


if __name__ == "__main__":
    sys.exit(main())
