"""NVIDIA's driver, as far as the tests need it, or one without a GPU."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import pytest

try:
    _driver = ctypes.CDLL("libcuda.so.1")
except OSError:
    if os.environ.get("FOREBAY_REQUIRE_GPU"):
        raise
    pytest.skip("there is no libcuda.so.1", allow_module_level=True)

_u64, _pointer = ctypes.c_uint64, ctypes.c_void_p


def _call(name: str, *arguments: Any) -> None:
    answer = getattr(_driver, name)(*arguments)
    assert answer == 0, (name, answer)


def _make(name: str, *arguments: Any, kind: Any = _pointer) -> Any:
    made = kind()
    _call(name, ctypes.byref(made), *arguments)
    return made


def switch(name: str) -> Callable[[int], None]:
    """What a driver without a GPU can be told; a real one cannot."""
    if not hasattr(_driver, f"fake_cuda_{name}"):
        pytest.skip("a real driver does not fail when it is told to")
    return getattr(_driver, f"fake_cuda_{name}")


def left() -> list[int]:
    """Pinned ranges, streams, events and retained contexts that a driver without a GPU knows."""
    if not hasattr(_driver, "fake_cuda_left"):
        pytest.skip("a real driver does not tell what is left")
    counts = (ctypes.c_size_t * 6)()
    _driver.fake_cuda_left(counts)
    return list(counts)[1:5]


class Gpu:
    """The first one, in its primary context, which is this thread's own."""

    def __init__(self) -> None:
        _call("cuInit", 0)
        device = _make("cuDeviceGet", 0, kind=ctypes.c_int)
        _call("cuCtxPushCurrent_v2", _make("cuDevicePrimaryCtxRetain", device))
        self._device = device

    def close(self) -> None:
        _make("cuCtxPopCurrent_v2")
        _call("cuDevicePrimaryCtxRelease_v2", self._device)

    def stream(self) -> int:
        """One that waits for no other."""
        return int(_make("cuStreamCreate", 1).value)

    def end(self, stream: int) -> None:
        _call("cuStreamDestroy_v2", _pointer(stream))

    def finish(self, stream: int) -> None:
        """Waits until everything that is in it now is done."""
        event = _make("cuEventCreate", 2)
        _call("cuEventRecord", event, _pointer(stream))
        while _driver.cuEventQuery(event) == 600:
            pass
        _call("cuEventDestroy_v2", event)


class Array:
    """Bytes of the GPU's, shown as CuPy does."""

    def __init__(self, gpu: Gpu, size: int, **shown: Any) -> None:
        self.gpu, self.size = gpu, size
        self.pointer = _make("cuMemAlloc_v2", ctypes.c_size_t(size), kind=_u64).value
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (self.pointer, False),
            "version": 3,
            **shown,
        }

    def fill(self, content: bytes, stream: int = 0) -> ctypes.Array[Any]:
        """Queues a copy from memory that is returned."""
        source = ctypes.create_string_buffer(content, len(content))
        self.refill(source, stream)
        return source

    def refill(self, source: ctypes.Array[Any], stream: int = 0) -> None:
        """Queues a copy from memory that is there already."""
        size = ctypes.c_size_t(len(source))
        _call("cuMemcpyHtoDAsync_v2", _u64(self.pointer), source, size, _pointer(stream))

    def fetch(self, stream: int = 0) -> ctypes.Array[Any]:
        """Queues a copy to memory that is returned."""
        target = ctypes.create_string_buffer(self.size)
        size = ctypes.c_size_t(self.size)
        _call("cuMemcpyDtoHAsync_v2", target, _u64(self.pointer), size, _pointer(stream))
        return target

    def content(self) -> bytes:
        """What is in it, once the default stream is done."""
        target = self.fetch()
        self.gpu.finish(0)
        return target.raw

    def free(self) -> None:
        _call("cuMemFree_v2", _u64(self.pointer))


class _Tensor(ctypes.Structure):
    """``DLTensor``, and what ``DLManagedTensor`` has behind it."""

    _fields_ = (
        ("data", _pointer),
        ("kind", ctypes.c_int),
        ("number", ctypes.c_int),
        ("dimensions", ctypes.c_int),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", _pointer),
        ("byte_offset", _u64),
        ("context", _pointer),
        ("deleter", _pointer),
    )


class Tensor:
    """The same bytes, shown by DLPack as items of two."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.asked: list[Any] = []
        self._shape = (ctypes.c_int64 * 1)(array.size // 2)
        # bfloat16, which arrays have no name for.
        self._shown = _Tensor(array.pointer, 2, 0, 1, 4, 16, 1, self._shape, None, 0, None, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.asked.append(stream)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (_pointer, ctypes.c_char_p, _pointer)
        return make(ctypes.addressof(self._shown), b"dltensor", None)
