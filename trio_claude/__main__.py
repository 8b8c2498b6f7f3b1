"""The command line's entry: `trio-claude` and `python -m trio_claude`."""

from __future__ import annotations

from .commands import main

if __name__ == "__main__":
    main()
