"""What the Python peers share: the words of the contract. Their words are PORT and CLI."""

from __future__ import annotations

import json
import re
import resource
import sys

PORT, CLI = int(sys.argv[1]), sys.argv[2]
FLAGS = "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"
INFO = '{"info":"send {prompt,meta}"}'
PATH = "/ws/claude"
LONGEST_LINE = 16 << 20
META = re.compile(r"[A-Z0-9_\-]+")


def user_line(text: str | bytes) -> bytes:
    """Return the stream-json line for a client's message. Raises ValueError where the message is wrong."""
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    prompt, meta = message.get("prompt"), message.get("meta")
    if not isinstance(prompt, str) or not 0 < len(prompt.encode()) <= 8192:
        raise ValueError("bad prompt")
    if not isinstance(meta, str) or not META.fullmatch(meta):
        raise ValueError("bad meta")
    return json.dumps({"type": "user", "message": {"role": "user", "content": prompt}}).encode() + b"\n"


def raise_descriptor_limit() -> None:
    """Take as many descriptors as there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
