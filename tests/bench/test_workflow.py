"""The Snakefile makes what is missing, and goes on after a kill."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
DENSE = "smoke/shapes/ablation-dense/seed0"

pytestmark = pytest.mark.skipif(
    not SNAKEMAKE.exists(), reason="Snakemake is not installed (it needs Python 3.11)"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The project in a folder whose name means something to shells and patterns; with few images and
    many epochs, so that a run takes seconds and can be killed in the middle."""
    folder = tmp_path_factory.mktemp("workflow") / "a [strange] plâce's"
    for part in ("ersm_lab", "workflow"):
        shutil.copytree(ROOT / part, folder / part)
    for part in ("ersm_core.py", "pyproject.toml"):
        shutil.copy2(ROOT / part, folder / part)
    methods = folder / "ersm_lab" / "training" / "methods.py"
    few = 'IMAGES["smoke"], SHAPES_EPOCHS["smoke"] = 128, 12'
    text, found = re.subn("(?m)^TOLERANCE = ", f"{few}\\n\\g<0>", methods.read_text())
    assert found == 1
    methods.write_text(text)
    with (folder / "ersm_lab" / "probes.py").open("a") as probes:  # a run takes its probe first
        probes.write("\nTRAIN_IMAGES, TEST_IMAGES = 64, 16\n")
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "01_one.ipynb").touch()
    return folder


def environment(place: Path, home: Path) -> dict[str, str]:
    own = {"ERSM_HOME": str(home), "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    return os.environ | own


def reproduce(place: Path, home: Path, *options: str, **settings) -> subprocess.Popen:
    """What `make reproduce` starts."""
    command = [sys.executable, str(place / "workflow" / "reproduce.py"), *options]
    return subprocess.Popen(command, env=environment(place, home), text=True, **settings)


def ended(place: Path, home: Path, *options: str) -> tuple[int, str]:
    """The exit status of a whole run, and what it said."""
    process = reproduce(place, home, *options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def record(home: Path, name: str) -> dict:
    return json.loads((home / "data/results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_whole_grid_can_be_planned(place, tmp_path):
    options = ["--dry-run", "--quiet", "rules", "--config", "scale=full", "dataset=shapes"]
    status, said = ended(place, tmp_path, *options)
    counts = dict(line.split()[:2] for line in said.splitlines() if len(line.split()) == 2)
    assert status == 0 and int(counts["train"]) > 100 and int(counts["judge"]) > 100


def test_every_command_may_run_in_any_folder(place, tmp_path):
    config = ["methods=ablation-dense", "dataset=shapes", "book=true"]
    status, said = ended(place, tmp_path, "--dry-run", "--config", *config)
    commands = re.findall(r"Shell command: (cd .*)|^ *(cd .*)", said, re.MULTILINE)
    words = [shlex.split(one or other) for one, other in commands]
    assert status == 0 and {word[1] for word in words} == {str(place)}
    (notebook,) = [word for word in words if "tools/execute_notebooks.py" in word]
    assert notebook[-1] == str(place / "notebooks" / "01_one.ipynb")
    assert any("tools/build_book.py" in word for word in words)


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_the_profiles_of_clusters_name_an_executor_and_settings_that_exist(profile):
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "workflow/profiles" / profile / "config.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    assert settings["executor"] == profile
    known = subprocess.run(
        [SNAKEMAKE, "--help"], capture_output=True, text=True, timeout=120
    ).stdout
    for name in settings:
        assert f"--{name}" in known or name.startswith("kubernetes-"), name


def test_a_home_that_cannot_be_written_is_named_with_the_way_out(place, tmp_path):
    (tmp_path / "file").touch()
    status, said = ended(place, tmp_path / "file")
    assert status == 1 and str(tmp_path / "file") in said
    assert said.endswith("Set ERSM_HOME to a folder that can be written.\n")


def test_what_was_killed_goes_on_and_gives_the_same_record(place, tmp_path):
    chosen = ["--config", "scale=smoke", "dataset=shapes", "methods=ablation-dense", "cards=false"]
    killed, whole = tmp_path / "killed [here]", tmp_path / "whole"
    stamp = killed / "_build/workflow" / f"{DENSE}.done"
    stamp.parent.mkdir(parents=True)
    stamp.touch()  # of a record that is gone: it is made again all the same
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = reproduce(place, killed, *chosen, start_new_session=True, **quiet)
    resume = killed / "data/cache/training"
    end = time.monotonic() + 300
    while not [*resume.rglob("*.pt")] and time.monotonic() < end:  # an epoch is done
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it does not end by itself
    status, said = ended(place, killed, *chosen)
    assert status == 1 and said.count("\n") == 1 and "let it end, or stop it first" in said
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "data/results" / f"{DENSE}.json").exists()

    status, said = ended(place, killed, *chosen)
    assert status == 0, said[-3_000:]
    assert not [*resume.rglob("*.pt")] and "1 ran, 0 left, 0 failed" in said

    # The same without a kill.
    run = [sys.executable, "-m", "ersm_lab", "run", DENSE]
    subprocess.run(run, env=environment(place, whole), cwd=place, timeout=600, check=True)
    one, other = record(killed, DENSE), record(whole, DENSE)
    assert one["metrics"] == other["metrics"] and one["answers"] == other["answers"]
    assert one["config"] == other["config"] and len(one["curve"]) == len(other["curve"])

    # What is done is left.
    status, said = ended(place, killed, "--dry-run", *chosen)
    assert status == 0 and stamp.exists() and f"-m ersm_lab run {DENSE}" not in said
