"""New generations."""

import forebay
import numpy as np
import pytest
from conftest import MIB, Node, noise


def test_a_commit_is_seen_whole(client: forebay.Client, key: str) -> None:
    content = noise(3 * MIB + 17)
    writer = client.create(f"data/{client.fabric}/{key}", expected_bytes=len(content))
    writer.write(0, content[:MIB])
    writer.write(MIB, bytearray(content[MIB : 2 * MIB]))
    with pytest.raises(forebay.NotFound):
        client.open(writer.name)
    writer.write(2 * MIB, np.frombuffer(content[2 * MIB :], np.uint8))
    file = writer.commit()
    assert (file.size, file.generation) == (len(content), 1)
    assert file.pread(0, len(content)) == content
    with pytest.raises(ValueError, match="has committed"):
        writer.write(0, b"more")


def test_own_memory_is_written_from(client: forebay.Client, key: str) -> None:
    buffer = client.alloc(MIB)
    memoryview(buffer)[:] = content = noise(MIB)
    with client.create(f"data/{client.fabric}/{key}") as writer:
        assert writer.write(0, buffer) == MIB
        assert writer.write(MIB, memoryview(buffer)[10:20]) == 10
    with client.open(writer.name) as file:
        assert file.pread(0, 2 * MIB) == content + content[10:20]


def test_an_exception_leaves_nothing(client: forebay.Client, key: str) -> None:
    name = f"data/{client.fabric}/{key}"
    with pytest.raises(RuntimeError, match="mine"), client.create(name) as writer:
        writer.write(0, b"half")
        raise RuntimeError("mine")
    with pytest.raises(FileNotFoundError):
        client.open(name)


def test_open_files_keep_their_generation(client: forebay.Client, key: str) -> None:
    name = f"data/{client.fabric}/{key}"
    with client.create(name) as writer:
        writer.write(0, b"first")
    before = client.open(name)
    with client.create(name) as writer:
        writer.write(0, b"second, longer")
    after = client.open(name)
    assert after.generation > before.generation
    assert (before.pread(0, 100), after.pread(0, 100)) == (b"first", b"second, longer")


def test_a_length_of_choice(client: forebay.Client, key: str) -> None:
    writer = client.create(f"data/{client.fabric}/{key}")
    writer.write(10, b"abc")
    file = writer.commit(length=20)
    assert file.pread(0, 100) == bytes(10) + b"abc" + bytes(7)


def test_a_lost_writer_commits_nothing(own_node: Node) -> None:
    client = forebay.connect(own_node.tcp, timeout=5.0)
    writer = client.create("data/lost")
    writer.write(0, b"half")
    own_node.kill()
    with pytest.raises(forebay.Disconnected):
        writer.write(4, b"more")
    with pytest.raises(forebay.Disconnected):
        writer.commit()
