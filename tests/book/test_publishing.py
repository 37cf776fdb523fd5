"""What a push publishes: the workflows are valid and call the Makefile; the wheel stands alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def run(*command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


# ------------------------------------------------------------------------------------- workflows


def check(*paths: Path) -> subprocess.CompletedProcess:
    """Whether files are workflows of GitHub, by the schema that comes with the checker."""
    schema = ("--builtin-schema", "vendor.github-workflows")
    return run(sys.executable, "-m", "check_jsonschema", *schema, *paths)


def test_the_workflows_are_valid():
    told = check(*WORKFLOWS)
    assert WORKFLOWS and told.returncode == 0, told.stdout + told.stderr


def test_a_workflow_with_a_misspelt_key_is_found(tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs-in:"))
    assert check(wrong).returncode != 0


def steps(path: Path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_does_its_work_by_targets_of_the_makefile(path):
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for step in steps(path):
        for line in step.get("run", "").splitlines():
            called = re.fullmatch(r"make(?: [A-Z]+=\S+)* ([a-z]+)", line)
            assert (called and called[1] in targets) or line.startswith("gh release"), line


def test_both_ends_of_the_python_versions_are_tested():
    (tests,) = (path for path in WORKFLOWS if path.stem == "tests")
    matrix = yaml.safe_load(tests.read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert {"3.10", "3.13"} <= set(matrix["python"])


# ----------------------------------------------------------------------------------------- wheel

ALONE = """
import importlib.util, json, sys
sys.path[:0] = {paths!r}
import torch, torch.nn.functional as F
from ersm_attach import attach_energy_mask
from ersm_core import energy_loss, energy_states
torch.manual_seed(0)
model = torch.nn.Sequential()
model.add_module("stem", torch.nn.Conv2d(3, 8, 3, padding=1))
model.add_module("pool", torch.nn.AdaptiveAvgPool2d(1))
model.add_module("flat", torch.nn.Flatten())
model.add_module("head", torch.nn.Linear(8, 4))
model = attach_energy_mask(model, "stem", preset="stable")
loss = F.cross_entropy(model(torch.randn(2, 3, 6, 6)), torch.tensor([0, 1])) + energy_loss(model)
loss.backward()
mask = energy_states(model)["stem"].mask
print(json.dumps({{
    "lab": importlib.util.find_spec("ersm_lab") is not None,
    "from": sys.modules["ersm_core"].__file__,
    "loss": loss.item(), "mask": list(mask.shape),
}}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    told = run(*build, "--wheel-dir", folder, ROOT / "packaging" / "ersm-core")
    assert told.returncode == 0, told.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_the_two_files_and_their_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for module in ("ersm_core", "ersm_attach"):
            source = (ROOT / f"{module}.py").read_bytes()
            assert archive.read(f"{module}.py") == source
            assert archive.read(f"{module}-stubs/__init__.pyi") == source
        others = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    assert len(others) == 4
    assert [line for line in lines if line.startswith("Requires-Dist")] == [
        "Requires-Dist: torch>=2.4"
    ]
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"Version: {version}" in lines
    assert "attach_energy_mask(model" in "\n".join(lines)  # the three-line use is its README


def test_the_wheel_runs_where_there_is_torch_and_no_bench(wheel, tmp_path):
    """-I and -S: neither this folder nor the environment; its torch is put on the path by hand."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    told = run(*install, "--target", tmp_path / "site", wheel)
    assert told.returncode == 0, told.stderr
    site = Path(torch.__file__).parent.parent
    code = ALONE.format(paths=[str(tmp_path / "site"), str(site)])
    told = run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    said = json.loads(told.stdout)
    assert not said["lab"] and said["from"].startswith(str(tmp_path))
    assert said["mask"] == [2, 1, 6, 6] and said["loss"] > 0
