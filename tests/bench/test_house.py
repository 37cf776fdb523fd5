"""The rooms of the bench: imports point downwards, and nothing looks into a chapter."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "ersm_lab"
FLOORS = (
    "common",
    "results",
    "images",
    "networks",
    "views",
    "evaluation",
    "suites",
    "training",
    "photographs",
    "milliseconds",
    "papers",
    "",
)
FLOORS += ("chapters", "exercises")  # "" is the folder itself


def imported(path: Path) -> set[str]:
    """Modules of the bench that a file imports, without the bench's name: "images.data"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = ("ersm_lab." if node.level else "") + (node.module or "")
            found |= {home, *(f"{home.rstrip('.')}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("ersm_lab.") for name in found if name.startswith("ersm_lab.")}


def floor(module: str) -> str:
    return module.partition(".")[0] if module.partition(".")[0] in FLOORS else ""


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_uses_itself_and_the_rooms_below_it(room):
    files = [*(LAB / room).glob("*.py")]
    assert len(files) > 1
    above = FLOORS[FLOORS.index(room) + 1 :]
    for path in files:
        assert not {name for name in imported(path) if floor(name) in above}, path.name


def test_the_method_knows_nothing_of_the_bench():
    for name in ("ersm_core.py", "ersm_attach.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "ersm_lab" not in {node.split(".")[0] for node in _roots(text)}


def _roots(text: str) -> set[str]:
    tree = ast.parse(text)
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return names | {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
