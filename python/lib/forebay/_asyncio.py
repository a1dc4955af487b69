"""Futures in an event loop."""

import asyncio
import itertools
import weakref

from ._forebay import Future, Watcher

# By the numbers of clients. A watch that nobody waits by is not kept, as it would keep its loop.
_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, "_Watch"]] = (
    weakref.WeakKeyDictionary()
)


class _Watch:
    """One client's ends of futures, for those who wait for some in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: int, watcher: Watcher) -> None:
        self._loop, self._client, self._watcher = loop, client, watcher
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        _watches.setdefault(loop, {})[client] = self
        loop.add_reader(watcher.fileno(), self._take)

    @classmethod
    def of(cls, future: Future) -> "_Watch":
        loop, client = asyncio.get_running_loop(), future._client()
        return _watches.get(loop, {}).get(client) or cls(loop, client, future._watcher())

    async def wait(self, future: Future) -> None:
        """Until the future has ended."""
        number = next(self._numbers)
        waiter = self._waiting[number] = self._loop.create_future()
        try:
            if future._watch(self._watcher, number):
                await waiter
        finally:
            # Also when nobody waits any longer.
            self._waiting.pop(number, None)
            if not self._waiting:
                self._end()

    def _take(self) -> None:
        for number in self._watcher.take():
            waiter = self._waiting.get(number)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _end(self) -> None:
        watches = _watches.get(self._loop, {})
        if watches.get(self._client) is self:
            del watches[self._client]
            self._loop.remove_reader(self._watcher.fileno())


async def settled(future: Future) -> int:
    """``future.result()``, without blocking the event loop."""
    if not future.done():
        await _Watch.of(future).wait(future)
    return future.result()
