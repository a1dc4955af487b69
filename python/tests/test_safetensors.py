"""Tensors, compared with what the safetensors library makes of the same file."""

import json
from pathlib import Path

import forebay
import forebay.safetensors as ours
import numpy as np
import pytest
import safetensors.numpy as theirs
from conftest import Node, noise

DTYPES = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    made = {}
    for n, dtype in enumerate(DTYPES):
        made[f"layer.{n}.weight"] = random.integers(0, 2, (n + 1, 1000)).astype(dtype)
    made["large"] = random.standard_normal((3, 1 << 20)).astype("f4")
    made["scalar"] = np.array(3.5, "f8")
    made["empty"] = np.zeros((0, 5), "f4")
    return made


@pytest.fixture
def local(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "model.safetensors"
    theirs.save_file(tensors, path, metadata={"made": "here"})
    return path


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
def test_every_tensor_is_the_same(node: Node, local: Path, key: str, fabric: str) -> None:
    name = node.put(f"{key}.safetensors", local.read_bytes())
    loaded = ours.load_file(f"forebay://{name}", endpoint=getattr(node, fabric))
    expected = theirs.load_file(local)
    assert loaded.keys() == expected.keys()
    for tensor, array in expected.items():
        assert loaded[tensor].dtype == array.dtype, tensor
        assert loaded[tensor].shape == array.shape, tensor
        np.testing.assert_array_equal(loaded[tensor], array, tensor)
        assert loaded[tensor].flags.writeable


def test_one_at_a_time(node: Node, local: Path, key: str) -> None:
    name = node.put(f"{key}.safetensors", local.read_bytes())
    with (
        ours.safe_open(f"forebay://{name}", endpoint=node.shm) as file,
        theirs.safe_open(local, framework="numpy") as expected,
    ):
        assert file.keys() == sorted(expected.keys())
        assert file.metadata() == {"made": "here"}
        np.testing.assert_array_equal(file.get_tensor("large"), expected.get_tensor("large"))
        with pytest.raises(KeyError, match="no tensor 'none'"):
            file.get_tensor("none")
    with pytest.raises(forebay.Unsupported, match="framework"):
        ours.safe_open(f"forebay://{name}", framework="tf", endpoint=node.shm)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | changes


@pytest.mark.parametrize(
    ("head", "data"),
    [
        ({"a": entry()}, b"123"),
        ({"a": entry()}, b"12345"),
        ({"a": entry(shape=[5])}, b"1234"),
        ({"a": entry(data_offsets=[1, 5])}, b"12345"),
        ({"a": entry(data_offsets=[4, 0])}, b"1234"),
        ({"a": entry(shape=[-2, -2])}, b"1234"),
        ({"a": entry(shape=[True, 4])}, b"1234"),
        ({"a": entry(), "b": entry()}, b"1234"),
        ({"a": 7}, b""),
        ([], b""),
    ],
)
def test_unsound_files_are_refused(node: Node, key: str, head: object, data: bytes) -> None:
    text = json.dumps(head).encode()
    content = len(text).to_bytes(8, "little") + text + data
    name = node.put(key, content)
    with pytest.raises(forebay.DataLoss, match="no sound file"):
        ours.load_file(name, endpoint=node.shm)


@pytest.mark.parametrize(
    "content",
    [b"x", b"\xff" * 8, noise(100), bytes(8) + b"{"],
    ids=["short", "long head", "noise", "no head"],
)
def test_other_files_are_refused(node: Node, key: str, content: bytes) -> None:
    name = node.put(key, content)
    with pytest.raises(forebay.DataLoss, match="no sound file"):
        ours.load_file(name, endpoint=node.shm)


def test_types_that_numpy_lacks(node: Node, key: str) -> None:
    head = json.dumps({"a": entry(dtype="BF16", shape=[2])}).encode()
    name = node.put(key, len(head).to_bytes(8, "little") + head + b"1234")
    try:
        import ml_dtypes
    except ImportError:
        with pytest.raises(forebay.Unsupported, match="ml_dtypes"):
            ours.load_file(name, endpoint=node.shm)
    else:
        assert ours.load_file(name, endpoint=node.shm)["a"].dtype == ml_dtypes.bfloat16
