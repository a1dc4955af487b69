"""Rounds of ours and a rival's, interleaved, and what is printed of them: as `compare` does."""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "target/release/forebay"


def arguments(description: str) -> argparse.Namespace:
    """What every case can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each side")
    parser.add_argument("--seconds", type=int, default=3, help="how long a round lasts")
    parser.add_argument("--forebay", type=Path, default=BINARY, help="the node's binary")
    parser.add_argument("--json", action="store_true", help="one object a line")
    return parser.parse_args()


def compare(
    case: str,
    told: argparse.Namespace,
    ours: Callable[[], float],
    rival: Callable[[], float],
    rival_name: str,
    unit: str,
    target: float,
) -> None:
    """Runs the pairs, every other one the other way round, and prints the verdict."""
    pairs = []
    for n in range(told.pairs):
        if n % 2 == 0:
            mine = ours()
            pairs.append((mine, rival()))
        else:
            its = rival()
            pairs.append((ours(), its))
    ratios = [mine / its for mine, its in pairs]
    verdict = {
        "case": case,
        "ours": median(mine for mine, _ in pairs),
        "rival": median(its for _, its in pairs),
        "rival_name": rival_name,
        "unit": unit,
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "runs": len(pairs),
        "target": target,
        "pass": median(ratios) >= target,
    }
    if told.json:
        print(json.dumps(verdict))
        return
    print(
        f"{case:<20} {'PASS' if verdict['pass'] else 'MISS'} ratio {verdict['ratio']:.3f} "
        f"(target {target}, {min(ratios):.3f} to {max(ratios):.3f} over {len(pairs)} pairs): "
        f"ours {verdict['ours']:.1f} {unit}, {rival_name} {verdict['rival']:.1f} {unit}"
    )


@contextmanager
def node(binary: Path, file_bytes: int) -> Iterator[dict[str, str]]:
    """A node with one promoted file, `data/file`: what it says of itself when it is ready, and its
    silo's place as `data`.
    """
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as home:
        data = Path(home, "data")
        data.mkdir()
        with open(data / "file", "wb") as file, open("/dev/urandom", "rb") as noise:
            for _ in range(0, file_bytes, 1 << 20):
                file.write(noise.read(1 << 20))
        config = Path(home, "forebay.toml")
        config.write_text(
            f'[node]\nstate_dir = "{home}/state"\nshards = 1\nlisten = "127.0.0.1:0"\n'
            f'metrics = "127.0.0.1:0"\n[tier]\nscrub_every = "off"\n'
            f'[silo.data]\nkind = "directory"\npath = "{data}"\nquiet_s = 0.0\n'
        )
        command = [str(binary), "serve", "--json", "--control", "127.0.0.1:0"]
        command += ["--tier-size", str(4 * file_bytes), "--config", str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                ready = json.loads(process.stdout.readline())
                run(binary, "--control", ready["control"], "promote", "data/file")
                yield ready | {"data": str(data)}
            finally:
                process.terminate()


def run(binary: Path, *words: str) -> str:
    """What the tool prints."""
    return subprocess.run([str(binary), *words], check=True, text=True, capture_output=True).stdout
