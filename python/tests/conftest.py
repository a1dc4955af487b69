"""A real node for the tests, and files on it."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forebay
import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("FOREBAY_BIN", ROOT / "target/debug/forebay"))
MIB = 1 << 20


@dataclass
class Node:
    """A node's process, and where it is reached."""

    process: subprocess.Popen[str]
    directory: Path
    ready: dict[str, Any]

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def shm(self) -> str:
        return f"unix:{self.ready['socket']}"

    @property
    def tcp(self) -> str:
        return f"tcp://{self.ready['listen']}"

    @property
    def rdma(self) -> str:
        return f"rdma://{self.ready['rdma'][0]}"

    @property
    def control(self) -> str:
        return self.ready["control"]

    def proof(self) -> str:
        """One that opens a session."""
        command = [str(BINARY), "session", "grant", "--control", self.control]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    def metric(self, name: str) -> int:
        """A counter of the node's."""
        with urllib.request.urlopen(f"http://{self.ready['metrics']}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def put(self, key: str, content: bytes) -> str:
        """A file in the silo, under a key that no test used before."""
        path = self.data / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"data/{key}"

    def freeze(self) -> None:
        """Stops it: once this returns, it answers nothing."""
        self.process.send_signal(signal.SIGSTOP)
        while not all(_is_stopped(t) for t in Path(f"/proc/{self.process.pid}/task").iterdir()):
            pass

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self.directory / "state")


def _is_stopped(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return True


def start(directory: Path, more: str = "", arguments: Iterable[str] = ()) -> Node:
    """Starts a node, with more in its configuration, and waits until it serves."""
    (directory / "data").mkdir()
    config = directory / "forebay.toml"
    config.write_text(
        f"""[node]
state_dir = "{directory / "state"}"
shards = 1
buffers_bytes = "32MiB"
listen = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[tier]
scrub_every = "off"
[silo.data]
kind = "directory"
path = "{directory / "data"}"
quiet_s = 0.0
{more}
"""
    )
    command = [str(BINARY), "serve", "--json", "--control", "127.0.0.1:0"]
    command += ["--tier-size", "256MiB", "--config", str(config), *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FOREBAY_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    return Node(process, directory, json.loads(process.stdout.readline()))


def shipped(package: str, path: str) -> Path:
    """A file of real data that a package ships, which need not be importable."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(found.submodule_search_locations[0], path)


def settle(file: forebay.File) -> None:
    """Has all of a file on the node: a read may be answered while its bytes still arrive."""
    file.pread(0, file.size)
    while (stat := file.stat())["resident_extents"] < stat["total_extents"]:
        pass


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = start(tmp_path_factory.mktemp("node"))
    yield node
    if node.process.poll() is None:
        node.kill()


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Node]:
    """A node that a test may harm."""
    node = start(tmp_path)
    yield node
    if node.process.poll() is None:
        node.kill()


@pytest.fixture(params=["shm", "tcp"])
def client(node: Node, request: pytest.FixtureRequest) -> Iterator[forebay.Client]:
    with forebay.connect(getattr(node, request.param)) as client:
        yield client


@pytest.fixture
def shm(node: Node) -> Iterator[forebay.Client]:
    with forebay.connect(node.shm) as client:
        yield client


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key for this test alone."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)
