"""Prints what `ci/lab/profile` counted: functions, by the instructions executed in them."""

import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from functools import cache
from pathlib import Path

# What is executed more often than this for each operation is a loop, or looking for work; what is
# executed less often is not of it.
OFTEN, RARELY = 20, 0.5


@cache
def symbols(path: str) -> tuple[list[int], list[str]]:
    """Where a program's functions begin, and their names; none of a library without symbols."""
    listed = subprocess.run(
        ["nm", "--demangle", "--defined-only", path], capture_output=True, text=True, check=False
    ).stdout
    lines = (line.split(" ", 2) for line in listed.splitlines())
    found = sorted((int(at, 16), name) for at, kind, name in lines if kind in "tTwWi")
    return [at for at, _ in found], [name for _, name in found]


def kernel(path: Path) -> tuple[list[int], list[str]]:
    """The same of the guest's kernel and its modules."""
    lines = (line.split(None, 2) for line in path.read_text().splitlines())
    found = sorted((int(at, 16), f"kernel: {name}") for at, _, name in lines)
    return [at for at, _ in found], [name for _, name in found]


def programs(maps: Path) -> list[tuple[int, int, int, str]]:
    """Where processes have what they execute: from, to, where its file begins, and the file."""
    places = []
    for process in maps.iterdir():
        bases: dict[str, int] = {}
        for line in process.read_text().splitlines():
            words = line.split(None, 5)
            begin, end = (int(word, 16) for word in words[0].split("-"))
            path = words[5] if len(words) > 5 else ""
            if path.startswith("/"):
                bases.setdefault(path, begin - int(words[2], 16))
            if "x" in words[1] and path:
                places.append((begin, end, bases.get(path, begin), path))
    return sorted(places)


def main() -> None:
    out, top, per = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    of_kernel = kernel(out / "kallsyms")
    places = programs(out / "maps")
    begins = [place[0] for place in places]

    def function(address: int) -> tuple[str, bool]:
        """The function of an address, and whether it begins there."""
        if address >> 47:
            at, names = of_kernel
            offset, file = address, ""
        else:
            index = bisect_right(begins, address) - 1
            if index < 0 or address >= places[index][1]:
                return "(unknown)", False
            _, _, base, path = places[index]
            file = f" [{Path(path).name}]"
            at, names = symbols(path) if path.startswith("/") else ([], [])
            offset = address - base
        index = bisect_right(at, offset) - 1
        if index < 0:
            return file.strip(), False
        return f"{names[index]}{file}", at[index] == offset

    blocks = []
    entered = 0
    for line in (out / "blocks").read_text().splitlines():
        address, instructions, *executed = line.split()
        name, is_entry = function(int(address, 16))
        counts = [int(count) for count in executed]
        if per and is_entry and name.split(" [")[0].endswith(per):
            entered += sum(counts)
        blocks.append((name, int(instructions), counts))
    if per and not entered:
        sys.exit(f"nothing entered a function whose name ends with {per}: see nm --demangle")
    each = entered or 1

    for cpu in range(len(blocks[0][2])):
        once, often = Counter[str](), Counter[str]()
        for name, instructions, counts in blocks:
            if per and counts[cpu] < RARELY * each:
                continue
            is_often = per and counts[cpu] > OFTEN * each
            (often if is_often else once)[name] += instructions * counts[cpu]
        for title, counted in (("", once), (", what is executed often", often)):
            total = sum(counted.values())
            if total == 0:
                continue
            of_user = total - sum(n for name, n in counted.items() if name.startswith("kernel: "))
            words = f"for each of {each}" if per else "instructions"
            of_which = f"{of_user / each:,.0f} of them in user mode"
            print(f"processor {cpu}{title}: {total / each:,.0f} {words}, {of_which}")
            for name, instructions in counted.most_common(top):
                print(f"{instructions / each:14,.1f}  {name[:140]}")


main()
