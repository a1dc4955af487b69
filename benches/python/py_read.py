"""`py-read`: reads of 1 MiB at depth 32 over shared memory, against `forebay bench`."""

import json
import random
import time
from collections import deque

import forebay
from pairs import arguments, compare, node, run

MIB = 1 << 20
DEPTH = 32
FILE_BYTES = 512 * MIB
TARGET = 0.9


def ours(endpoint: str, seconds: int) -> float:
    """MB/s of a loop in Python: the oldest read is waited for, and its buffer read into again."""
    with forebay.connect(endpoint, credits=DEPTH) as client, client.open("data/file") as file:
        places = random.Random(1)
        blocks = file.size // MIB

        def start(buffer: forebay.Buffer) -> tuple[forebay.Buffer, forebay.Future]:
            return buffer, file.read_into(buffer, places.randrange(blocks) * MIB)

        reads = deque(start(client.alloc(MIB)) for _ in range(DEPTH))
        done, begin = 0, time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            buffer, future = reads.popleft()
            done += future.result()
            reads.append(start(buffer))
        for _, future in reads:
            future.result()
        assert future.path == "shm-direct", future.path
        return done / elapsed / 1e6


def main() -> None:
    told = arguments(__doc__)
    with node(told.forebay, FILE_BYTES) as ready:
        endpoint = f"unix:{ready['socket']}"

        def rival() -> float:
            words = ["--json", "--control", ready["control"], "bench", "--socket", ready["socket"]]
            words += ["--file", "data/file", "--block-size", "1MiB", "--depth", str(DEPTH)]
            report = json.loads(run(told.forebay, *words, "--seconds", str(told.seconds)))
            return report["bytes_per_second"] / 1e6

        compare(
            "py-read",
            told,
            lambda: ours(endpoint, told.seconds),
            rival,
            "forebay bench, depth 32",
            "MB/s",
            TARGET,
        )


if __name__ == "__main__":
    main()
