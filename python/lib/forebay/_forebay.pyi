import builtins
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

class _Tensor(Protocol):
    """A tensor in this computer's memory."""

    def numpy(self) -> Any: ...

class _Array(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

class _Dlpack(Protocol):
    """A tensor of any library."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class _Cuda(Protocol):
    """An array in a GPU's memory."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

class _Bytes(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...

_Memory = _Bytes | _Array | _Tensor | _Dlpack
_Destination = _Memory | _Cuda

VERSION: str

class Buffer:
    """Memory that the node writes itself. A writable buffer of bytes."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...

class Registration:
    """Memory that the node writes where it is, until this is closed."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

class Future:
    """A read that has been started."""

    def result(self, timeout: float | None = None) -> int:
        """Waits, and returns how many bytes there were."""

    def done(self) -> bool:
        """Whether it is over. Never waits."""

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits, and returns what went wrong."""

    @property
    def bytes(self) -> int | None:
        """Bytes read; ``None`` while the read is under way, as for all that follow."""

    @property
    def path(self) -> str | None:
        """``shm-direct``, ``shm-copied``, ``rdma``, ``rdma-copied``, ``tcp``, ``tcp-copied``; into
        a GPU's memory ``gpudirect``, ``staged`` or ``host``.
        """

    @property
    def copied(self) -> bool | None:
        """Whether a processor of this host copied the bytes."""

    @property
    def served(self) -> str | None:
        """``tier``, ``arriving``, ``silo`` or ``repair``."""

    @property
    def service_us(self) -> int | None:
        """Microseconds in the node; of several requests, the longest."""

    def __await__(self) -> Generator[Any, None, int]: ...
    def _watch(self, watch: Watcher, number: int) -> bool: ...
    def _watcher(self) -> Watcher: ...
    def _client(self) -> int: ...

class Watcher:
    def fileno(self) -> int: ...
    def take(self) -> list[int]: ...

class File:
    """A file open at one generation, which never changes."""

    @property
    def name(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def __len__(self) -> int: ...
    def stat(self) -> dict[str, Any]:
        """What the node says of it now."""

    def read_into(
        self, buffer: _Destination, offset: int = 0, size: int | None = None, *, stream: Any = None
    ) -> Future:
        """Starts a read of the buffer's length, or of ``size`` bytes. ``stream`` is for memory of
        a GPU: the read is over when what comes into that stream later waits for it.
        """

    def readv(
        self, parts: Sequence[tuple[int, _Destination]], *, stream: Any = None
    ) -> list[Future]:
        """Starts many reads at once: offsets, and what is to be filled."""

    def pread(self, offset: int, size: int) -> bytes:
        """Reads and waits; fewer bytes at the end of the file."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

class Writer:
    """A new generation of a file, which nobody sees before ``commit``."""

    @property
    def name(self) -> str: ...
    def write(self, offset: int, data: _Memory) -> int:
        """Writes and waits until the node has the bytes."""

    def commit(self, length: int | None = None) -> File:
        """Makes the generation durable and visible, whole, and opens it."""

    def abort(self) -> None:
        """Leaves nothing behind."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

class Client:
    """A connection to a node."""

    def __new__(cls, endpoint: str = "auto", **options: Any) -> Self: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def fabric(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    def open(self, name: str, generation: int = 0) -> File:
        """Opens ``silo/key``, at its newest generation or a given one."""

    def create(self, name: str, expected_bytes: int = 0) -> Writer:
        """Starts a new generation; ``expected_bytes`` is the most that it may get, if given."""

    def alloc(self, size: int) -> Buffer:
        """Memory that the node writes itself."""

    def read_ranges(self, ranges: Iterable[tuple[File, int, int]]) -> list[bytes | Exception]:
        """Reads (file, offset, size), all on the way together."""

    def register(self, buffer: _Memory) -> Registration:
        """Has the node write this memory where it is, over RDMA and TCP."""

    def gpu(self, number: int = 0) -> dict[str, Any]:
        """How a GPU's memory is reached, and what its ring did."""

    def ping(self) -> float:
        """Seconds until the node answered."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

class Control:
    """A connection to a node's control plane."""

    def __new__(cls, address: str, timeout: float = 60.0) -> Self: ...
    def list(
        self, prefix: str, page_token: str = "", page_size: int = 1000
    ) -> tuple[builtins.list[dict[str, Any]], str]: ...
    def get(self, name: str) -> dict[str, Any]: ...
    def demote(self, names: Sequence[str]) -> str: ...
    def job(self, id: str) -> tuple[str, str | None]: ...
    def silos(self) -> builtins.list[str]: ...

def gpu_ladder() -> builtins.list[tuple[str, str | None]]: ...
def rdma_devices() -> list[tuple[str, bool, list[str]]]: ...
def shm_sockets(endpoint: str) -> list[Path]: ...
