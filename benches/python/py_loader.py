"""`py-loader`: samples of tar shards, against WebDataset over the same shards as local files.

Both decode alike, a label as a number while the rest stays bytes, in one process without workers.
The node has the shards on its tier, and WebDataset's are in the page cache. Needs torch and
webdataset.
"""

import io
import random
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import webdataset
from forebay.torch import ShardDataset
from pairs import arguments, compare, node, run

SHARDS = 8
SAMPLES = 512
SAMPLE_BYTES = 64 << 10
TARGET = 1.0


def make(folder: Path) -> list[str]:
    """Shards of samples as large as small pictures."""
    random_ = random.Random(1)
    names = []
    for shard in range(SHARDS):
        names.append(f"{shard:03}.tar")
        with tarfile.open(folder / names[-1], "w") as tar:
            for n in range(SAMPLES):
                for extension, content in (
                    ("jpg", random_.randbytes(SAMPLE_BYTES)),
                    ("cls", str(n).encode()),
                ):
                    info = tarfile.TarInfo(f"{shard:03}-{n:06}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return names


def rate(samples: Callable[[], Iterable[Any]], seconds: int) -> float:
    """Samples a second, over whole epochs."""
    done, begin = 0, time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        for sample in samples():
            assert len(sample["jpg"]) == SAMPLE_BYTES
            done += isinstance(sample["cls"], int)
    assert done % (SHARDS * SAMPLES) == 0, done
    return done / elapsed


def main() -> None:
    told = arguments(__doc__)
    with node(told.forebay, SHARDS * SAMPLES * (SAMPLE_BYTES + 4096)) as ready:
        folder = Path(ready["data"])
        names = make(folder)
        run(told.forebay, "--control", ready["control"], "promote", *(f"data/{n}" for n in names))
        ours = ShardDataset(
            [f"forebay://data/{name}" for name in names],
            endpoint=f"unix:{ready['socket']}",
            decode={"cls": int},
        )
        rival = webdataset.WebDataset([str(folder / name) for name in names], shardshuffle=False)
        rival = rival.map_dict(cls=int, handler=webdataset.reraise_exception)
        compare(
            "py-loader",
            told,
            lambda: rate(lambda: ours, told.seconds),
            lambda: rate(lambda: rival, told.seconds),
            "WebDataset, local files",
            "samples/s",
            TARGET,
        )


if __name__ == "__main__":
    main()
