"""`py-safetensors`: a file of tensors until it is resident in the CPU's memory, both sides cold.

Ours is resident on the node, whose tier is read past the page cache; `safetensors.torch.load_file`
reads the same file from the same file system, and it is not in the page cache before. Every tensor
is looked at once, since a mapped file is read no earlier. Needs torch and safetensors.
"""

import os
import time
from pathlib import Path

import torch
from forebay import safetensors as ours
from pairs import arguments, compare, node, run
from safetensors.torch import load_file, save_file

TENSORS = 64
TENSOR_BYTES = 4 << 20
TARGET = 1.0


def make(path: Path) -> None:
    """A model's weights."""
    generator = torch.Generator().manual_seed(1)
    shape = (TENSOR_BYTES // 4 // 1024, 1024)
    layers = range(TENSORS)
    save_file({f"layer.{n}": torch.randn(shape, generator=generator) for n in layers}, path)


def forget(path: Path) -> None:
    """Nothing of it is in the page cache after this."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def main() -> None:
    told = arguments(__doc__)
    with node(told.forebay, 2 * TENSORS * TENSOR_BYTES) as ready:
        path = Path(ready["data"], "model.safetensors")
        make(path)
        size = path.stat().st_size
        control = ["--control", ready["control"]]
        endpoint = f"unix:{ready['socket']}"

        def resident(tensors: dict[str, torch.Tensor], begin: float) -> float:
            """MB/s until every page was looked at."""
            for tensor in tensors.values():
                tensor.view(torch.uint8).reshape(-1)[::4096].sum()
            return size / (time.monotonic() - begin) / 1e6

        def ours_cold() -> float:
            begin = time.monotonic()
            url = "forebay://data/model.safetensors"
            return resident(ours.load_file(url, "pt", endpoint=endpoint), begin)

        def rival_cold() -> float:
            forget(path)
            begin = time.monotonic()
            return resident(load_file(path), begin)

        run(told.forebay, *control, "promote", "data/model.safetensors", "--durable")
        # Both sides have loaded their code.
        ours.load_file("forebay://data/model.safetensors", "pt", endpoint=endpoint)
        rival_cold()
        compare(
            "py-safetensors",
            told,
            ours_cold,
            rival_cold,
            "safetensors, same file system",
            "MB/s",
            TARGET,
        )


if __name__ == "__main__":
    main()
