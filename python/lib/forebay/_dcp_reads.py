"""Parts of a checkpoint's tensors on their way to where they belong."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from ._errors import DataLoss, Invalid
from ._forebay import Client, File, Future
from ._room import BYTES_UNDER_WAY, UNDER_WAY, room


@dataclass(frozen=True)
class Place:
    """Where an item's bytes are: in a file beside ``.metadata``, at one generation of it."""

    file: str
    generation: int
    offset: int
    size: int
    # Of a tensor's chunk; a blob has neither.
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()


class Read:
    """A part of a tensor on its way."""

    def __init__(
        self, client: Client, file: File, place: Place, item: ReadItem, planner: LoadPlanner
    ) -> None:
        assert place.dtype is not None, "the item is a tensor"
        self._item = item
        self._target = planner.resolve_tensor(item).detach()
        rows, rest = _rows(place.shape, item.storage_offsets, item.lengths)
        row = math.prod(place.shape[1:]) * torch.empty((), dtype=place.dtype).element_size()
        self.size = row * (rows.stop - rows.start)
        self._future: Future | None = None
        self._where = f"{file.name} at offset {place.offset}"
        shape = (rows.stop - rows.start, *place.shape[1:]) if place.shape else ()
        target = self._target
        reachable = target.device.type in ("cpu", "cuda") and target.is_contiguous()
        direct = reachable and target.dtype == place.dtype
        if direct and target.shape == torch.Size(shape) and not rest:
            self._part = target
            # As bytes, which have an equivalent in every library.
            memory: Any = target.view(-1).view(torch.uint8) if self.size else None
            if self.size and target.is_cpu:
                memory = memory.numpy()
        else:
            memory = room(client, self.size) if self.size else None
            whole = (
                torch.frombuffer(memory, dtype=place.dtype)
                if self.size
                else torch.empty(0, dtype=place.dtype)
            )
            self._part = whole.reshape(shape)
            for axis, (begin, length) in rest.items():
                self._part = self._part.narrow(axis, begin, length)
        if self.size:
            self._future = file.read_into(memory, place.offset + rows.start * row)

    def finish(self, planner: LoadPlanner) -> None:
        """Waits, and puts the part where it belongs."""
        if self._future is not None and self._future.result() != self.size:
            raise DataLoss(f"{self._where} is cut off: save the checkpoint again")
        if self._part is not self._target:
            if self._part.shape != self._target.shape:
                raise Invalid(
                    f"{self._item.dest_index.fqn!r} has the shape {list(self._target.shape)}, "
                    f"and what was saved {list(self._part.shape)}"
                )
            self._target.copy_(self._part)
        planner.commit_tensor(self._item, self._target)


def ahead(reads: Iterable[Read]) -> Iterator[Read]:
    """Reads in their order, a bounded number of them on the way."""
    under_way: deque[Read] = deque()
    waiting = 0
    for read in reads:
        under_way.append(read)
        waiting += read.size
        while len(under_way) > UNDER_WAY or (waiting > BYTES_UNDER_WAY and len(under_way) > 1):
            first = under_way.popleft()
            waiting -= first.size
            yield first
    yield from under_way


def _rows(
    shape: tuple[int, ...], offsets: Sequence[int], lengths: Sequence[int]
) -> tuple[range, dict[int, tuple[int, int]]]:
    """Which rows hold a part of a chunk, and what part of them it is, by axis."""
    if not shape:
        return range(1), {}
    rest = {
        axis: (offsets[axis], lengths[axis])
        for axis in range(1, len(shape))
        if lengths[axis] != shape[axis]
    }
    return range(offsets[0], offsets[0] + lengths[0]), rest
