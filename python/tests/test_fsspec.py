"""``forebay://`` by fsspec: our own tests, then fsspec's for every file system."""

import gc
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import forebay
import fsspec
import pytest
from conftest import MIB, Node, noise
from forebay.fsspec import ForebayFileSystem
from fsspec.tests import abstract


@pytest.fixture(scope="module")
def options(node: Node) -> dict[str, str]:
    return {"endpoint": node.shm, "control": node.control}


@pytest.fixture(scope="module")
def fs(options: dict[str, str]) -> ForebayFileSystem:
    return fsspec.filesystem("forebay", **options)


def test_it_is_registered(fs: ForebayFileSystem) -> None:
    assert isinstance(fs, ForebayFileSystem)
    assert isinstance(pickle.loads(pickle.dumps(fs)), ForebayFileSystem)


def test_urls(node: Node, options: dict[str, str], key: str) -> None:
    name = node.put(key, b"some bytes")
    with fsspec.open(f"forebay://{name}", **options) as file:
        assert file.read() == b"some bytes"
    with fsspec.open(f"forebay://{node.ready['listen']}/{name}", control=node.control) as file:
        assert file.read() == b"some bytes"


def test_listing(fs: ForebayFileSystem, key: str) -> None:
    top = f"data/{key}"
    for name, size in (("a", 1), ("b", 2), ("sub/c", 3), ("sub/deep/d", 4)):
        fs.pipe_file(f"{top}/{name}", bytes(size))
    assert "data" in fs.ls("", detail=False)
    assert fs.ls(top, detail=False) == [f"{top}/a", f"{top}/b", f"{top}/sub"]
    assert [e["type"] for e in fs.ls(top)] == ["file", "file", "directory"]
    assert [e["size"] for e in fs.ls(f"{top}/sub")] == [3, 0]
    assert fs.ls(f"{top}/a", detail=False) == [f"{top}/a"]
    assert fs.find(top) == [f"{top}/{n}" for n in ("a", "b", "sub/c", "sub/deep/d")]
    assert fs.glob(f"{top}/**/d") == [f"{top}/sub/deep/d"]
    assert fs.du(top) == 10
    assert fs.isdir(f"{top}/sub")
    assert fs.isfile(f"{top}/b")
    assert fs.exists(f"{top}/b")
    assert not fs.exists(f"{top}/x")
    assert not fs.exists("nosilo")
    info = fs.info(f"{top}/b")
    assert (info["size"], info["type"], info["generation"]) == (2, "file", 1)
    with pytest.raises(FileNotFoundError):
        fs.info(f"{top}/x")
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{top}/x")


def test_cat(fs: ForebayFileSystem, node: Node, key: str) -> None:
    content = noise(MIB)
    name = node.put(key, content)
    assert fs.cat_file(name) == content
    assert fs.cat_file(name, 5, 15) == content[5:15]
    assert fs.cat_file(name, start=-10) == content[-10:]
    assert fs.cat_file(name, end=-10) == content[:-10]
    starts = list(range(0, MIB, 1000))
    ends = [start + 1500 for start in starts]
    ranges = fs.cat_ranges([name] * len(starts), starts, ends)
    assert ranges == [content[s:e] for s, e in zip(starts, ends, strict=True)]
    mixed = fs.cat_ranges([name, "data/none", name], 0, [10, 10, None])
    assert (mixed[0], mixed[2]) == (content[:10], content)
    assert isinstance(mixed[1], FileNotFoundError)
    with pytest.raises(forebay.NotFound):
        fs.cat_ranges(["data/none"], [0], [1], on_error="raise")
    assert fs.cat_ranges([], [], []) == []


