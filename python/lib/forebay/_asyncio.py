"""Futures in an event loop."""

import asyncio
import itertools
import weakref

from ._forebay import Future, Watcher

_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, "_Watch"]] = (
    weakref.WeakKeyDictionary()
)


class _Watch:
    """One client's ends of futures, in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, watcher: Watcher) -> None:
        self._loop = loop
        self.watcher = watcher
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()

    def wait(self, future: Future) -> "asyncio.Future[None] | None":
        """Done when the future has ended; ``None`` if it has already."""
        number = next(self._numbers)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting[number] = waiter
        if len(self._waiting) == 1:
            self._loop.add_reader(self.watcher.fileno(), self._take)
        if not future._watch(self.watcher, number):
            self._end(number)
            return None
        return waiter

    def _take(self) -> None:
        for number in self.watcher.take():
            self._end(number)

    def _end(self, number: int) -> None:
        waiter = self._waiting.pop(number, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if not self._waiting:
            self._loop.remove_reader(self.watcher.fileno())


async def settled(future: Future) -> int:
    """``future.result()``, without blocking the event loop."""
    if not future.done():
        loop = asyncio.get_running_loop()
        watches = _watches.setdefault(loop, {})
        watch = watches.get(future._client())
        if watch is None:
            watch = watches[future._client()] = _Watch(loop, future._watcher())
        waiter = watch.wait(future)
        if waiter is not None:
            await waiter
    return future.result()
