"""How many lines of each room of the bench the tests have run, from what `coverage combine` left.

make coverage
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

from coverage import Coverage


def rooms(report: dict) -> dict[str, tuple[int, int]]:
    """{room: (lines that were run, lines)} of coverage's report in JSON, and all of them last."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for file, told in sorted(report["files"].items()):
        path = Path(file)
        room = path.parent.as_posix() if len(path.parts) > 1 else path.name
        run, lines = told["summary"]["covered_lines"], told["summary"]["num_statements"]
        for name in (room, "all"):
            found[name] = (found[name][0] + run, found[name][1] + lines)
    return {name: found[name] for name in sorted(found, key=lambda name: (name == "all", name))}


def main() -> None:
    coverage = Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        coverage.json_report(outfile=str(path))
        report = json.loads(path.read_text(encoding="utf-8"))
    print(f"{'room':28} {'lines':>6} {'run':>7}")
    for name, (run, lines) in rooms(report).items():
        print(f"{name:28} {lines:6} {100 * run / max(lines, 1):5.0f} %")


if __name__ == "__main__":
    main()
