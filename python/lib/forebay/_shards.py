"""Shards read one after the other, the next bytes on their way already."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ._errors import DataLoss, Error
from ._forebay import Buffer, Client, File, Future
from ._url import split


@dataclass(frozen=True)
class Start:
    """Where a shard is begun: at an offset of a generation, 0 for the newest."""

    url: str
    generation: int = 0
    offset: int = 0


@dataclass
class _Read:
    shard: int
    buffer: Buffer
    future: Future


class Pipeline:
    """Reads of several shards in flight, in a bounded number of buffers."""

    def __init__(self, client: Client, shards: Sequence[Start], piece: int, pieces: int) -> None:
        self._client, self._shards = client, shards
        self._spare = [client.alloc(piece) for _ in range(pieces)]
        self._under_way: deque[_Read] = deque()
        # Those from which reads were asked for, or what came of opening them.
        self._files: dict[int, File | Error] = {}
        self._asking = 0
        self._next = 0

    def open(self, shard: int) -> "Shard":
        """A shard, which is read before any that comes after it."""
        file = self._file(shard)
        if isinstance(file, Error):
            raise file
        return Shard(self, shard, self._shards[shard], file)

    def close(self, shard: int) -> None:
        """Gives up what is left of a shard."""
        while self._under_way and self._under_way[0].shard == shard:
            read = self._under_way.popleft()
            read.future.exception()
            self._spare.append(read.buffer)
        if self._asking == shard:
            self._asking, self._next = shard + 1, 0
        file = self._files.pop(shard, None)
        if isinstance(file, File):
            file.close()

    def take(self, shard: int) -> tuple[Buffer, int]:
        """A shard's next bytes: a buffer and how much of it; to be given back."""
        self._ask()
        read = self._under_way.popleft()
        assert read.shard == shard, "shards are read in their order"
        try:
            return read.buffer, read.future.result()
        except BaseException:
            self._spare.append(read.buffer)
            raise

    def keep(self, buffer: Buffer) -> None:
        """Lets a buffer be read into again, when something is read next."""
        self._spare.append(buffer)

    def give_back(self, buffer: Buffer) -> None:
        """Lets a buffer be read into again."""
        self._spare.append(buffer)
        self._ask()

    def _ask(self) -> None:
        while self._spare and self._asking < len(self._shards):
            file = self._file(self._asking)
            offset = max(self._next, self._shards[self._asking].offset)
            if isinstance(file, Error) or offset >= file.size:
                self._asking, self._next = self._asking + 1, 0
                continue
            buffer = self._spare.pop()
            try:
                future = file.read_into(buffer, offset)
            except BaseException:
                self._spare.append(buffer)
                raise
            self._under_way.append(_Read(self._asking, buffer, future))
            self._next = offset + len(buffer)

    def _file(self, shard: int) -> File | Error:
        if shard not in self._files:
            start = self._shards[shard]
            try:
                self._files[shard] = self._client.open(split(start.url)[1], start.generation)
            except Error as error:
                self._files[shard] = error
        return self._files[shard]


class Shard:
    """One shard, read from its start to its end."""

    def __init__(self, pipeline: Pipeline, number: int, start: Start, file: File) -> None:
        self._pipeline, self._number = pipeline, number
        self._buffer: Buffer | None = None
        self._left = memoryview(b"")
        self.url, self.offset = start.url, start.offset
        self.generation, self.size = file.generation, file.size

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if size <= len(self._left):
            content = bytes(self._left[:size])
            self.skip(size)
            return content
        parts = []
        while size:
            self._look()
            part = bytes(self._left[:size])
            parts.append(part)
            size -= len(part)
            self.skip(len(part))
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Goes on without the next bytes."""
        while size:
            self._look()
            step = min(size, len(self._left))
            self._left = self._left[step:]
            self.offset += step
            size -= step

    def _look(self) -> None:
        """Waits for the next piece if there is nothing left of this one."""
        if self._left:
            return
        self._drop()
        self._buffer, count = self._pipeline.take(self._number)
        if count == 0:
            raise DataLoss(f"{self.url} at offset {self.offset}: no more bytes came")
        self._left = memoryview(self._buffer)[:count]

    def _drop(self) -> None:
        self._left = memoryview(b"")
        if self._buffer is not None:
            self._pipeline.give_back(self._buffer)
            self._buffer = None

    def close(self) -> None:
        """Gives up what is left, without beginning any read."""
        self._left = memoryview(b"")
        if self._buffer is not None:
            self._pipeline.keep(self._buffer)
            self._buffer = None
