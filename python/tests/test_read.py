"""Reads into every kind of memory."""

import gc
import pickle

import forebay
import numpy as np
import pytest
from conftest import MIB, Node, noise, settle

SIZE = 5 * MIB + 12345
CONTENT = noise(SIZE)


@pytest.fixture
def file(node: Node, client: forebay.Client) -> forebay.File:
    name = "data/read/whole"
    if not (node.data / "read/whole").exists():
        node.put("read/whole", CONTENT)
    return client.open(name)


def test_three_lines(node: Node, file: forebay.File) -> None:
    client = forebay.connect(node.shm)
    opened, buffer = client.open("data/read/whole"), client.alloc(SIZE)
    assert opened.read_into(buffer).result() == SIZE
    assert bytes(buffer) == CONTENT


def test_file_says_what_it_is(file: forebay.File) -> None:
    assert (len(file), file.size, file.name) == (SIZE, SIZE, "data/read/whole")
    assert file.generation >= 1
    stat = file.stat()
    assert (stat["size"], stat["generation"]) == (SIZE, file.generation)
    assert len(stat["id"]) == 32


def test_own_memory_is_written_by_the_node(client: forebay.Client, file: forebay.File) -> None:
    settle(file)
    buffer = client.alloc(MIB)
    read = file.read_into(buffer, MIB)
    assert read.result() == MIB
    assert bytes(buffer) == CONTENT[MIB : 2 * MIB]
    fast = {"shm": ("shm-direct", False), "tcp": ("tcp", False)}
    path, copied = fast[client.fabric]
    assert (read.path, read.copied, read.bytes, read.served) == (path, copied, MIB, "tier")
    assert read.service_us is not None
    assert read.exception() is None


@pytest.mark.parametrize("kind", ["bytearray", "numpy", "memoryview", "tensor"])
def test_other_memory_costs_a_copy_and_says_so(
    client: forebay.Client, file: forebay.File, kind: str
) -> None:
    array = np.zeros(SIZE, np.uint8)

    class Tensor:
        def numpy(self) -> np.ndarray:
            return array

    makers = {"bytearray": lambda: bytearray(SIZE), "numpy": lambda: array, "tensor": Tensor}
    makers["memoryview"] = lambda: memoryview(array)
    target = makers[kind]()
    read = file.read_into(target)
    assert read.result() == SIZE
    assert bytes(target if kind == "bytearray" else array) == CONTENT
    assert read.copied
    assert read.path == ("shm-copied" if client.fabric == "shm" else "tcp-copied")


