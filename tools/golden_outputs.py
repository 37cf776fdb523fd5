"""Compare what the chapters show with what is frozen: every table, every printed line with a number.

tests/golden/tables.txt holds the tables of all chapters, tests/golden/printed.txt the printed lines.
Which chapter and which cell shows them does not matter, and in what order; each must be shown as
often as it is frozen, with the same caption, headings and rows. Figures are not frozen.

    python tools/golden_outputs.py                          # the stored chapters
    python tools/golden_outputs.py --write                  # freeze what they show: read the diff
    python tools/golden_outputs.py --records --notebooks _build/stage/notebooks   # as executed last

--records leaves out what is computed in the page, since its last digits depend on the processor: the
printed lines, and the tables that COMPUTED names.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections import Counter
from pathlib import Path

from bound_numbers import outputs

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden"
BETWEEN = {"tables.txt": "\n\n", "printed.txt": "\n"}  # between two entries of a file
# Lines that are not frozen, and why.
NOT_FROZEN = re.compile(
    r"^<Figure |\(\d+ KiB of HTML\)$"  # stand for a picture or a widget
    r"|: loaded; | s of training on "  # the seconds of a run, and where it was done
    r"|^Images: "  # which data there were
    r"|^\(\w+\): [A-Z]\w+\("  # a layer, as this version of torch prints it
)
# What rounding leaves of zero or of one differs from machine to machine.
ROUNDING = re.compile(r"\d(?:\.\d+)?e-(?:1[3-9]|2\d)|0\.9{9}\d+|1\.0{9}\d+")
# Tables that are computed in the page, by the beginnings of their entries: a network is trained or
# applied there, and the last digit depends on the processor. All others quote records, or count.
COMPUTED = (
    "= Mean mask at the end, by region",
    "= Agreement with 4 neighbours, before any training",
    "= One token, scaled",
    "= 16,384 tokens",
    "= What is left is the ε of the normalisation",
    "= Before any training",
    "= Pull on a common shift of all logits",
    "= Textured shapes, tiny network",
    "= Shares of the mask's variance",
    "= The grid against the prediction",
    "= Contrast left across the 5 % strongest",
    "= 100 images",
    "= Rank correlation of Grad-CAM",
    "= 250 images of cifar10",
    "= Without training: 200 validation images",
    "= 100 test images of cifar10",
    "= Maps that know nothing",
    "= 1,000 images",
    "= Seed by seed (3), 1,000 objects",
)


def shown(folder: Path) -> dict[str, list[str]]:
    """What the chapters of a folder show, as the entries of the frozen files, in their order."""
    tables, printed = [], []
    for path in sorted(folder.glob("*.ipynb")):
        for output in outputs(path).values():
            for caption, (header, rows) in zip(output.captions, output.tables, strict=True):
                lines = [f"= {caption or 'no caption'}"]
                lines += [" | ".join(" ".join(t.split()) for t in row) for row in [header, *rows]]
                tables.append("\n".join(lines))
            printed += [
                ROUNDING.sub("<rounding>", line.strip())
                for line in output.lines
                if re.search(r"\d", line) and not NOT_FROZEN.search(line.strip())
            ]
    return {"tables.txt": sorted(tables, key=_order), "printed.txt": sorted(printed, key=_order)}


def _order(entry: str) -> tuple[str, str]:
    """By the words, so that an entry whose numbers change keeps its place."""
    return re.sub(r"[+−-]?\d[\d,.]*", "#", entry), entry


def frozen(golden: Path = GOLDEN) -> dict[str, list[str]]:
    """The entries of the frozen files."""
    texts = {name: (golden / name).read_text(encoding="utf-8") for name in BETWEEN}
    return {name: text.rstrip("\n").split(BETWEEN[name]) for name, text in texts.items()}


def write(entries: dict[str, list[str]], golden: Path = GOLDEN) -> None:
    """Freeze entries."""
    golden.mkdir(parents=True, exist_ok=True)
    for name, between in BETWEEN.items():
        (golden / name).write_text(between.join(entries[name]) + "\n", encoding="utf-8")


def differences(
    old: dict[str, list[str]], new: dict[str, list[str]], *, live: bool = True
) -> list[str]:
    """The lines of a diff that holds each entry that differs in full: `-` frozen, `+` shown.

    Args:
        old, new: entries, by file.
        live: also what is computed in the page.
    """
    found = []
    for name in BETWEEN if live else ["tables.txt"]:
        before, now = (
            Counter(entry for entry in entries[name] if live or not entry.startswith(COMPUTED))
            for entries in (old, new)
        )
        gone, come = (
            BETWEEN[name].join(sorted(entries.elements(), key=_order)).splitlines()
            for entries in (before - now, now - before)
        )
        titles = (f"{name}, frozen", f"{name}, shown")
        found += difflib.unified_diff(gone, come, *titles, n=len(gone), lineterm="")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="the chapters")
    parser.add_argument("--records", action="store_true", help="only what is quoted from records")
    parser.add_argument("--write", action="store_true", help="freeze what they show")
    args = parser.parse_args()
    entries = shown(args.notebooks)
    if args.write:
        write(entries)
    found = differences(frozen(), entries, live=not args.records)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
