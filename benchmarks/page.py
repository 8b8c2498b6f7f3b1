"""How the page bears a long answer: tasks that hold it up, what shifts, and what it keeps, in a real Chromium.

    python benchmarks/page.py --deltas 20000

The fake CLI says an answer of so many deltas as fast as it is read, behind a short one that warms the page up: once as
one paragraph, once as Markdown with lists, tables and code. It needs what the browser tests need: Node.js, npm and
Chromium.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import trio
from common import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from browser import install_modules
from harness import directive, open_backend, short_folder
from pages import Browser, Page, open_browser

PART = """## Part {n}

Some **bold** text with `code`, *emphasis* and [a link](https://example.com/{n}), long enough to fill more than a line.

- one
- two with `code`
  - three

```python
def part_{n}(value: int) -> str:
    # {n}
    return f"{{value}}" * {n}
```

| name | value |
|---|---|
| a | {n} |

"""
WATCH = """
globalThis.measured = { tasks: [], shift: 0 };
new PerformanceObserver((list) => list.getEntries().forEach((one) => measured.tasks.push(one.duration)))
  .observe({ entryTypes: ["longtask"] });
const shifted = (one) => (measured.shift += one.hadRecentInput ? 0 : one.value);
new PerformanceObserver((list) => list.getEntries().forEach(shifted))
  .observe({ type: "layout-shift" });
"""
TOLD = """({
  tasks: measured.tasks.length, longest: Math.max(0, ...measured.tasks), shift: measured.shift,
  heap: performance.memory.usedJSHeapSize, nodes: document.querySelectorAll("*").length,
})"""


def markdown(deltas: int) -> str:
    """Return Markdown of about five characters a delta."""
    return "".join(PART.format(n=number) for number in range(max(1, deltas * 5 // len(PART))))


async def measure(page: Page, prompt: str) -> dict[str, float]:
    """Return what one answer does to a page that is warm."""
    await page.say(directive("text", text=markdown(500), deltas=500))
    await page.wait_count(".turn-end", 1)
    await page.evaluate(WATCH)
    began = time.perf_counter()
    await page.say(prompt)
    await page.wait_count(".turn-end", 2)
    took = time.perf_counter() - began
    return {"seconds": took, **await page.evaluate(TOLD)}


async def run(browser: Browser, deltas: int) -> dict[str, dict[str, float]]:
    """Return the figures of both answers."""
    prompts = {
        "one paragraph": directive("many", n=deltas),
        "Markdown": directive("text", text=markdown(deltas), deltas=deltas),
    }
    found = {}
    with short_folder() as folder:
        async with open_backend("fake", folder) as fake, fake.serve(journal="memory") as server:
            for name, prompt in prompts.items():
                async with browser.open(f"{server.url}/") as page:
                    found[name] = await measure(page, prompt)
    return found


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deltas", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, open_browser(install_modules(), Path(home)) as browser:
        found = trio.run(run, browser, asked.deltas)
    for name, told in found.items():
        print(
            f"{name}: {told['seconds']:.1f} s, {told['tasks']} tasks over 50 ms, the longest {told['longest']:.0f} ms, "
            f"CLS {told['shift']:.4f}, heap {told['heap'] / 2**20:.0f} MiB, {told['nodes']} elements"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine(), "deltas": asked.deltas, "answers": found}, indent=1))


if __name__ == "__main__":
    main()