def test_views_of_own_memory_are_own_memory(client: forebay.Client, file: forebay.File) -> None:
    settle(file)
    buffer = client.alloc(4 * MIB)
    array = np.frombuffer(buffer, np.float32).reshape(4, -1)
    reads = file.readv([(row * MIB, array[row]) for row in (3, 0, 2, 1)])
    assert [read.result() for read in reads] == [MIB] * 4
    assert bytes(buffer) == CONTENT[: 4 * MIB]
    assert not any(read.copied for read in reads)
    # All of it at once, after it was cut in four; then across the cuts.
    assert file.read_into(buffer, MIB).result() == 4 * MIB
    assert bytes(buffer) == CONTENT[MIB : 5 * MIB]
    middle = memoryview(buffer)[MIB // 2 : 3 * MIB]
    assert file.read_into(middle, 77).result() == len(middle)
    assert bytes(middle) == CONTENT[77 : 77 + len(middle)]
    assert bytes(memoryview(buffer)[: MIB // 2]) == CONTENT[MIB : MIB + MIB // 2]
    assert np.asarray(buffer).shape == (4 * MIB,)


@pytest.mark.parametrize("seed", range(8))
def test_any_range(client: forebay.Client, file: forebay.File, seed: int) -> None:
    random = np.random.default_rng(seed)
    buffer = client.alloc(MIB)
    for _ in range(10):
        offset = int(random.integers(0, SIZE + MIB))
        first, last = sorted(int(n) for n in random.integers(0, MIB + 1, 2))
        want = CONTENT[offset : offset + last - first]
        view = memoryview(buffer)[first:last]
        read = file.read_into(view, offset)
        assert read.result() == len(want)
        assert bytes(view[: len(want)]) == want
        assert file.pread(offset, last - first) == want


def test_many_in_flight(client: forebay.Client, file: forebay.File) -> None:
    buffers = [client.alloc(64 << 10) for _ in range(64)]
    reads = file.readv([(n * 65536, buffer) for n, buffer in enumerate(buffers)])
    for n, (read, buffer) in reversed(list(enumerate(zip(reads, buffers, strict=True)))):
        assert read.result() == 65536
        assert bytes(buffer) == CONTENT[n * 65536 : (n + 1) * 65536]


def test_ranges_come_together(client: forebay.Client, file: forebay.File) -> None:
    ranges = [(file, n * 4001, 4001) for n in range(1200)]
    results = client.read_ranges(ranges)
    assert results == [CONTENT[n * 4001 : (n + 1) * 4001] for n in range(1200)]


def test_size_limits_a_read(client: forebay.Client, file: forebay.File) -> None:
    target = bytearray(100)
    assert file.read_into(target, 10, size=20).result() == 20
    assert target == CONTENT[10:30] + bytes(80)
    assert file.read_into(target, SIZE).result() == 0
    assert file.read_into(bytearray()).result() == 0
    with pytest.raises(ValueError, match="do not fit"):
        file.read_into(target, size=101)


def test_memory_that_will_not_do(file: forebay.File) -> None:
    with pytest.raises(TypeError, match="shows no memory"):
        file.read_into(7)
    with pytest.raises(forebay.Invalid, match="read-only"):
        file.read_into(b"1234")
    with pytest.raises(forebay.Invalid, match="one piece"):
        file.read_into(np.zeros((8, 8), np.uint8)[:, ::2])


class Tensor:
    """What shows an array's memory by DLPack alone, or says that it is elsewhere."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self, **how: object) -> object:
        # Memory of the host knows no stream.
        return self.array.__dlpack__(**{key: how[key] for key in how if key != "stream"})


class OldTensor(Tensor):
    """From before version 1, whose capsules cannot say that memory is read-only."""

    def __dlpack__(self, stream: object = None) -> object:
        return self.array.__dlpack__()


@pytest.mark.parametrize("kind", [Tensor, OldTensor])
def test_tensors_by_dlpack(file: forebay.File, kind: type[Tensor]) -> None:
    array = np.zeros((3, 5, 7), np.float64)
    assert file.read_into(kind(array), 100).result() == array.nbytes
    assert array.tobytes() == CONTENT[100 : 100 + array.nbytes]
    part = array[1:, :, :]
    part[:] = 0
    assert file.read_into(kind(part)).result() == part.nbytes
    assert part.tobytes() == CONTENT[: part.nbytes]
    assert array[0].tobytes() == CONTENT[100 : 100 + array[0].nbytes]
    assert file.read_into(kind(np.zeros((0, 4)))).result() == 0
    for strided in (array[:, ::2], array[:, :, 1:], array.T):
        with pytest.raises(forebay.Invalid, match="one piece"):
            file.read_into(kind(strided))
    with pytest.raises(ValueError, match="do not fit"):
        file.read_into(kind(array), size=array.nbytes + 1)


def test_tensors_that_may_not_be_changed(file: forebay.File) -> None:
    array = np.zeros(100, np.uint8)
    array.flags.writeable = False
    with pytest.raises(forebay.Invalid, match="read-only"):
        file.read_into(Tensor(array))


def test_memory_of_devices(file: forebay.File, client: forebay.Client) -> None:
    array = np.zeros(100, np.uint8)

    class Cupy:
        def __init__(self) -> None:
            self.__cuda_array_interface__ = {
                "shape": (100,),
                "typestr": "|u1",
                "data": (array.ctypes.data, False),
                "version": 3,
            }

    class Torch(Tensor):
        is_cuda = True

    class Amd(Tensor):
        is_cuda = False

    for elsewhere in (Torch(array), Amd(array, device=10)):
        for stream in (None, 1):
            with pytest.raises(forebay.Unsupported, match="detach"):
                file.read_into(elsewhere, stream=stream)
    # Where there is a GPU, tests of its memory are in test_gpu.py.
    if not forebay.caps()["gpu"]["ok"]:
        for elsewhere in (Tensor(array, device=2), Cupy()):
            with pytest.raises(forebay.Unsupported, match="libcuda"):
                file.read_into(elsewhere)
    # Pinned memory is the host's.
    assert file.read_into(Tensor(array, device=3)).result() == 100
    assert array.tobytes() == CONTENT[:100]
    with pytest.raises(forebay.Invalid, match="stream"):
        file.read_into(client.alloc(100), stream=1)


def test_registered_memory_is_written_where_it_is(node: Node, file: forebay.File) -> None:
    settle(file)
    array = np.zeros((8, MIB), np.uint8)
    with forebay.connect(node.shm) as client, pytest.raises(forebay.Unsupported, match="made for"):
        client.register(array)
    client = forebay.connect(node.tcp)
    file = client.open("data/read/whole")
    with client.register(array[1:7]) as registered:
        reads = file.readv([((n - 1) * MIB // 2, array[n]) for n in range(1, 7)])
        assert [read.result() for read in reads] == [MIB] * 6
        for n in range(1, 7):
            assert array[n].tobytes() == CONTENT[(n - 1) * MIB // 2 :][:MIB]
        assert {(read.path, read.copied) for read in reads} == {("tcp", False)}
        # What is beside it costs a copy, as before.
        read = file.read_into(array[0])
        assert (read.result(), read.path, read.copied) == (MIB, "tcp-copied", True)
        for taken in (array[6:], array, client.alloc(10)):
            with pytest.raises(forebay.Invalid, match="already"):
                client.register(taken)
        with pytest.raises(forebay.Invalid, match="read-only"):
            client.register(b"1234")
    registered.close()
    read = file.read_into(array[1])
    assert (read.result(), read.path) == (MIB, "tcp-copied")
    # What is dropped is let go, too, and its memory may be registered again.
    again = client.register(array)
    del again
    gc.collect()
    assert file.read_into(array[1]).result() == MIB
    with client.register(array):
        pass


def test_memory_that_is_read_into_stays_registered(own_node: Node) -> None:
    own_node.put("one", CONTENT)
    client = forebay.connect(own_node.tcp, timeout=60.0)
    file = client.open("data/one")
    content = bytearray(SIZE)
    registered = client.register(content)
    own_node.freeze()
    read = file.read_into(content)
    with pytest.raises(forebay.Busy):
        registered.close()
    own_node.thaw()
    assert read.result() == SIZE
    registered.close()
    assert content == CONTENT
    content.extend(b"it is nobody else's any more")
    # One that is dropped under a read stays until that is over.
    content = bytearray(SIZE)
    registered = client.register(content)
    own_node.freeze()
    read = file.read_into(content)
    del registered
    own_node.thaw()
    assert read.result() == SIZE
    with pytest.raises(BufferError):
        content.extend(b"still exported")
    client.register(bytearray(10)).close()
    assert content == CONTENT
    content.extend(b"it is nobody else's any more")


def test_own_memory_by_dlpack(client: forebay.Client, file: forebay.File) -> None:
    settle(file)
    buffer = client.alloc(MIB)
    array = np.from_dlpack(buffer)
    assert (array.shape, array.dtype) == ((MIB,), np.uint8)
    assert array.ctypes.data == np.frombuffer(buffer, np.uint8).ctypes.data
    del buffer
    gc.collect()
    # The array keeps the memory, and reads into it are the node's.
    read = file.read_into(array[: MIB // 2])
    assert read.result() == MIB // 2
    assert array[: MIB // 2].tobytes() == CONTENT[: MIB // 2]
    assert not read.copied
    assert '"dltensor"' in repr(client.alloc(10).__dlpack__())
    assert '"dltensor_versioned"' in repr(client.alloc(10).__dlpack__(max_version=(1, 3)))
    with pytest.raises(BufferError, match="without a copy"):
        client.alloc(10).__dlpack__(copy=True)
    with pytest.raises(BufferError, match="without a copy"):
        client.alloc(10).__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream"):
        client.alloc(10).__dlpack__(stream=1)


def test_memory_in_use_is_not_used_again(own_node: Node) -> None:
    name = own_node.put("busy", CONTENT)
    client = forebay.connect(own_node.shm)
    file, buffer = client.open(name), client.alloc(MIB)
    own_node.freeze()
    read = file.read_into(buffer)
    with pytest.raises(forebay.Busy, match="another request"):
        file.read_into(memoryview(buffer)[100:200])
    own_node.thaw()
    assert read.result() == MIB
    assert file.read_into(memoryview(buffer)[100:200]).result() == 100


def test_memory_that_was_cut_is_whole_again(own_node: Node) -> None:
    client = forebay.connect(own_node.shm)
    file, buffer = client.open(own_node.put("cut", CONTENT)), client.alloc(MIB)
    view = memoryview(buffer)
    settle(file)
    for start in range(0, MIB - 64, 4096):
        reads = file.readv([(start + n, view[start + n : start + n + 7]) for n in (9, 30, 1, 23)])
        assert [read.result() for read in reads] == [7] * 4
    before = own_node.metric("forebay_reads_total")
    assert file.read_into(buffer).result() == MIB
    assert own_node.metric("forebay_reads_total") == before + 1
    assert view == CONTENT[:MIB]


def test_a_read_keeps_its_memory_exported(own_node: Node) -> None:
    name = own_node.put("export", CONTENT)
    client = forebay.connect(own_node.shm)
    file, target = client.open(name), bytearray(SIZE)
    own_node.freeze()
    read = file.read_into(target)
    with pytest.raises(BufferError):
        target.clear()
    own_node.thaw()
    read.result()
    assert target == CONTENT
    target.clear()


def test_dropped_futures_harm_nobody(own_node: Node) -> None:
    name = own_node.put("dropped", CONTENT)
    client = forebay.connect(own_node.shm)
    file = client.open(name)
    buffers = [client.alloc(MIB) for _ in range(16)]
    own_node.freeze()
    while buffers:
        file.read_into(buffers.pop())
        target = bytearray(SIZE)
        file.read_into(target)
        target.clear()
    gc.collect()
    own_node.thaw()
    assert file.pread(0, SIZE) == CONTENT
    assert len(client.alloc(100)) == 100


def test_reads_go_on_while_nobody_waits(client: forebay.Client, file: forebay.File) -> None:
    target = bytearray(SIZE)
    read = file.read_into(target)
    while read.bytes is None:
        pass
    assert target == CONTENT


def test_closed_files_and_clients(node: Node, file: forebay.File) -> None:
    with forebay.connect(node.shm) as client:
        with client.open("data/read/whole") as opened:
            read = opened.read_into(bytearray(100))
        assert opened.closed
        assert read.result() == 100
        with pytest.raises(ValueError, match="closed"):
            opened.pread(0, 1)
        opened = client.open("data/read/whole")
    assert client.closed
    with pytest.raises(forebay.Disconnected):
        opened.pread(0, 1)
    with pytest.raises(ConnectionError):
        client.alloc(10)


def test_open_by_url(node: Node, file: forebay.File) -> None:
    by_host = f"forebay://{node.ready['listen']}/data/read/whole"
    for opened in (
        forebay.open("forebay://data/read/whole", endpoint=node.shm),
        forebay.open("data/read/whole", endpoint=node.shm),
        forebay.open(by_host),
    ):
        with opened:
            assert opened.pread(SIZE - 5, 10) == CONTENT[-5:]


def test_pickles_connect_again(client: forebay.Client, file: forebay.File) -> None:
    again = pickle.loads(pickle.dumps(file))
    assert again.generation == file.generation
    assert again.pread(0, 1000) == CONTENT[:1000]
    other = pickle.loads(pickle.dumps(client))
    assert other.endpoint == client.endpoint
    assert other.ping() > 0
