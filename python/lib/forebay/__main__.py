"""``python -m forebay doctor``."""

import argparse
import json
import sys

from ._doctor import caps, report


def main() -> int:
    """Runs the command; the exit status says whether a node was reached."""
    parser = argparse.ArgumentParser(prog="python -m forebay", description=__doc__)
    parser.add_argument("command", choices=["doctor"], help="what this machine offers to a client")
    parser.add_argument("--endpoint", default="auto", help="where a node should be")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args()
    if arguments.json:
        found = caps(arguments.endpoint)
        print(json.dumps(found, indent=2))
        return 0 if found["node"]["ok"] else 1
    text, reached = report(arguments.endpoint)
    print(text)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
