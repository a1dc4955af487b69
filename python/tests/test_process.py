"""Signals, forks, processes, threads and event loops."""

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path

import forebay
import pytest
from conftest import BINARY, MIB, Node, noise, start

CONTENT = noise(2 * MIB)


def in_child(check: Callable[[], None]) -> int:
    """The exit status of a forked child that runs this."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_is_told(node: Node, shm: forebay.Client, key: str) -> None:
    name = node.put(key, CONTENT)
    file, buffer = shm.open(name), shm.alloc(MIB)
    read = file.read_into(buffer)
    writer = shm.create(f"data/{key}-new")

    def check() -> None:
        calls: list[Callable[[], object]] = [
            lambda: shm.open(name),
            lambda: shm.alloc(1),
            lambda: file.pread(0, 1),
            lambda: file.read_into(bytearray(1)),
            lambda: len(buffer),
            lambda: memoryview(buffer),
            read.result,
            read.done,
            lambda: writer.write(0, b""),
            shm.close,
        ]
        for call in calls:
            with pytest.raises(forebay.Unsupported, match="after a fork"):
                call()
        # Its own connection works, and is not its parent's.
        with forebay.connect(node.shm) as own, own.open(name) as opened:
            assert opened.pread(0, 2 * MIB) == CONTENT

    assert in_child(check) == 0
    assert read.result() == MIB
    assert file.pread(0, 2 * MIB) == CONTENT


def test_a_fork_while_threads_read(node: Node, shm: forebay.Client, key: str) -> None:
    file = shm.open(node.put(key, CONTENT))
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            assert file.pread(0, MIB) == CONTENT[:MIB]

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):

            def check() -> None:
                with pytest.raises(forebay.Unsupported):
                    file.pread(0, 1)

            assert in_child(check) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _read_in_process(file: forebay.File) -> bytes:
    return file.pread(0, 100)


def test_spawned_processes_connect_by_themselves(node: Node, shm: forebay.Client, key: str) -> None:
    file = shm.open(node.put(key, CONTENT))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read_in_process, (file,)) == CONTENT[:100]


# In the background of a shell Ctrl-C is ignored, also by what the tests start.
WAITS = """
import signal, sys, forebay
signal.signal(signal.SIGINT, signal.default_int_handler)
client = forebay.connect(sys.argv[1])
file = client.open(sys.argv[2])
buffer = client.alloc(1 << 20)
try:
    print("ready", flush=True)
    sys.stdin.readline()
    print("waiting", flush=True)
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    "call",
    [
        "file.read_into(buffer).result()",
        "file.pread(0, 1 << 20)",
        "file.stat()",
        "client.open(sys.argv[2])",
        "client.create('data/new').write(0, b'1')",
        "client.read_ranges([(file, 0, 10)] * 10)",
        "forebay.connect(sys.argv[1])",
        "client.ping()",
        "client.alloc(64 << 20)",
    ],
)
def test_ctrl_c_while_waiting(own_node: Node, call: str) -> None:
    name = own_node.put("waits", CONTENT)
    program = [sys.executable, "-c", WAITS.replace("{call}", call), own_node.shm, name]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        own_node.freeze()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "waiting\n"
        while not _sleeps(process.pid):
            pass
        process.send_signal(signal.SIGINT)
        last = process.stdout.readline()
        assert last == "interrupted\n", process.wait(timeout=30)
        # The node is still silent: the process has to end without it.
        assert process.wait(timeout=30) == 0


def _sleeps(pid: int) -> bool:
    """Whether the main thread waits, and no longer writes its line."""
    with open(f"/proc/{pid}/syscall") as status:
        return status.read().split()[0] not in ("running", "1")


def test_other_threads_run_while_one_waits(own_node: Node) -> None:
    name = own_node.put("gil", CONTENT)
    client = forebay.connect(own_node.shm)
    file = client.open(name)
    own_node.freeze()
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(file.pread(0, 2 * MIB)))
    thread.start()
    # If the waiting thread kept the interpreter, this would never come to the thaw.
    assert sum(range(1000)) == 499500
    own_node.thaw()
    thread.join()
    assert results == [CONTENT]


