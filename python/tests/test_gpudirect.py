"""Reads that the node writes into a GPU's memory by itself: over RDMA, in the lab's guest.

The driver there has no GPU, and the RDMA device is soft-RoCE, which takes what is exported to it as
``rdma/tests/files_as_dma_bufs.c`` has it. The rest is what runs with a GPU.
"""

import asyncio
import ctypes
import gc
import os
import weakref
from collections.abc import Iterator

import forebay
import pytest
from conftest import MIB, Node, noise, settle, start
from libcuda import Array, Gpu, switch

ADDRESSES = os.environ.get("FOREBAY_TEST_RDMA", "")
if not ADDRESSES:
    pytest.skip("needs RDMA devices: ci/lab/tests has some", allow_module_level=True)

PAGE = 4096
#: Whole pages, so that no byte goes through the ring.
SIZE = 3 * MIB
CONTENT = noise(SIZE + 777)
RING = {"gpu_ring": MIB, "gpu_piece": MIB // 4}
rdma_device = ctypes.CDLL(None)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    gpu.close()


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that is reached over RDMA, with a file on it."""
    address = ADDRESSES.split(",")[0]
    directory = tmp_path_factory.mktemp("fabric")
    node = start(directory, arguments=["--rdma", f"{address}:0", "--insecure"])
    node.put("whole", CONTENT)
    with connect(node) as client:
        settle(client.open("data/whole"))
    yield node
    if node.process.poll() is None:
        node.kill()


@pytest.fixture
def client(fabric: Node) -> Iterator[forebay.Client]:
    before = exported()
    with connect(fabric) as client:
        yield client
    assert rdma_device.fake_rdma_registered() == 0, "all is given back"
    assert exported() <= before, "and kept from the GPU no longer"


@pytest.fixture
def file(client: forebay.Client) -> forebay.File:
    return client.open("data/whole")


@pytest.fixture
def array(gpu: Gpu) -> Iterator[Array]:
    array = Array(gpu, SIZE)
    yield array
    array.free()


def connect(node: Node, **more: object) -> forebay.Client:
    return forebay.connect(node.rdma, proof=node.proof, **{**RING, **more})


def exported() -> int:
    """Files that are a GPU's memory, of which the driver has one for each array."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum("fake-cuda" in os.readlink(link) for link in links if os.path.islink(link))


def why(client: forebay.Client) -> str | None:
    return dict(client.gpu()["ladder"])["gpudirect"]


def test_all_of_it_and_not_through_the_ring(
    client: forebay.Client, file: forebay.File, array: Array
) -> None:
    assert why(client) == "the first read tries it"
    assert rdma_device.fake_rdma_registered() == 0, "nothing stays from trying"
    before = client.gpu()["copies"]
    flushes = switch("flushes")
    flushed = flushes()
    for _ in range(2):
        read = file.read_into(array)
        assert (read.result(), read.path, read.copied) == (SIZE, "gpudirect", False)
        assert read.served == "tier"
        assert array.content() == CONTENT[:SIZE]
    looked = client.gpu()
    assert (looked["path"], why(client)) == ("gpudirect", None)
    assert (looked["copies"], looked["failures"]) == (before, 0)
    assert (looked["registered"], looked["proofs"]) == (1, 1), "seen once is enough"
    assert (looked["direct_bytes"], looked["direct_reads"]) == (2 * SIZE, 2 * SIZE // (MIB // 4))
    # Once for the proof, and once for each read.
    assert flushes() - flushed == 3


@pytest.mark.parametrize("offset", [0, 1, 4095, MIB // 4 - 1, 2 * MIB + 17])
def test_odd_ranges_and_nothing_beside_them(
    client: forebay.Client, file: forebay.File, gpu: Gpu, offset: int
) -> None:
    # The last page is not all the array's, and goes through the ring.
    size = SIZE - 100
    array = Array(gpu, size)
    for at, length in ((0, 1), (1, 4097), (4095, MIB + 2), (size - 5000, 5000), (0, size)):
        kept = array.fill(b"\xee" * size)
        gpu.finish(0)
        part = Array.__new__(Array)
        part.__cuda_array_interface__ = {
            **array.__cuda_array_interface__,
            "shape": (length,),
            "data": (array.pointer + at, False),
        }
        read = file.read_into(part, offset)
        count = read.result()
        assert count == min(length, len(CONTENT) - offset)
        is_whole = at + count <= size // PAGE * PAGE
        assert read.path == ("gpudirect" if is_whole else "staged")
        content = array.content()
        assert content[:at] == b"\xee" * at
        assert content[at : at + count] == CONTENT[offset : offset + count]
        assert content[at + count :] == b"\xee" * (size - at - count)
        del kept
    array.free()


def test_what_was_in_the_stream_comes_first(file: forebay.File, gpu: Gpu, array: Array) -> None:
    stream = gpu.stream()
    for named in (None, stream):
        # For the first one, before it was seen to work.
        for _ in range(2):
            kept = array.fill(b"\xee" * SIZE, named or 0)
            gpu.finish(named or 0)
            before = array.fetch(named or 0)
            read = file.read_into(array, stream=named)
            assert (read.result(), read.path) == (SIZE, "gpudirect")
            after = array.fetch(named or 0)
            gpu.finish(named or 0)
            assert before.raw == b"\xee" * SIZE
            assert after.raw == CONTENT[:SIZE]
            array.refill(kept, named or 0)
            assert file.read_into(array, stream=named).result() == SIZE
            gpu.finish(named or 0)
            assert array.content() == CONTENT[:SIZE]
    gpu.end(stream)


def test_a_stream_that_does_not_go_on(fabric: Node, gpu: Gpu, array: Array) -> None:
    stall = switch("stall")
    with connect(fabric, timeout=2.0) as client:
        file = client.open("data/whole")
        assert file.read_into(array).result() == SIZE
        kept = array.fill(b"\xee" * SIZE)
        stall(1)
        try:
            reads = file.readv([(0, array), (0, array)])
            for read in reads:
                with pytest.raises(forebay.Busy, match="was in the stream"):
                    read.result()
            assert file.pread(0, SIZE) == CONTENT[:SIZE]
        finally:
            stall(0)
        gpu.finish(0)
        assert array.content() == b"\xee" * SIZE, "nothing was written there"
        assert file.read_into(array).result() == SIZE
        assert array.content() == CONTENT[:SIZE]
        del kept


def test_many_at_once_and_awaited(client: forebay.Client, file: forebay.File, gpu: Gpu) -> None:
    arrays = [Array(gpu, MIB) for _ in range(3)]
    reads = file.readv([(n * MIB // 2 + 3, array) for n, array in enumerate(arrays)])
    host = bytearray(MIB)

    async def both() -> list[int]:
        return await asyncio.gather(*reads, file.read_into(host, 7))

    assert asyncio.run(both()) == [MIB] * 4
    for n, array in enumerate(arrays):
        begin = n * MIB // 2 + 3
        assert array.content() == CONTENT[begin : begin + MIB]
        array.free()
    assert host == CONTENT[7 : MIB + 7]
    looked = client.gpu()
    assert (looked["registered"], looked["proofs"]) == (3, 3)


def test_reads_that_nobody_waits_for(client: forebay.Client, file: forebay.File, gpu: Gpu) -> None:
    array = Array(gpu, SIZE)
    assert file.read_into(array).result() == SIZE
    kept = array.fill(b"\xee" * SIZE)
    for _ in range(5):
        file.read_into(array)
        array.refill(kept)
        gpu.finish(0)
        assert file.pread(0, SIZE) == CONTENT[:SIZE]
        assert array.content() == b"\xee" * SIZE, "nothing writes to it any more"
    array.free()
    # What is at that address next is other memory.
    other = Array(gpu, SIZE)
    assert file.read_into(other).result() == SIZE
    assert other.content() == CONTENT[:SIZE]
    assert client.gpu()["registered"] == 1, "what was freed is not kept"
    other.free()


def test_what_a_node_may_still_write_to_stays(fabric: Node, gpu: Gpu) -> None:
    with connect(fabric) as client:
        file = client.open("data/whole")
        array = Array(gpu, SIZE)
        assert file.read_into(array).result() == SIZE
        kept = weakref.ref(array)
        fabric.freeze()
        try:
            read = file.read_into(array)
            # It is asked for once what was in the stream before is done, and not earlier.
            gpu.finish(0)
            with pytest.raises(TimeoutError):
                read.result(0.5)
            del read, array
            gc.collect()
            assert kept() is not None
        finally:
            fabric.thaw()
        other = Array(gpu, SIZE)
        for _ in range(2):
            assert file.read_into(other).result() == SIZE
        gc.collect()
        assert kept() is None
        other.free()


def test_writes_that_get_lost_are_noticed(
    client: forebay.Client, file: forebay.File, array: Array
) -> None:
    rdma_device.fake_rdma_loses(1)
    try:
        read = file.read_into(array)
        assert (read.result(), read.path) == (SIZE, "staged")
        assert array.content() == CONTENT[:SIZE]
        assert "is not there" in (why(client) or "")
        assert rdma_device.fake_rdma_registered() == 0
    finally:
        rdma_device.fake_rdma_loses(0)
    assert client.gpu()["path"] == "staged"


def test_devices_that_take_none(fabric: Node, array: Array) -> None:
    exports = switch("exports")
    rdma_device.fake_rdma_takes(0)
    try:
        with connect(fabric) as client:
            read = client.open("data/whole").read_into(array)
            assert (read.result(), read.path) == (SIZE, "staged")
            assert "registers no dma-buf (EOPNOTSUPP)" in (why(client) or "")
        refused = pytest.raises(forebay.Unsupported, match="registers no dma-buf")
        with connect(fabric, gpu_policy="gpudirect") as client, refused:
            client.open("data/whole").read_into(array)
    finally:
        rdma_device.fake_rdma_takes(1)
    exports(0)
    try:
        with connect(fabric) as client:
            read = client.open("data/whole").read_into(array)
            assert (read.result(), read.path) == (SIZE, "staged")
            assert "exporting" in (why(client) or "")
    finally:
        exports(1)
    with connect(fabric, verify=True) as client:
        read = client.open("data/whole").read_into(array)
        assert (read.result(), read.path) == (SIZE, "staged")
        assert "compares checksums" in (why(client) or "")


def test_a_policy_that_allows_nothing_else(fabric: Node, gpu: Gpu, array: Array) -> None:
    with connect(fabric, gpu_policy="gpudirect") as client:
        file = client.open("data/whole")
        read = file.read_into(array)
        assert (read.result(), read.path) == (SIZE, "gpudirect")
        assert array.content() == CONTENT[:SIZE]
        assert (client.gpu()["pinned_bytes"], client.gpu()["copies"]) == (0, 0)
        odd = Array(gpu, SIZE - 1)
        with pytest.raises(forebay.Unsupported, match="a page of the host's"):
            file.read_into(odd)
        odd.free()


def test_a_node_that_is_gone(tmp_path_factory: pytest.TempPathFactory, gpu: Gpu) -> None:
    address = ADDRESSES.split(",")[0]
    directory = tmp_path_factory.mktemp("gone")
    node = start(directory, arguments=["--rdma", f"{address}:0", "--insecure"])
    node.put("whole", CONTENT)
    array = Array(gpu, SIZE)
    client = connect(node)
    file = client.open("data/whole")
    assert file.read_into(array).result() == SIZE
    reads = file.readv([(0, array)] * 4)
    node.kill()
    for read in reads:
        error = read.exception(60)
        assert error is None or isinstance(error, forebay.Disconnected)
    with pytest.raises(forebay.Disconnected):
        file.read_into(array).result(60)
    client.close()
    del client, file, reads, read
    gc.collect()
    assert rdma_device.fake_rdma_registered() == 0
    array.free()
