"""`py-fsspec`: `cat_ranges` of 1,000 ranges of 64 KiB, against s3fs on a loopback SeaweedFS."""

import http.client
import json
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from pairs import ROOT, arguments, compare, node

MIB = 1 << 20
RANGE = 64 << 10
RANGES = 1000
FILE_BYTES = 256 * MIB
TARGET = 3.0
NAMES = ("s3.port", "filer.port", "filer.port.grpc", "master.port", "master.port.grpc")
NAMES += ("volume.port", "volume.port.grpc", "s3.port.grpc")


@contextmanager
def s3() -> Iterator[Any]:
    """A file system over S3, with a bucket `data`."""
    weed = subprocess.run(
        [ROOT / "ci/seaweedfs"], check=True, text=True, capture_output=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as home:
        key = {"accessKey": "forebay", "secretKey": "forebay-secret"}
        identity = {"name": "forebay", "credentials": [key]}
        identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
        Path(home, "s3.json").write_text(json.dumps({"identities": [identity]}))
        ports = free_ports(len(NAMES))
        command = [weed, "server", f"-dir={home}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer"]
        command += ["-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={home}/s3.json"]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=40"]
        command += [f"-{name}={port}" for name, port in zip(NAMES, ports, strict=True)]
        with (
            open(Path(home, "log"), "w") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,
        ):
            try:
                make_bucket(ports[1])
                yield fsspec.filesystem(
                    "s3",
                    key="forebay",
                    secret="forebay-secret",
                    endpoint_url=f"http://127.0.0.1:{ports[0]}",
                    config_kwargs={"max_pool_connections": 64},
                )
            finally:
                process.terminate()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def make_bucket(filer: int) -> None:
    """Once the server takes requests."""
    end = time.monotonic() + 120
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", filer, timeout=5)
            connection.request("POST", "/buckets/data/")
            if connection.getresponse().status in (201, 409):
                return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def rate(fs: Any, seconds: int) -> float:
    """MB/s."""
    places = random.Random(1)
    done, begin = 0, time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        starts = [places.randrange(FILE_BYTES // RANGE) * RANGE for _ in range(RANGES)]
        ends = [start + RANGE for start in starts]
        got = fs.cat_ranges(["data/file"] * RANGES, starts, ends, on_error="raise")
        assert all(len(each) == RANGE for each in got)
        done += sum(map(len, got))
    return done / elapsed / 1e6


def main() -> None:
    told = arguments(__doc__)
    with node(told.forebay, FILE_BYTES) as ready, s3() as rival:
        ours = fsspec.filesystem(
            "forebay", endpoint=f"unix:{ready['socket']}", control=ready["control"]
        )
        with rival.open("data/file", "wb") as file:
            for start in range(0, FILE_BYTES, 16 * MIB):
                file.write(ours.cat_file("data/file", start, start + 16 * MIB))
        compare(
            "py-fsspec",
            told,
            lambda: rate(ours, told.seconds),
            lambda: rate(rival, told.seconds),
            "s3fs on SeaweedFS",
            "MB/s",
            TARGET,
        )


if __name__ == "__main__":
    main()
