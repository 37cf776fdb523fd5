"""Where the book lives: one address, in every file that names it.

A clone knows its own address: GITHUB_REPOSITORY, which a workflow on GitHub sets; else the git remote
`origin`, if it is on GitHub; else what pyproject.toml says. tools/build_book.py writes that one into the
pages that it builds, so the book of a fork leads to the fork. The sources follow by one command:

    python tools/address.py                  # say which address this clone has
    python tools/address.py --write          # rewrite the sources for it
    python tools/address.py --write OWNER/NAME

Rewritten are the first cell of the notebooks, which installs the project in Colab, the buttons, the
citation, README.md, and pyproject.toml. tests/book/test_project.py holds all of them to pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "https://github.com/"
NAME = r"[\w.-]+/[\w.-]+"
# https://github.com/owner/name(.git), with a user or a token; git@github.com:owner/name.git; ssh://...
REMOTE = re.compile(
    rf"(?:https?://(?:[^@/]+@)?|ssh://(?:[^@/]+@)?|git://|[^@/]+@)github\.com[:/](?P<name>{NAME}?)"
    r"(?:\.git)?/?"
)
SET = re.compile(rf'^Repository = "{HOST}(?P<name>{NAME})"$', re.MULTILINE)
FILES = (
    "pyproject.toml",
    "packaging/ersm-core/pyproject.toml",
    "README.md",
    "packaging/ersm-core/README.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "_config.yml",
)


def written(root: Path) -> str:
    """The address in pyproject.toml, such as owner/name.

    Raises:
        SystemExit: there is none.
    """
    found = SET.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        sys.exit(f"pyproject.toml has no line 'Repository = \"{HOST}owner/name\"': add it")
    return found["name"]


def of_remote(url: str) -> str | None:
    """owner/name of a git remote on GitHub; None if it is somewhere else."""
    found = REMOTE.fullmatch(url.strip())
    return found["name"] if found else None


def home(root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The address of this clone, such as owner/name: of the workflow, the remote, or pyproject.toml.

    Args:
        root: the repository, with or without git.
        environment: where GITHUB_REPOSITORY is looked for.
    """
    name = environment.get("GITHUB_REPOSITORY", "")
    if re.fullmatch(NAME, name):
        return name
    command = ["git", "-C", str(root), "config", "--get", "remote.origin.url"]
    try:
        remote = of_remote(subprocess.run(command, capture_output=True, text=True).stdout)
    except OSError:  # no git
        remote = None
    return remote or written(root)


def moved(text: str, old: str, new: str) -> str:
    """A text whose links to one repository lead to another.

    Args:
        text: of any kind; a link is github.com/owner/name, or Colab's to it.
        old: owner/name.
        new: owner/name.
    """
    return re.sub(
        rf"(github\.com/|colab\.research\.google\.com/github/){re.escape(old)}(?![\w-])",
        lambda match: match[1] + new,
        text,
    )


def moved_cell(source: str, old: str, new: str) -> str:
    """The cell that clones and installs the project, for another address: the folder, too."""
    here, there = old.partition("/")[2], new.partition("/")[2]  # what git calls the folder
    source = re.sub(rf'\./{re.escape(here)}(?=[\s"[])', f"./{there}", moved(source, old, new))
    return source.replace(f'sys.path.insert(0, "{here}")', f'sys.path.insert(0, "{there}")')


def files(root: Path) -> Iterator[Path]:
    """All text files that may name the address, apart from notebooks."""
    yield from (root / name for name in FILES if (root / name).exists())
    yield from sorted((root / "book").rglob("*.md"))


def rewrite(root: Path, old: str, new: str) -> list[Path]:
    """Lead every link from one repository to another; nothing else of a file is touched.

    Args:
        root: the repository, or a stage that mirrors it.
        old: owner/name.
        new: owner/name.

    Returns:
        The files that have changed.
    """
    changed = []
    if old == new:
        return changed
    for path in files(root):
        text = path.read_text(encoding="utf-8")
        if (after := moved(text, old, new)) != text:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        before = [cell["source"] for cell in notebook["cells"]]
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            change = moved_cell if cell["cell_type"] == "code" else moved
            if (after := change(source, old, new)) != source:
                cell["source"] = after.splitlines(keepends=True)
        if [cell["source"] for cell in notebook["cells"]] != before:
            content = json.dumps(notebook, indent=1, ensure_ascii=False)
            path.write_text(content + "\n", encoding="utf-8")
            changed.append(path)
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="OWNER/NAME", help="default: this clone's")
    parser.add_argument("--write", action="store_true", help="rewrite the sources")
    args = parser.parse_args()
    if args.name and not re.fullmatch(NAME, args.name):
        parser.error(f"an address is OWNER/NAME, as in {HOST}OWNER/NAME, not {args.name!r}")
    old, new = written(ROOT), args.name or home(ROOT)
    if args.write:
        changed = rewrite(ROOT, old, new)
        print(*(path.relative_to(ROOT) for path in changed), sep="\n")
        print(
            f"{len(changed)} files lead to {HOST}{new}" if changed else f"all lead to {HOST}{new}"
        )
        return 0
    print(f"{HOST}{new}" + ("" if new == old else f"  (the sources say {HOST}{old}: --write)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