def test_open_files(fs: ForebayFileSystem, node: Node, key: str) -> None:
    content = noise(3 * MIB + 5)
    with fs.open(node.put(key, content)) as file:
        assert file.read(10) == content[:10]
        target = bytearray(MIB)
        assert file.readinto(target) == MIB
        assert target == content[10 : 10 + MIB]
        assert file.seek(-5, 2) == 3 * MIB
        assert file.readinto(target) == 5
        assert file.readinto(target) == 0
        file.seek(0)
        assert file.read() == content
    text = f"data/{key}.txt"
    with fs.open(text, "w") as file:
        file.write("one\ntwo\n")
    with fs.open(text, "r") as file:
        assert list(file) == ["one\n", "two\n"]


def test_writes_are_whole(fs: ForebayFileSystem, key: str) -> None:
    name, content = f"data/{key}", noise(9 * MIB)
    with fs.open(name, "wb", block_size=4 * MIB) as file:
        for start in range(0, len(content), MIB):
            file.write(content[start : start + MIB])
        assert not fs.exists(name)
    assert fs.cat_file(name) == content
    with pytest.raises(RuntimeError, match="mine"), fs.open(name, "wb") as file:
        file.write(b"half")
        raise RuntimeError("mine")
    assert fs.info(name)["size"] == len(content)
    before = fs.ukey(name)
    with fs.transaction:
        with fs.open(name, "wb") as file:
            file.write(b"in a transaction")
        assert fs.ukey(name) == before
    assert fs.cat_file(name) == b"in a transaction"
    assert fs.ukey(name) != before
    with pytest.raises(forebay.Unsupported, match="replaced whole"):
        fs.open(name, "ab")
    with pytest.raises(NotImplementedError, match="deletes"):
        fs.rm(name)


@pytest.mark.parametrize("mode", ["wb", "wt"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_half_a_file_is_none(
    options: dict[str, str], fs: ForebayFileSystem, key: str, mode: str, compression: str | None
) -> None:
    url = f"forebay://data/{key}"
    half = "half" if mode == "wt" else b"half"
    opened = {"mode": mode, "compression": compression, **options}
    with pytest.raises(KeyError, match="mine") as caught, fsspec.open(url, **opened) as file:
        file.write(half)
        raise KeyError("mine")
    assert not fs.exists(url)
    assert "not committed" in "".join(caught.value.__notes__)
    # An older error is none of this file's.
    try:
        raise KeyError("old")
    except KeyError:
        with fsspec.open(url, **opened) as file:
            file.write(half)
    with fsspec.open(url, mode.replace("w", "r"), compression=compression, **options) as file:
        assert file.read() == half


def test_what_is_closed_for_an_error_is_not_committed(fs: ForebayFileSystem, key: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        file = fs.open(f"data/{key}", "wb")
        try:
            file.write(b"half")
            raise KeyError("mine")
        finally:
            file.close()
    assert file.closed
    assert not fs.exists(f"data/{key}")
    file = fs.open(f"data/{key}", "wb")
    file.write(b"half")
    with pytest.warns(ResourceWarning, match="never closed"):
        del file
        gc.collect()
    assert not fs.exists(f"data/{key}")


def test_what_is_on_another_node(
    node: Node, fs: ForebayFileSystem, options: dict[str, str], key: str
) -> None:
    name = node.put(key, b"some bytes")
    there = fsspec.filesystem("forebay", endpoint=node.tcp, control=node.control)
    url = f"forebay://{node.ready['listen']}/{name}"
    assert there.cat(url) == b"some bytes"
    assert there.glob(url[:-1] + "*") == [name]
    for elsewhere in ("forebay://node7:7440/" + name, url):
        for act in (fs.cat, fs.open, fs.info, fs.ls, fs.touch):
            with pytest.raises(forebay.Invalid, match="another node"):
                act(elsewhere)
    with pytest.raises(forebay.Invalid, match="another node"):
        there.copy(url, "forebay://node7:7440/" + name)


def test_a_forked_child_lists(node: Node, fs: ForebayFileSystem, key: str) -> None:
    name = node.put(key, b"some bytes")
    fs.open(name).close()
    assert fs.ls(name, detail=False) == [name]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if fs.ls(name, detail=False) == [name] and fs.cat(name) else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_get_and_put(fs: ForebayFileSystem, tmp_path: Path, key: str) -> None:
    content = noise(17 * MIB + 3)
    (tmp_path / "up").write_bytes(content)
    fs.put_file(str(tmp_path / "up"), f"data/{key}")
    fs.get_file(f"data/{key}", str(tmp_path / "new/down"))
    assert (tmp_path / "new/down").read_bytes() == content
    fs.cp_file(f"data/{key}", f"data/{key}-copy")
    assert fs.cat_file(f"data/{key}-copy") == content


def test_parquet_by_url(options: dict[str, str], key: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    frame = pandas.DataFrame({"number": range(100_000), "text": [str(n) for n in range(100_000)]})
    url = f"forebay://data/{key}.parquet"
    frame.to_parquet(url, storage_options=options, row_group_size=10_000)
    back = pandas.read_parquet(url, storage_options=options, columns=["text"])
    assert back["text"].tolist() == frame["text"].tolist()
    assert pandas.read_parquet(url, storage_options=options).equals(frame)


class Fixtures(abstract.AbstractFixtures):
    """Where fsspec's tests run: each in a directory of its own, as nothing is deleted."""

    @pytest.fixture
    def fs(self, options: dict[str, str]) -> ForebayFileSystem:
        return fsspec.filesystem("forebay", **options)

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self, request: pytest.FixtureRequest) -> str:
        name = f"{type(self).__name__}-{request.node.name}"
        return "data/" + "".join(c if c.isalnum() else "-" for c in name)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, fs, fs_join, fs_path):
        return self._bulk_operations_scenario_0(fs, fs_join, fs_path)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, fs, fs_join, fs_path):
        return self._glob_edge_cases_files(fs, fs_join, fs_path)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, fs, fs_join, fs_path):
        return self._dir_and_file_with_same_name_prefix(fs, fs_join, fs_path)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, fs, fs_join, fs_path):
        return self._10_files_with_hashed_names(fs, fs_join, fs_path)

    @pytest.fixture
    def fs_target(self, fs_join, fs_path) -> Iterator[str]:
        return fs_join(fs_path, "target")


