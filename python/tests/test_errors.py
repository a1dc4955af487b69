"""Errors are Python's own, carry the node's words, and come in bounded time."""

import forebay
import pytest
from conftest import MIB, Node


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
