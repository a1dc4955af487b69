"""Tensors of ``.safetensors`` files, read straight to where they stay.

``load_file(url)`` is the dictionary that ``safetensors.numpy.load_file`` makes of a local file, and
``load_file(url, "pt")`` that of ``safetensors.torch``, with ``device="cuda"`` in a GPU's memory.
``safe_open(url)`` reads tensors one by one. Beyond the tensors themselves, little memory is used: a
bounded number of reads is on the way, those into a GPU's memory through a ring of a fixed length,
and nothing is mapped or cached.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ._again import connect_again
from ._errors import DataLoss, Unsupported
from ._forebay import Client, File, Future
from ._room import BYTES_UNDER_WAY, UNDER_WAY, room
from ._url import split

_LENGTH_BYTES = 8
_MOST_HEADER = 100_000_000

# The types' names in files: what NumPy, ml_dtypes and torch call them, and bytes of an item.
_TYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}

# Where so many bytes go.
_Room = Callable[[Client, int], Any]
# Memory, and a type and a shape to see it by.
_View = Callable[[Any, str, tuple[int, ...]], Any]


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
        device: Any = "cpu",
        *,
        endpoint: str = "auto",
        **options: Any,
    ) -> None:
        self._view = _view(framework)
        self._room = _room(framework, device)
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

    def get_tensor(self, name: str) -> Any:
        """Reads one tensor."""
        return next(array for _, array in self.tensors([name]))

    def tensors(self, names: list[str] | None = None) -> Iterator[tuple[str, Any]]:
        """Tensors by name, or all in the order of the file, the next ones on their way already."""
        if names is None:
            names = sorted(self._entries, key=lambda name: self._entries[name].begin)
        left = deque(names)
        reads: deque[tuple[str, Any, Future, int]] = deque()
        waiting = 0
        while left or reads:
            while left and len(reads) < UNDER_WAY and (waiting < BYTES_UNDER_WAY or not reads):
                name = left.popleft()
                entry = self._entry(name)
                memory = self._room(self._client, entry.size)
                tensor = self._view(memory, entry.dtype, entry.shape)
                reads.append((name, tensor, self._file.read_into(memory, entry.begin), entry.size))
                waiting += entry.size
            name, tensor, read, size = reads.popleft()
            if read.result() != size:
                raise DataLoss(f"{self._file.name}: tensor {name!r} is cut off")
            waiting -= size
            yield name, tensor

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise KeyError(f"{self._file.name} has no tensor {name!r}") from None

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


def load_file(
    url: str,
    framework: str = "numpy",
    device: Any = "cpu",
    *,
    endpoint: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """All tensors of a file, by name: NumPy's (``np``) or torch's (``pt``), those on a device."""
    with safe_open(url, framework, device, endpoint=endpoint, **options) as file:
        return dict(file.tensors())


def _view(framework: str) -> _View:
    if framework in ("numpy", "np"):
        return _as_numpy
    if framework in ("pt", "torch"):
        try:
            import torch  # noqa: F401
        except ImportError:
            raise Unsupported("torch is not installed: install it, or ask for numpy") from None
        return _as_torch
    raise Unsupported(f"there is no framework {framework!r}: there are numpy and pt")


def _room(framework: str, device: Any) -> _Room:
    if str(device) == "cpu":
        return room
    if framework not in ("pt", "torch"):
        raise Unsupported(f"NumPy's arrays are on no device {device}: ask for torch's, or for cpu")
    import torch

    return lambda _, size: torch.empty(size, dtype=torch.uint8, device=device)


def _as_numpy(memory: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    return np.frombuffer(memory, _numpy_dtype(dtype)).reshape(shape)


def _as_torch(memory: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    known = getattr(torch, _name(dtype), None)
    if known is None:
        raise Unsupported(f"torch {torch.__version__} has no {dtype}: use a newer one, or numpy")
    if isinstance(memory, torch.Tensor):
        return memory.view(known).reshape(shape)
    if len(memory) == 0:
        return torch.empty(shape, dtype=known)
    return torch.frombuffer(memory, dtype=known).reshape(shape)


def _name(dtype: str) -> str:
    try:
        return _TYPES[dtype][0]
    except KeyError:
        raise Unsupported(f"tensors of type {dtype} are not known to this version") from None


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    name = _name(dtype)
    try:
        return np.dtype(name).newbyteorder("<")
    except TypeError:
        pass
    try:
        import ml_dtypes
    except ImportError:
        raise Unsupported(
            f"NumPy has no {dtype} by itself: install ml_dtypes, or use torch"
        ) from None
    made: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return made


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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
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
    if dtype in _TYPES and math.prod(shape) * _TYPES[dtype][1] != end - begin:
        raise ValueError(f"{end - begin} bytes are no {dtype} of shape {list(shape)}")
    return _Entry(dtype, shape, first + begin, end - begin)
