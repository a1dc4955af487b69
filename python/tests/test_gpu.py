"""Reads into the memory of a GPU, over NVIDIA's driver or one without a GPU."""

import asyncio
import gc
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterator

import forebay
import pytest
from conftest import MIB, Node, noise, settle
from libcuda import Array, Gpu, Tensor, left, switch

SIZE = 5 * MIB + 12345
CONTENT = noise(SIZE)
RING = {"gpu_ring": MIB, "gpu_piece": MIB // 4}


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    gpu.close()


@pytest.fixture
def name(node: Node) -> str:
    if not (node.data / "gpu/whole").exists():
        node.put("gpu/whole", CONTENT)
    return "data/gpu/whole"


@pytest.fixture(params=["shm", "tcp"])
def small(request: pytest.FixtureRequest, node: Node) -> Iterator[forebay.Client]:
    """A client whose ring is much shorter than the file."""
    with forebay.connect(getattr(node, request.param), **RING) as client:
        yield client


@pytest.fixture
def file(small: forebay.Client, name: str) -> forebay.File:
    return small.open(name)


@pytest.fixture
def array(gpu: Gpu) -> Iterator[Array]:
    array = Array(gpu, SIZE)
    yield array
    array.free()


def test_all_of_a_file(small: forebay.Client, file: forebay.File, array: Array) -> None:
    settle(file)
    read = file.read_into(array)
    assert read.result() == SIZE
    assert array.content() == CONTENT
    assert (read.path, read.bytes, read.served) == ("staged", SIZE, "tier")
    # Whole blocks, which no processor copies.
    read = file.read_into(array, 0, 5 * MIB)
    assert (read.result(), read.copied) == (5 * MIB, False)
    ring = small.gpu()
    assert ring["path"] == "staged"
    assert ring["ring_bytes"] == ring["pinned_bytes"] == ring["peak_pinned_bytes"] == MIB
    assert ring["copied_bytes"] >= SIZE
    assert ring["copies"] > SIZE // (MIB // 4)
    assert ring["failures"] == 0
    assert dict(ring["ladder"])["staged"] is None
    assert dict(ring["ladder"])["gpudirect"] is not None


@pytest.mark.parametrize("offset", [0, 1, 4095, MIB // 4 - 1, 3 * MIB + 17])
def test_odd_ranges_and_nothing_beside_them(file: forebay.File, array: Array, offset: int) -> None:
    for size in (1, 511, 4097, MIB // 4 + 1, 2 * MIB - 3):
        array.gpu.finish(0)
        kept = array.fill(b"\xee" * SIZE)
        count = file.read_into(array, offset, size).result()
        assert count == min(size, SIZE - offset)
        content = array.content()
        assert content[:count] == CONTENT[offset : offset + count]
        assert content[count:] == b"\xee" * (SIZE - count)
        del kept


def test_ends_of_files(file: forebay.File, array: Array) -> None:
    assert file.read_into(array, SIZE - 100).result() == 100
    assert array.content()[:100] == CONTENT[-100:]
    read = file.read_into(array, SIZE)
    assert (read.result(), read.path) == (0, "nothing")


def test_tensors_by_dlpack(file: forebay.File, gpu: Gpu, array: Array) -> None:
    tensor = Tensor(array)
    assert file.read_into(tensor).result() == SIZE // 2 * 2
    assert array.content()[: SIZE // 2 * 2] == CONTENT[: SIZE // 2 * 2]
    # What its library has begun with it comes before what comes into the default stream.
    assert set(tensor.asked) == {1}
    tensor.asked.clear()
    stream = gpu.stream()
    assert file.read_into(tensor, stream=stream).result() == SIZE // 2 * 2
    assert set(tensor.asked) == {-1}
    gpu.finish(stream)
    gpu.end(stream)


def test_what_was_in_the_stream_comes_first(file: forebay.File, array: Array) -> None:
    kept = array.fill(b"\xee" * SIZE)
    assert file.read_into(array).result() == SIZE
    array.gpu.finish(0)
    assert array.content() == CONTENT
    del kept


def test_the_stream_that_the_library_works_in(
    file: forebay.File, gpu: Gpu, array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = gpu.stream()
    kept = array.fill(b"\xee" * SIZE, stream)
    array.__cuda_array_interface__["stream"] = stream
    assert file.read_into(array).result() == SIZE
    gpu.finish(stream)
    assert array.content() == CONTENT
    # What DLPack refuses is in the order that the interface names, all the same.
    kept = array.fill(b"\xee" * SIZE, stream)
    assert file.read_into(Refuses(array)).result() == SIZE
    gpu.finish(stream)
    assert array.content() == CONTENT

    class Current:
        cuda_stream = stream

    torch, cuda = types.ModuleType("torch"), types.ModuleType("torch.cuda")
    torch.Tensor = Tensor  # type: ignore[attr-defined]
    cuda.current_stream = lambda number: Current() if number == 0 else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)

    class Parameter(Tensor):
        pass

    kept = array.fill(b"\xee" * SIZE, stream)
    tensor = Parameter(array)
    assert file.read_into(tensor).result() == SIZE // 2 * 2
    assert set(tensor.asked) == {-1}
    gpu.finish(stream)
    assert array.content()[: SIZE // 2 * 2] == CONTENT[: SIZE // 2 * 2]
    del kept
    gpu.end(stream)


class Refuses(Array):
    """Such as a type that DLPack has not."""

    def __init__(self, array: Array) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **how: object) -> object:
        raise BufferError("not this type")


def test_a_stream_of_the_callers(file: forebay.File, gpu: Gpu, array: Array) -> None:
    stream = gpu.stream()

    class Torch:
        cuda_stream = stream

    class Cupy:
        ptr = stream

    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return (0, stream)

    for named in (stream, Torch(), Cupy(), Protocol()):
        kept = array.fill(b"\xee" * SIZE, stream)
        assert file.read_into(array, stream=named).result() == SIZE
        # What comes into the stream now comes after it.
        fetched = array.fetch(stream)
        gpu.finish(stream)
        assert fetched.raw == CONTENT
        del kept
    with pytest.raises(TypeError, match="no stream"):
        file.read_into(array, stream="main")
    with pytest.raises(forebay.Invalid, match="host's"):
        file.read_into(bytearray(10), stream=stream)
    gpu.end(stream)


def test_many_at_once_and_awaited(file: forebay.File, gpu: Gpu) -> None:
    arrays = [Array(gpu, MIB - 1) for _ in range(4)]
    reads = file.readv([(n * MIB + 3, array) for n, array in enumerate(arrays)])
    host = bytearray(MIB)

    async def both() -> list[int]:
        return await asyncio.gather(*reads, file.read_into(host, 7))

    assert asyncio.run(both()) == [MIB - 1] * 4 + [MIB]
    for n, array in enumerate(arrays):
        assert array.content() == CONTENT[n * MIB + 3 : (n + 1) * MIB + 2]
        array.free()
    assert host == CONTENT[7 : MIB + 7]


def test_memory_that_makes_no_sense(
    node: Node, small: forebay.Client, file: forebay.File, gpu: Gpu, array: Array
) -> None:
    def shown(**other: object) -> Array:
        wrong = types.SimpleNamespace()
        wrong.__cuda_array_interface__ = {**array.__cuda_array_interface__, **other}
        return wrong  # type: ignore[return-value]

    two = {"shape": (10, 10), "typestr": "<f4"}
    assert file.read_into(shown(**two, strides=(40, 4))).result() == 400
    assert file.read_into(shown(shape=(0, 7), data=(0, False))).result() == 0
    for wrong, why in [
        (shown(data=(array.pointer, True)), "read-only"),
        (shown(**two, strides=(80, 4)), "one piece"),
        (shown(**two, strides=(4, 40)), "one piece"),
        (shown(shape=(SIZE + 1,)), "bytes of device memory"),
        (shown(data=(array.pointer + 1, False)), "bytes of device memory"),
        (shown(data=(12345, False)), "GPU"),
        (shown(typestr="|u"), "no sense"),
    ]:
        with pytest.raises(forebay.Invalid, match=why):
            file.read_into(wrong)
    with pytest.raises(ValueError, match="do not fit"):
        file.read_into(array, 0, SIZE + 1)
    with small.create("data/gpu/new") as writer, pytest.raises(forebay.Unsupported, match="cpu"):
        writer.write(0, array)  # type: ignore[arg-type]
    with pytest.raises(forebay.Unsupported, match="no GPU 7"):
        small.gpu(7)


def test_policies(node: Node, name: str, array: Array) -> None:
    with forebay.connect(node.shm, **RING, gpu_policy="host") as client:
        read = client.open(name).read_into(array)
        assert (read.result(), read.path, read.copied) == (SIZE, "host", True)
        assert client.gpu()["pinned_bytes"] == 0
    with forebay.connect(node.shm, gpu_policy="gpudirect") as client:
        opened = client.open(name)
        with pytest.raises(forebay.Unsupported, match=r"policy gpudirect allows \(gpudirect: "):
            opened.read_into(array)
        # The host's memory is none of its business.
        assert opened.pread(0, 10) == CONTENT[:10]
    with pytest.raises(forebay.Invalid, match="there are gpudirect, staged"):
        forebay.connect(node.shm, gpu_policy="best")
    with forebay.connect(node.shm, gpu_piece=1000) as client, pytest.raises(forebay.Invalid):
        client.open(name).read_into(array)


def test_a_copy_that_fails(small: forebay.Client, file: forebay.File, array: Array) -> None:
    assert file.read_into(array, 0, 10).result() == 10
    switch("next_copy")(801)
    with pytest.raises(forebay.Unsupported, match="cuMemcpyHtoDAsync"):
        file.read_into(array).result()
    assert small.gpu()["failures"] == 1
    assert file.read_into(array).result() == SIZE
    assert array.content() == CONTENT


def test_a_gpu_that_does_not_go_on(node: Node, name: str, gpu: Gpu) -> None:
    array = Array(gpu, SIZE)
    stall = switch("stall")
    with forebay.connect(node.shm, **RING, timeout=1.0) as client:
        file = client.open(name)
        assert file.read_into(array, 0, 10).result() == 10
        stall(1)
        reads = file.readv([(0, array), (0, array)])
        for read in reads:
            with pytest.raises(forebay.Busy, match="finished no copy"):
                read.result()
        # The host's memory is none of its business.
        assert file.pread(0, SIZE) == CONTENT
        # What the GPU may still write to stays until it does not.
        kept = weakref.ref(array)
        del read, reads, array
        gc.collect()
        assert kept() is not None
        stall(0)
        other = Array(gpu, SIZE)
        assert file.read_into(other).result() == SIZE
        assert other.content() == CONTENT
        assert file.read_into(other).result() == SIZE
        gc.collect()
        assert kept() is None
        other.free()


def test_a_read_that_nobody_waits_for(small: forebay.Client, file: forebay.File, gpu: Gpu) -> None:
    array = Array(gpu, SIZE)
    begun = 0
    for _ in range(20):
        before = small.gpu()["copies"]
        read = file.read_into(array)
        while not read.done() and small.gpu()["copies"] < before + 2:
            pass
        begun += small.gpu()["copies_under_way"]
        del read
        assert small.gpu()["copies_under_way"] == 0, "nothing writes to it any more"
    assert begun
    array.free()


def test_awaited_reads_that_are_given_up(node: Node, name: str, gpu: Gpu) -> None:
    switch("stall")
    gc.collect()
    before = left()
    arrays = [Array(gpu, SIZE) for _ in range(3)]
    read_and_give_up(node, name, arrays)
    for array in arrays:
        array.free()
    nothing_more_is_left(before)


def read_and_give_up(node: Node, name: str, arrays: list[Array]) -> None:
    stall = switch("stall")
    client = forebay.connect(node.shm, **RING)
    file = client.open(name)
    assert file.read_into(arrays[0], 0, 10).result() == 10

    async def give_up() -> None:
        waiting = [asyncio.ensure_future(await_read(file, array)) for array in arrays]
        await asyncio.sleep(0.1)
        stall(0)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    stall(1)
    asyncio.run(give_up())
    assert file.read_into(arrays[0]).result() == SIZE
    assert arrays[0].content() == CONTENT


def test_a_read_that_is_awaited_twice(node: Node, name: str, gpu: Gpu, array: Array) -> None:
    stall = switch("stall")
    before = left()
    await_twice(node, name, array, stall)
    nothing_more_is_left(before)


def await_twice(node: Node, name: str, array: Array, stall: Callable[[int], None]) -> None:
    client = forebay.connect(node.shm, **RING)
    file = client.open(name)
    assert file.read_into(array, 0, 10).result() == 10

    async def both() -> list[int]:
        read = file.read_into(array)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(once(read), 0.05)
        waiting = asyncio.gather(once(read), once(read))
        await asyncio.sleep(0.05)
        stall(0)
        return await waiting

    async def once(read: forebay.Future) -> int:
        return await read

    stall(1)
    assert asyncio.run(both()) == [SIZE, SIZE]


async def await_read(file: forebay.File, array: Array) -> int:
    return await file.read_into(array)


def test_nothing_is_left(node: Node, name: str, gpu: Gpu) -> None:
    gc.collect()
    before = left()
    array = Array(gpu, SIZE)
    client = forebay.connect(node.shm, **RING)
    file = client.open(name)
    assert file.read_into(array).result() == SIZE
    assert all(now > was for now, was in zip(left(), before, strict=True))
    array.free()
    client.close()
    del client, file
    nothing_more_is_left(before)


def nothing_more_is_left(before: list[int]) -> None:
    gc.collect()
    for _ in range(1000):
        if all(now <= was for now, was in zip(left(), before, strict=True)):
            return
        # The client's thread is about to let go of it.
        time.sleep(0.01)
    raise AssertionError(f"{left()} is left, and it was {before}")


def test_a_lost_gpu(node: Node, name: str, gpu: Gpu, array: Array) -> None:
    lose = switch("lose")
    with forebay.connect(node.tcp, **RING) as client:
        file = client.open(name)
        assert file.read_into(array, 0, 10).result() == 10
        lose(1)
        with pytest.raises(forebay.Disconnected, match="device is lost"):
            file.read_into(array).result()
        assert file.pread(0, 10) == CONTENT[:10]
        lose(0)


def test_a_gpu_that_is_lost_under_reads(node: Node, name: str, gpu: Gpu, array: Array) -> None:
    stall, lose = switch("stall"), switch("lose")
    with forebay.connect(node.tcp, **RING) as client:
        file = client.open(name)
        assert file.read_into(array, 0, 10).result() == 10
        stall(1)
        reads = file.readv([(0, array), (0, array), (0, array)])
        assert not any(read.done() for read in reads)
        lose(1)
        # Those that wait for room, too.
        for read in reads:
            with pytest.raises(forebay.Disconnected):
                read.result(60)
        assert file.pread(0, 10) == CONTENT[:10]
        stall(0)
        lose(0)


def test_a_stream_that_is_gone(file: forebay.File, gpu: Gpu, array: Array) -> None:
    stall = switch("stall")
    assert file.read_into(array, 0, 10).result() == 10
    stream = gpu.stream()
    stall(1)
    read = file.read_into(array, stream=stream)
    gpu.end(stream)
    stall(0)
    with pytest.raises(forebay.Invalid, match="cuStreamWaitEvent"):
        read.result()
    # All of its copies have ended.
    kept = array.fill(b"\xee" * SIZE)
    assert array.content() == b"\xee" * SIZE
    del kept
    with pytest.raises(forebay.Invalid, match="default stream of a thread"):
        file.read_into(array, stream=2)


def test_caps_tell_the_ways(node: Node) -> None:
    found = forebay.caps(node.shm)["gpu"]
    assert (found["ok"], found["best"]) == (True, "staged")
    assert list(found["ladder"]) == ["gpudirect", "staged", "host"]
    assert found["ladder"]["gpudirect"]["why"]
