"""Rule: of the Autobahn suite's cases that need no compression, none fails; driven through our own accept path."""

from __future__ import annotations

import json
import sys

import trio
from echo import open_echo

CASES = 301
"""Those of the groups 1 to 7, 9 and 10; 12 and 13 are about permessage-deflate, which is not offered."""
LIMIT = 120.0
"""Seconds for all cases; they take eight."""
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
DRIVER = """
import asyncio, json, os, sys
import kosoku

async def run():
    try:
        return await kosoku.run_fuzzingclient(sys.argv[1], exclude_cases=["12.*", "13.*"], concurrency=4)
    except kosoku.FailureError as failure:
        return failure.results

told = [
    [case.case_id, case.behavior.value, case.behavior_close.value, case.result, case.result_close]
    for case in asyncio.run(run())
]
json.dump(told, sys.stdout)
sys.stdout.flush()
os._exit(0)
"""
"""Runs apart, for the suite wants asyncio and changes `binascii`.

It leaves without Python's own end, for the suite's threads may abort the process where they meet that.
"""


async def test_no_case_fails() -> None:
    async with open_echo() as port:
        with trio.fail_after(LIMIT):
            told = await trio.run_process(
                [sys.executable, "-c", DRIVER, f"ws://127.0.0.1:{port}/"], capture_stdout=True
            )
    results = json.loads(told.stdout)
    assert [result for result in results if not {result[1], result[2]} <= GOOD] == []
    assert len(results) == CASES