def test_threads_share_a_client(node: Node, client: forebay.Client, key: str) -> None:
    file = client.open(node.put(key, CONTENT))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            buffer = client.alloc(64 << 10)
            for n in range(50):
                offset = (seed * 7919 + n * 104729) % len(CONTENT)
                count = file.read_into(buffer, offset).result()
                assert bytes(memoryview(buffer)[:count]) == CONTENT[offset : offset + (64 << 10)]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_await(node: Node, client: forebay.Client, key: str) -> None:
    file = client.open(node.put(key, CONTENT))

    async def read(n: int) -> bytes:
        target = bytearray(10_000)
        assert await file.read_into(target, n * 1000) == 10_000
        return bytes(target)

    async def main() -> None:
        results = await asyncio.gather(*(read(n) for n in range(100)))
        assert results == [CONTENT[n * 1000 : n * 1000 + 10_000] for n in range(100)]
        with pytest.raises(forebay.Disconnected):
            client.close()
            await file.read_into(bytearray(10))

    asyncio.run(main())
    asyncio.run(asyncio.sleep(0))


def test_await_does_not_block_the_loop(own_node: Node) -> None:
    name = own_node.put("loop", CONTENT)
    client = forebay.connect(own_node.shm)
    file = client.open(name)

    async def main() -> None:
        own_node.freeze()
        target = bytearray(2 * MIB)
        read = asyncio.ensure_future(asyncio.wait_for(file.read_into(target), 60))
        await asyncio.sleep(0)
        own_node.thaw()
        assert await read == 2 * MIB
        assert target == CONTENT

    asyncio.run(main())


def test_loops_that_end_leave_nothing(own_node: Node) -> None:
    name = own_node.put("loops", CONTENT)
    loops = weakref.WeakSet[asyncio.AbstractEventLoop]()

    async def one(client: forebay.Client) -> None:
        loops.add(asyncio.get_running_loop())
        file = client.open(name)
        reads = [file.read_into(bytearray(100_000), n) for n in range(8)]
        assert await asyncio.gather(*reads) == [100_000] * 8
        own_node.freeze()
        given_up = [file.read_into(bytearray(100_000), n) for n in range(8)]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*given_up), 0.02)
        own_node.thaw()
        # Those are waited for once more.
        assert await asyncio.gather(*given_up) == [100_000] * 8

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    kept = forebay.connect(own_node.shm)
    before = descriptors()
    for _ in range(5):
        asyncio.run(one(kept))
        # The next one may be where the last one was.
        with forebay.connect(own_node.shm) as client:
            asyncio.run(one(client))
        del client
    gc.collect()
    assert not loops
    assert descriptors() <= before


def test_doctor(node: Node) -> None:
    caps = forebay.caps(node.shm)
    assert caps["node"]["ok"]
    assert caps["node"]["fabric"] == "shm"
    assert all(part["ok"] or part["why"] for part in caps["libraries"].values())
    assert caps["shared_memory"] == {"ok": True, "socket": node.ready["socket"]}
    assert "no way through" in forebay.caps(node.tcp)["shared_memory"]["why"]
    nobody = forebay.caps("auto:/no/such,127.0.0.1:1")
    assert "/no/such/forebay.sock" in nobody["shared_memory"]["why"]
    assert not nobody["node"]["ok"]
    assert caps["rdma"]["ok"] or caps["rdma"]["why"]
    command = [sys.executable, "-m", "forebay", "doctor", "--endpoint"]
    reached = subprocess.run([*command, node.tcp], capture_output=True, text=True)
    assert reached.returncode == 0, reached
    assert "tcp" in reached.stdout
    missed = subprocess.run([*command, "tcp://127.0.0.1:1"], capture_output=True, text=True)
    assert missed.returncode == 1
    assert "127.0.0.1:1" in missed.stdout


def test_proofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_PROOF", raising=False)
    node = start(tmp_path, more='[sessions]\nproof = "required"')
    drawn = []

    def draw() -> str:
        command = [str(BINARY), "--control", node.control, "session", "grant"]
        grant = subprocess.run(command, check=True, capture_output=True, text=True)
        drawn.append(grant.stdout)
        return grant.stdout

    try:
        name = node.put("proven", CONTENT)
        with pytest.raises(forebay.Denied):
            forebay.connect(node.tcp)
        with forebay.connect(node.tcp, proof=draw().strip()) as client:
            assert client.open(name).pread(0, 10) == CONTENT[:10]
        for proof in (drawn[0], "0" * 32, "short"):
            with pytest.raises(forebay.Error) as refused:
                forebay.connect(node.tcp, proof=proof)
            assert proof.strip() not in str(refused.value)
        # Each connection asks for its own.
        for count in (2, 3):
            with forebay.connect(node.tcp, proof=draw) as client:
                assert client.ping() > 0
            assert len(drawn) == count
        with pytest.raises(TypeError):
            forebay.connect(node.tcp, proof=7)
    finally:
        node.kill()
