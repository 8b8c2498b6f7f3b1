"""A real Redis for tests: on a socket in a folder of its own, to be killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from harness import short_folder

START_TIMEOUT = 10.0


@attrs.define
class RedisServer:
    """One redis-server. Whatever it has acknowledged is in its file within a second."""

    folder: Path
    more: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    @property
    def pid(self) -> int:
        assert self._process, "Redis does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it, with what its folder holds, and wait until it answers. Raises `TimeoutError`."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "yes",
                 "--appendfsync", "everysec", *self.more],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        end = time.monotonic() + START_TIMEOUT
        while self.call("PING")[:6] not in (b"PONG", b"NOAUTH"):
            if time.monotonic() > end or self._process.poll() is not None:
                raise TimeoutError(f"Redis does not answer: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)  # Redis does not tell that it serves; START_TIMEOUT ends it

    def call(self, *words: str) -> bytes:
        """Return what it answers to one command, as redis-cli tells it; an error's text where it does not."""
        line = ["redis-cli", "-s", str(self.folder / "redis.sock"), *words]
        done = subprocess.run(line, capture_output=True, check=False, timeout=START_TIMEOUT)
        return done.stdout.strip() or done.stderr.strip()

    def listen(self, kind: str = "port") -> int:
        """Have it listen on a free port of the loopback too, by TLS with `tls-port`; return that."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.call("CONFIG", "SET", kind, str(port))
        return port

    def kill(self) -> None:
        """End it as a crash would, with SIGKILL."""
        self._send(signal.SIGKILL)
        assert self._process
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill it and start it again on its file: another incarnation."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """Have it hang, until `go_on`."""
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        os.kill(self.pid, number)

    def renew(self) -> None:
        """Have it run, and hold nothing."""
        if self._process is None:
            self.start()
        self.go_on()
        self.call("FLUSHALL")

    def end(self) -> None:
        """End it if it runs, also one that hangs."""
        if self._process:
            self.kill()


@contextmanager
def open_redis_server(*more: str) -> Iterator[RedisServer]:
    """Start a Redis with options of its own beside those that all have."""
    with short_folder() as folder:
        server = RedisServer(folder, more)
        try:
            server.start()
            yield server
        finally:
            server.end()
