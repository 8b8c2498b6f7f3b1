"""Start the stand-in, as a module or as a folder: ``python -I -S .../fake_cli``.

Rule: nothing but the start stands here. A folder that is run is no package; the folder two above takes its place in
sys.path, so that it becomes one under a shorter name, and the package's own root, which costs more, is never loaded.
"""

from __future__ import annotations

import importlib
import os
import sys

if __name__ == "__main__":
    if not __package__:
        sys.path[0] = os.path.abspath(f"{__file__}/../../..")
    sys.exit(importlib.import_module(__package__ or "testing.fake_cli").main())
