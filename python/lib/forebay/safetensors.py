"""Tensors of ``.safetensors`` files, read straight to where they stay.

``load_file(url)`` is the dictionary that ``safetensors.numpy.load_file`` makes of a local file.
``safe_open(url)`` reads one tensor at a time. Beyond the tensors themselves, little memory is used:
a bounded number of reads is on the way, and nothing is mapped or cached.
"""

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ._again import connect_again
from ._errors import Busy, DataLoss, NoSpace, Unsupported
from ._forebay import Client, File, Future
from ._url import split

_LENGTH_BYTES = 8
_MOST_HEADER = 100_000_000
_UNDER_WAY = 64
_BYTES_UNDER_WAY = 256 << 20

_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Entry:
    """Where a tensor's bytes are in the file, and what they are."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


class safe_open:
    """A file of tensors: ``with safe_open(url) as f: f.get_tensor(f.keys()[0])``."""

    def __init__(
        self,
        url: str,
        framework: str = "numpy",
        *,
        endpoint: str = "auto",
        **options: Any,
    ) -> None:
        if framework not in ("numpy", "np"):
            raise Unsupported(f"there is no framework {framework!r}: there is numpy")
        place, name = split(url)
        self._client: Client = connect_again(place or endpoint, options)
        self._file: File = self._client.open(name)
        try:
            self._metadata, self._entries = _header(self._file)
        except BaseException:
            self._file.close()
            raise

    def keys(self) -> list[str]:
        """The tensors' names, in alphabetical order."""
        return sorted(self._entries)

    def metadata(self) -> dict[str, str] | None:
        """What the file says of itself."""
        return self._metadata

    def get_tensor(self, name: str) -> Array:
        """Reads one tensor."""
        return next(array for _, array in self.tensors([name]))

    def tensors(self, names: list[str] | None = None) -> Iterator[tuple[str, Array]]:
        """Tensors by name, or all in the order of the file, the next ones on their way already."""
        if names is None:
            names = sorted(self._entries, key=lambda name: self._entries[name].begin)
        left = deque(names)
        reads: deque[tuple[str, Array, Future, int]] = deque()
        waiting = 0
        while left or reads:
            while left and len(reads) < _UNDER_WAY and (waiting < _BYTES_UNDER_WAY or not reads):
                name = left.popleft()
                entry = self._entry(name)
                array = self._room(entry)
                read = self._file.read_into(array.reshape(-1).view(np.uint8), entry.begin)
                reads.append((name, array, read, entry.size))
                waiting += entry.size
            name, array, read, size = reads.popleft()
            if read.result() != size:
                raise DataLoss(f"{self._file.name}: tensor {name!r} is cut off")
            waiting -= size
            yield name, array

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise KeyError(f"{self._file.name} has no tensor {name!r}") from None

    def _room(self, entry: _Entry) -> Array:
        """Memory for a tensor: the node's to write, as long as it maps more of that."""
        dtype = _dtype(entry.dtype)
        if entry.size:
            try:
                buffer = self._client.alloc(entry.size)
                array: Array = np.frombuffer(memoryview(buffer), dtype).reshape(entry.shape)
                return array
            except (Busy, NoSpace):
                pass
        return np.empty(entry.shape, dtype)

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def load_file(url: str, *, endpoint: str = "auto", **options: Any) -> dict[str, Array]:
    """All tensors of a file, by name."""
    with safe_open(url, endpoint=endpoint, **options) as file:
        return dict(file.tensors())


def _dtype(name: str) -> np.dtype[Any]:
    if name in _DTYPES:
        return np.dtype(_DTYPES[name])
    if name in _ML_DTYPES:
        try:
            import ml_dtypes
        except ImportError:
            raise Unsupported(f"NumPy has no {name} by itself: install ml_dtypes") from None
        made: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
        return made
    raise Unsupported(f"tensors of type {name} are not known to this version")


_ITEM_BYTES = {name: np.dtype(code).itemsize for name, code in _DTYPES.items()}
_ITEM_BYTES |= {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def _header(file: File) -> tuple[dict[str, str] | None, dict[str, _Entry]]:
    """What the head of a file says, every offset of it checked."""

    def wrong(sentence: str) -> DataLoss:
        return DataLoss(f"{file.name} is no sound file of tensors: {sentence}")

    length = int.from_bytes(file.pread(0, _LENGTH_BYTES), "little")
    first = _LENGTH_BYTES + length
    if file.size < _LENGTH_BYTES or length > _MOST_HEADER or first > file.size:
        raise wrong(f"its head should have {length} bytes")
    try:
        head = json.loads(file.pread(_LENGTH_BYTES, length))
        metadata = head.pop("__metadata__", None)
        entries = {name: _parse(entry, first) for name, entry in head.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise wrong(f"its head cannot be read ({error})") from error
    end = first
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].size)):
        if entry.begin != end:
            raise wrong(f"tensor {name!r} does not begin where the one before ends")
        end += entry.size
    if end != file.size:
        raise wrong(f"its tensors end at {end}, and it has {file.size} bytes")
    return metadata, entries


def _parse(entry: dict[str, Any], first: int) -> _Entry:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)) or begin > end:
        raise ValueError("offsets and shapes are whole numbers")
    item = _ITEM_BYTES.get(dtype)
    if item is not None and math.prod(shape) * item != end - begin:
        raise ValueError(f"{end - begin} bytes are no {dtype} of shape {list(shape)}")
    return _Entry(dtype, shape, first + begin, end - begin)
