"""Errors are Python's own, carry the node's words, and come in bounded time."""

import socket
import threading
import time
from contextlib import suppress

import forebay
import pytest
from conftest import MIB, Node, noise, settle


def test_what_is_not_there(client: forebay.Client) -> None:
    with pytest.raises(forebay.NotFound, match="no/such") as caught:
        client.open("data/no/such")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, forebay.Error)
    assert caught.value.kind == "not_found"
    with pytest.raises(FileNotFoundError):
        client.open("nosilo/key")
    with pytest.raises(forebay.Invalid):
        client.open("noslash")


def test_a_generation_that_is_not_there(node: Node, client: forebay.Client, key: str) -> None:
    name = node.put(key, b"some")
    generation = client.open(name).generation
    with pytest.raises(forebay.Error) as caught:
        client.open(name, generation + 100)
    assert caught.value.kind in ("stale", "not_found")


def test_connecting_to_nobody() -> None:
    with pytest.raises(forebay.Disconnected) as caught:
        forebay.connect("unix:/no/such/socket")
    assert isinstance(caught.value, ConnectionError)
    with pytest.raises(ConnectionError):
        forebay.connect("tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match="not an endpoint"):
        forebay.connect("http://x")
    with pytest.raises(TypeError, match="no option"):
        forebay.connect("auto", bandwidth=1)
    with pytest.raises(ValueError, match="negative"):
        forebay.connect("auto", timeout=-1.0)


def test_a_node_that_dies_ends_reads(own_node: Node) -> None:
    name = own_node.put("dies", bytes(MIB))
    client = forebay.connect(own_node.shm, timeout=10.0)
    file, buffer = client.open(name), client.alloc(MIB)
    own_node.freeze()
    reads = [file.read_into(buffer), file.read_into(bytearray(MIB))]
    own_node.kill()
    for read in reads:
        with pytest.raises(forebay.Disconnected):
            read.result()
    assert client.closed
    # Its devices may still write there: the memory stays readable, and is not used again.
    assert len(bytes(buffer)) == MIB
    with pytest.raises(forebay.Disconnected):
        file.read_into(buffer).result()


def test_a_silent_node_is_given_up(own_node: Node) -> None:
    name = own_node.put("silent", bytes(MIB))
    client = forebay.connect(own_node.tcp, timeout=1.0)
    file = client.open(name)
    own_node.freeze()
    read = file.read_into(bytearray(MIB))
    with pytest.raises(TimeoutError, match="under way"):
        read.result(timeout=0.05)
    with pytest.raises(forebay.Disconnected, match="no answer within"):
        read.result()
    assert client.closed


class Dam:
    """A way to a node over TCP that lets so many bytes a second through, or none."""

    def __init__(self, address: str, bytes_per_second: int) -> None:
        host, _, port = address.rpartition(":")
        self._node = (host, int(port))
        self.bytes_per_second = bytes_per_second
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = "tcp://{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self.bytes_per_second = 1 << 40
        self._thread.join()

    def _run(self) -> None:
        with (
            self._socket,
            self._socket.accept()[0] as near,
            socket.create_connection(self._node) as far,
        ):
            back = threading.Thread(target=self._pass, args=(far, near, True))
            back.start()
            self._pass(near, far, False)
            back.join()

    def _pass(self, source: socket.socket, sink: socket.socket, slowly: bool) -> None:
        due = 0.0
        with suppress(OSError):
            while data := source.recv(MIB // 8):
                while slowly and not self.bytes_per_second:
                    time.sleep(0.01)
                if slowly:
                    due = max(due + len(data) / self.bytes_per_second, time.monotonic() - 0.1)
                    time.sleep(max(due - time.monotonic(), 0))
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def test_a_slow_node_is_waited_for(own_node: Node) -> None:
    size, patience = 64 * MIB, 3.0
    content = noise(2 * size)
    name = own_node.put("slow", content)
    dam = Dam(own_node.ready["listen"], 1 << 40)
    client = forebay.connect(dam.url, timeout=patience, credits=1)
    file = client.open(name)
    settle(file)
    # A second for each of the requests that the reads are made of.
    dam.bytes_per_second = 16 * MIB
    buffers = [client.alloc(size), client.alloc(size)]
    begin = time.monotonic()
    # Each takes longer than the client is patient, and the second one waits that long to be sent.
    reads = file.readv([(0, buffers[0]), (size, buffers[1])])
    assert [read.result() for read in reads] == [size] * 2
    assert time.monotonic() - begin > 2 * patience
    assert b"".join(map(bytes, buffers)) == content
    dam.bytes_per_second = 0
    with pytest.raises(forebay.Disconnected, match="no answer within"):
        file.read_into(buffers[0]).result(30)
    client.close()
    dam.close()


@pytest.mark.parametrize("timeout", [1e9, 1e18, 1e300, float("inf")])
def test_for_ever(node: Node, key: str, timeout: float) -> None:
    name = node.put(key, b"some")
    with forebay.connect(node.tcp, timeout=timeout, connect_timeout=timeout) as client:
        read = client.open(name).read_into(bytearray(4))
        assert read.result(timeout) == 4
        assert read.exception(timeout) is None
    for never in (float("nan"), float("-inf"), -1.0):
        with pytest.raises(ValueError, match=r"negative|NaN|finite"):
            forebay.connect(node.tcp, timeout=never)


def test_ranges_stop_at_the_end_and_want_open_files(
    node: Node, client: forebay.Client, key: str
) -> None:
    file = client.open(node.put(key, b"0123456789"))
    closed = client.open(f"data/{key}")
    assert client.read_ranges([(file, 2, 3), (file, 8, 100)]) == [b"234", b"89"]
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        client.read_ranges([(closed, 0, 1)])


def test_one_bad_range_spoils_no_other(node: Node, client: forebay.Client, key: str) -> None:
    good, gone = client.open(node.put(key, b"0123456789")), client.open(node.put(key + "-2", b"9"))
    (node.data / f"{key}-2").unlink()
    first, failed, last = client.read_ranges([(good, 0, 2), (gone, 0, 1), (good, 8, 2)])
    assert isinstance(failed, forebay.Error), failed
    assert (first, last) == (b"01", b"89")
