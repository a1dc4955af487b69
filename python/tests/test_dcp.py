"""Checkpoints of torch.distributed.checkpoint."""

import pickle
from pathlib import Path

import forebay
import pytest
from conftest import Node

torch = pytest.importorskip("torch", reason="torch is not installed")
dcp = pytest.importorskip(
    "torch.distributed.checkpoint", reason="this torch has no torch.distributed.checkpoint"
)

import forebay.dcp as ours  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as multiprocessing  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def state(seed: int) -> dict[str, object]:
    """A model and its optimizer after a step, and more."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Linear(200, 10))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.randn(1000, 700).to(torch.bfloat16),
        "strided": torch.randn(30, 20).t(),
        "scalar": torch.tensor(seed),
        "empty": torch.zeros(0, 3),
        "flags": torch.randn(77) > 0,
        "step": seed,
    }


def leaves(tree: object, path: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        found = {}
        for key, value in tree.items():
            found |= leaves(value, f"{path}.{key}")
        return found
    return {path: tree}


def same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def load(reader: object, into: dict[str, object]) -> dict[str, object]:
    dcp.load(into, storage_reader=reader, no_dist=True)
    return leaves(into)


def save(writer: object, what: dict[str, object]) -> None:
    dcp.save(what, storage_writer=writer, no_dist=True)


def test_a_checkpoint_comes_back(node: Node, client: forebay.Client, key: str) -> None:
    url = f"forebay://data/{client.fabric}/{key}"
    saved = state(1)
    writer = ours.StorageWriter(url, endpoint=client.endpoint)
    save(writer, saved)
    reader = ours.StorageReader(url, endpoint=client.endpoint)
    loaded = load(reader, state(2))
    expected = leaves(saved)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert same(loaded[name], value), name
    # Into memory of another type, and not in one piece.
    other = {"half": torch.zeros(700, 1000, dtype=torch.float32).t()}
    assert torch.equal(load(reader, other)[".half"], saved["half"].to(torch.float32))
    assert {place.file for place in reader._places.values()} == {f"{writer._save}.distcp"}


def test_a_checkpoint_is_there_or_not(node: Node, key: str) -> None:
    url = f"forebay://data/{key}"
    reader = ours.StorageReader(url, endpoint=node.shm)
    with pytest.raises(dcp.api.CheckpointException, match="no whole checkpoint"):
        load(reader, state(0))
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        reader.read_metadata()

    class Dies(ours.StorageWriter):
        def finish(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("the last rank was lost")

    with pytest.raises(dcp.api.CheckpointException, match="last rank"):
        save(Dies(url, endpoint=node.shm), state(1))
    with pytest.raises(dcp.api.CheckpointException, match="no whole checkpoint"):
        load(reader, state(0))
    save(ours.StorageWriter(url, endpoint=node.shm), state(2))
    assert load(reader, state(0))[".step"] == 2
    # One that breaks while it is saved over another leaves that.
    with pytest.raises(dcp.api.CheckpointException, match="last rank"):
        save(Dies(url, endpoint=node.shm), state(3))
    loaded = load(reader, state(0))
    assert all(same(loaded[name], value) for name, value in leaves(state(2)).items())
    save(ours.StorageWriter(url, endpoint=node.shm), state(3))
    assert load(reader, state(0))[".step"] == 3


def test_one_writer_saves_again_without_touching_what_it_saved(node: Node, key: str) -> None:
    url = f"forebay://data/{key}"
    writer = ours.StorageWriter(url, endpoint=node.shm)
    save(writer, state(1))
    finish, writer.finish = writer.finish, _dies
    with pytest.raises(dcp.api.CheckpointException, match="the last step"):
        save(writer, state(2))
    reader = ours.StorageReader(url, endpoint=node.shm)
    loaded = load(reader, state(0))
    assert all(same(loaded[name], value) for name, value in leaves(state(1)).items())
    writer.finish = finish
    save(writer, state(3))
    assert load(reader, state(0))[".step"] == 3


def _dies(*_: object, **__: object) -> None:
    raise RuntimeError("the last step")


def test_other_checkpoints_are_refused(node: Node, key: str, tmp_path: Path) -> None:
    with pytest.raises(forebay.Invalid, match="silo"):
        ours.StorageWriter("forebay://data")
    dcp.save(state(1), checkpoint_id=tmp_path, no_dist=True)
    node.put(f"{key}/.metadata", (tmp_path / ".metadata").read_bytes())
    node.put(f"{key}-2/.metadata", pickle.dumps({"a": 1}))
    for name, why in ((key, "not saved by forebay"), (f"{key}-2", "something else")):
        with pytest.raises(dcp.api.CheckpointException, match=why):
            load(ours.StorageReader(f"forebay://data/{name}", endpoint=node.shm), state(0))


def test_a_checkpoint_is_demoted(node: Node, key: str) -> None:
    writer = ours.StorageWriter(
        f"forebay://data/{key}", demote=True, control=node.control, endpoint=node.shm
    )
    save(writer, state(1))
    control = forebay._forebay.Control(node.control)
    assert writer.demotion is not None
    while (job := control.job(writer.demotion))[0] in ("queued", "running"):
        pass
    assert job == ("done", None)
    for name in (f"{writer._save}.distcp", ".metadata"):
        assert control.get(f"data/{key}/{name}")["resident_bytes"] == 0
        assert (node.data / key / name).stat().st_size > 0
    reader = ours.StorageReader(f"forebay://data/{key}", endpoint=node.shm)
    assert torch.equal(load(reader, state(0))[".half"], state(1)["half"])


WHOLE = (97, 64)


def _whole() -> object:
    return torch.arange(97 * 64, dtype=torch.float32).reshape(WHOLE)


def _sharded(axis: int) -> object:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(_whole(), init_device_mesh("cpu", (2,)), [Shard(axis)])


def _rank(rank: int, url: str, endpoint: str, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    dcp.save(
        {"rows": _sharded(0), "columns": _sharded(1), "own": torch.ones(3)},
        storage_writer=ours.StorageWriter(url, endpoint=endpoint),
    )
    # Each rank of another division reads parts of what both have written.
    for axis in (0, 1):
        loaded = {"rows": _sharded(axis), "columns": _sharded(axis)}
        for tensor in loaded.values():
            tensor.to_local().zero_()
        dcp.load(loaded, storage_reader=ours.StorageReader(url, endpoint=endpoint))
        for tensor in loaded.values():
            assert torch.equal(tensor.full_tensor(), _whole())
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_divide_otherwise(node: Node, key: str, tmp_path: Path) -> None:
    url = f"forebay://data/{key}"
    arguments = (url, node.shm, str(tmp_path / "store"))
    multiprocessing.spawn(_rank, args=arguments, nprocs=2)
    reader = ours.StorageReader(url, endpoint=node.shm)
    loaded = load(reader, {name: torch.zeros(WHOLE) for name in ("rows", "columns")})
    assert all(torch.equal(tensor, _whole()) for tensor in loaded.values())