DELETES = "deletes between its steps, and a node deletes nothing"


def without(suite: type, reason: str, *names: str) -> type:
    """A suite of which some tests are skipped, by name."""
    marked = {name: pytest.mark.skip(reason=reason)(getattr(suite, name)) for name in names}
    return type(suite.__name__, (suite,), marked)


class TestGet(Fixtures, abstract.AbstractGetTests):
    pass


class TestOpen(Fixtures, abstract.AbstractOpenTests):
    pass


class TestPipe(Fixtures, abstract.AbstractPipeTests):
    pass


class TestCopy(
    Fixtures,
    without(
        abstract.AbstractCopyTests,
        DELETES,
        "test_copy_file_to_existing_directory",
        "test_copy_directory_to_existing_directory",
        "test_copy_directory_to_new_directory",
        "test_copy_glob_to_existing_directory",
        "test_copy_glob_to_new_directory",
        "test_copy_glob_edge_cases",
        "test_copy_list_of_files_to_existing_directory",
        "test_copy_directory_without_files_with_same_name_prefix",
    ),
):
    pass


class TestPut(
    Fixtures,
    without(
        abstract.AbstractPutTests,
        DELETES,
        "test_put_file_to_existing_directory",
        "test_put_directory_to_existing_directory",
        "test_put_directory_to_new_directory",
        "test_put_glob_to_existing_directory",
        "test_put_glob_to_new_directory",
        "test_put_glob_edge_cases",
        "test_put_list_of_files_to_existing_directory",
        "test_put_directory_recursive",
        "test_put_directory_without_files_with_same_name_prefix",
    ),
):
    pass
