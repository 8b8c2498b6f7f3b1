"""The server's ends of a run's pipes, as Trio streams on bare descriptors.

Duty: move bytes without a system call more than needed. A read waits until the pipe has something and takes what is
there; a write tries first and waits only where the pipe is full. This module must never block the loop.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import trio

from .pump import READ_SIZE, Pump, Take


class _End:
    """One descriptor, closed once."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    def close(self) -> None:
        """Close now; whoever waits on the pipe gets `ClosedResourceError`."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)

    async def aclose(self) -> None:
        """Close now, as a Trio stream."""
        self.close()
        await trio.lowlevel.checkpoint()

    def fileno(self) -> int:
        """Return the descriptor. Raises trio.ClosedResourceError where this end was closed."""
        if self._descriptor < 0:
            raise trio.ClosedResourceError("this end of the pipe is closed")
        return self._descriptor


def is_quiet(*descriptors: int) -> bool:
    """Return whether nothing can be read from any of `descriptors`, not even an end."""
    look = select.poll()
    for descriptor in descriptors:
        look.register(descriptor, select.POLLIN)
    return not look.poll(0)


async def wait_any(*descriptors: int) -> None:
    """Wait until one of `descriptors` can be read."""
    async with trio.open_nursery() as nursery:

        async def watch(descriptor: int) -> None:
            await trio.lowlevel.wait_readable(descriptor)
            nursery.cancel_scope.cancel()

        for descriptor in descriptors:
            nursery.start_soon(watch, descriptor)


class PipeReader(_End, trio.abc.ReceiveStream):
    """The reading end of a pipe."""

    _pump: Pump | None = None
    """What reads it just now."""

    def close(self) -> None:
        """Close now; whoever waits on the pipe gets `ClosedResourceError`."""
        self.end_hearing()
        super().close()

    async def receive_rest(self, pump: Pump, take: Take) -> bytes:
        """Have a pump offer what the pipe holds to `take`; return what that does not take, empty at the pipe's end.

        Raises trio.ClosedResourceError where this end was closed, and what `take` raises.
        """
        descriptor, self._pump = self.fileno(), pump
        try:
            rest = await pump.wait(descriptor, take)
        finally:
            self._pump = None
        return await self.receive_some() if rest is None else rest

    def begin_hearing(self, pump: Pump, first: Callable[[bytes], None], lost: Callable[[], None]) -> bool:
        """Have a pump offer to `first`, once, what the pipe holds next, while no task waits; return whether it does.

        `lost` is called instead where the pump ends before.
        """
        if has_begun := pump.hear(self.fileno(), first, lost):
            self._pump = pump
        return has_begun

    def end_hearing(self) -> None:
        """Offer nothing more."""
        if self._pump and self._descriptor >= 0:
            self._pump.release(self._descriptor)
        self._pump = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what the pipe holds, empty at its end.

        Raises trio.ClosedResourceError where this end was closed.
        """
        while True:
            await trio.lowlevel.wait_readable(self.fileno())
            try:
                return os.read(self.fileno(), max_bytes or READ_SIZE)
            except BlockingIOError:
                continue


class PipeWriter(_End, trio.abc.SendStream):
    """The writing end of a pipe."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`.

        Raises trio.BrokenResourceError where nobody reads any more, trio.ClosedResourceError where this end was closed.
        """
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                try:
                    sent += os.write(self.fileno(), view[sent:])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.fileno())
                except BrokenPipeError as error:
                    raise trio.BrokenResourceError("nobody reads this pipe any more") from error

    def feed(self, data: bytes) -> bytes:
        """Write what the pipe takes at once, and close it if that was all, or if nobody reads; return the rest."""
        try:
            rest = data[os.write(self.fileno(), data) :]
        except BlockingIOError:
            return data
        except BrokenPipeError:
            rest = b""
        if not rest:
            self.close()
        return rest

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the pipe takes bytes."""
        await trio.lowlevel.wait_writable(self.fileno())
