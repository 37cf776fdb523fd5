"""The Snakefile makes what is missing, goes on after a kill, and two jobs at once do no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
DENSE = "smoke/shapes/ablation-dense/seed0"

pytestmark = pytest.mark.skipif(
    not SNAKEMAKE.exists(), reason="Snakemake is not installed (it needs Python 3.11)"
)


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"ERSM_HOME": str(home), "OMP_NUM_THREADS": "1"}


def command(home: Path, *arguments: str) -> list[str]:
    place = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(home / "work")]
    return [str(SNAKEMAKE), *place, "--cores", "2", *arguments]


def snakemake(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        command(home, *arguments),
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return done.stdout + done.stderr


def record(home: Path, name: str) -> dict:
    return json.loads((home / "data/results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_whole_grid_can_be_planned(tmp_path):
    said = snakemake(tmp_path, "--dry-run", "--quiet", "rules", "--config", "scale=full")
    counts = dict(line.split()[:2] for line in said.splitlines() if len(line.split()) == 2)
    assert int(counts["train"]) > 100 and int(counts["judge"]) > 100


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


def test_a_job_that_was_killed_goes_on_and_gives_the_same_record(tmp_path):
    chosen = ["--config", "scale=smoke", "dataset=shapes", "methods=ablation-dense", "cards=false"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        command(killed, *chosen),
        env=environment(killed),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    resume = killed / "data/cache/training"
    end = time.monotonic() + 300
    while not [*resume.rglob("*.pt")] and time.monotonic() < end:  # an epoch is done
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "data/results" / f"{DENSE}.json").exists()

    snakemake(killed, "--unlock", *chosen)
    said = snakemake(killed, "--rerun-incomplete", *chosen)
    assert not [*resume.rglob("*.pt")] and "1 ran, 0 left, 0 failed" in said

    # The same without a kill, by two processes at once.
    run = [sys.executable, "-m", "ersm_lab", "run", DENSE]
    both = [subprocess.Popen(run, env=environment(whole), cwd=ROOT) for _ in range(2)]
    assert [p.wait(600) for p in both] == [0, 0]
    one, other = record(killed, DENSE), record(whole, DENSE)
    assert one["metrics"] == other["metrics"] and one["answers"] == other["answers"]
    assert one["config"] == other["config"] and len(one["curve"]) == len(other["curve"])

    # What is done is left; a record that is gone is made again, whatever the stamp says.
    run = f"-m ersm_lab run {DENSE}"
    assert run not in snakemake(killed, "--dry-run", *chosen)
    shutil.rmtree(killed / "data/results")
    assert run in snakemake(killed, "--dry-run", *chosen)
