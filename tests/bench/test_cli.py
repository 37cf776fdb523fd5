"""The verbs of `python -m ersm_lab`, on an experiments module that takes no time."""

import errno
import io
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import ersm_lab
import ersm_lab.images
import ersm_lab.suites
import ersm_lab.training
from ersm_lab import pages
from ersm_lab.__main__ import main
from ersm_lab.results import provenance, records, standing


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: int = 1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    method: str
    dataset: str
    scale: str
    seed: int
    config: Config = Config()

    @property
    def name(self):
        return f"{self.scale}/{self.dataset}/{self.method}/seed{self.seed}"


class Lab:
    """What `experiments` and `methods` promise; `accuracy` and `broken` are the tests' levers."""

    def __init__(self):
        self.ran, self.accuracy, self.broken, self.tolerance = [], 0.5, {}, 0.01

    def experiments_of(self, scale, *, dataset="auto"):
        dataset = "shapes" if dataset == "auto" else dataset
        return [
            Experiment(method=method, dataset=dataset, scale=scale, seed=seed)
            for method in ("dense", "ersm")
            for seed in (0, 1)
        ]

    def find(self, name):
        for scale in records.SCALES:
            for dataset in ("shapes", "cifar10"):
                for experiment in self.experiments_of(scale, dataset=dataset):
                    if experiment.name == name:
                        return experiment
        raise KeyError(f"no experiment {name!r}; the nearest: smoke/shapes/ersm/seed0")

    def valid_record(self, experiment, *, root=None):
        try:
            record = records.read(experiment.name, root=root)
        except records.RecordNotFound:
            return None
        return None if self.why_not(experiment, record) else record

    def why_not(self, experiment, record):
        off = records.settings_off(record["config"], experiment.config)
        found = standing.of(record)
        return off[0] if off else found.why if found.state == standing.STALE else ""

    def run(self, experiment, *, root=None, maps=None, probe=None, progress=True):
        self.ran.append(experiment.name)
        if experiment.name in self.broken:
            raise self.broken[experiment.name]
        records.write(
            records.provenance(["ersm_lab/results/records.py"])
            | {
                "name": experiment.name,
                "method": experiment.method,
                "dataset": experiment.dataset,
                "scale": experiment.scale,
                "seed": experiment.seed,
                "config": experiment.config,
                "metrics": {"test_accuracy": self.accuracy + 0.1 * experiment.seed},
                "tolerance": {} if self.tolerance is None else {"test_accuracy": self.tolerance},
                "curve": [],
                "answers": None,
                "seconds": {"train": 1.5, "evaluate": 0.5},
                "probe": probe,
                "checkpoint": None,
            },
            root=root,
        )
        return records.read(experiment.name, root=root)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    fake = Lab()
    monkeypatch.setattr(ersm_lab.training, "experiments", fake, raising=False)
    monkeypatch.setattr(ersm_lab.training, "methods", fake, raising=False)

    def standings(found, *, outcomes=None):
        return [standing.of(record, outcomes=outcomes) for record in found]

    plan = types.SimpleNamespace(VERIFIED=("dense", "ersm"), standings=standings)
    monkeypatch.setattr(ersm_lab, "plan", plan, raising=False)
    probes = types.SimpleNamespace(taken=lambda *asked: PROBE)
    monkeypatch.setattr(ersm_lab, "probes", probes, raising=False)
    standing.keep(PROBE, provenance.code_hash())
    return fake


PROBE = {"training/1f": {"protocol": 1, "numbers": {"loss.1": 2.0}}}
OLD = {"training/1f": {"protocol": 1, "numbers": {"loss.1": 1.0}}}  # what it once gave


DENSE = ["smoke/shapes/dense/seed0", "smoke/shapes/dense/seed1"]
ERSM = ["smoke/shapes/ersm/seed0", "smoke/shapes/ersm/seed1"]


def spoil(name, **changes):
    records.write(records.read(name) | changes)


# -------------------------------------------------------------------------------------------- run


def test_run_runs_what_has_no_record_and_leaves_the_rest(lab, capsys):
    assert main(["run", ERSM[0]]) == 0
    assert main(["run"]) == 0
    assert lab.ran == [ERSM[0], *DENSE, ERSM[1]]
    out = capsys.readouterr().out
    assert f"[3/4] {ERSM[0]}: its record stands, left as it is" in out
    assert f"[4/4] {ERSM[1]}: no record, runs" in out
    assert "3 ran, 1 left, 0 failed" in out


def test_run_again_after_behaviour_or_settings_changed(lab, capsys):
    main(["run"])
    spoil(DENSE[0], source_hash="0" * 64, probe=OLD)
    spoil(DENSE[1], config={"epochs": 2})
    lab.ran.clear()
    capsys.readouterr()
    assert main(["run"]) == 0
    assert lab.ran == DENSE
    out = capsys.readouterr().out
    assert f"{DENSE[0]}: training/1f: loss.1 was 1, is 2 (+1e+02 %), runs" in out
    assert f"{DENSE[1]}: epochs was 2, is 1, runs" in out


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        (["--method", "ersm"], ERSM),
        (["--seed", "1"], [DENSE[1], ERSM[1]]),
        (["--method", "ersm", "dense", "--seed", "0"], [DENSE[0], ERSM[0]]),
        (["--scale", "laptop", "--dataset", "cifar10", "--method", "ersm", "--seed", "0"],
         ["laptop/cifar10/ersm/seed0"]),
        ([ERSM[1], DENSE[0]], [ERSM[1], DENSE[0]]),
    ],
)  # fmt: skip
def test_run_runs_what_is_asked(lab, arguments, ran):
    assert main(["run", *arguments]) == 0
    assert lab.ran == ran


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "esrm"], "no method 'esrm' at scale smoke; there are: ['dense', 'ersm']"),
        (["--seed", "7"], "no seed 7 at scale smoke; there are: [0, 1]"),
        (
            ["smoke/shapes/esrm/seed0"],
            "error: no experiment 'smoke/shapes/esrm/seed0'; the nearest",
        ),
        ([ERSM[0], "--scale", "laptop"], "not both"),
    ],
)
def test_run_says_what_is_wrong_with_what_is_asked(lab, capsys, arguments, message):
    assert main(["run", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert lab.ran == []


def test_run_force_runs_again(lab):
    main(["run", ERSM[0]])
    assert main(["run", ERSM[0], "--force"]) == 0
    assert lab.ran == [ERSM[0]] * 2


def test_run_dry_runs_nothing(lab, capsys, tmp_path):
    main(["run", ERSM[0]])
    lab.ran.clear()
    assert main(["run", "--dry-run"]) == 0
    assert lab.ran == []
    assert "3 would run, 1 would be left" in capsys.readouterr().out
    assert len(records.read_all()) == 1


def test_run_goes_on_after_a_failure_and_says_so_at_the_end(lab, capsys):
    lab.broken = {DENSE[1]: RuntimeError("out of memory")}
    assert main(["run"]) == 1
    assert lab.ran == [*DENSE, *ERSM]
    captured = capsys.readouterr()
    assert captured.out.endswith(
        f"3 ran, 0 left, 1 failed\nfailed: {DENSE[1]}: RuntimeError: out of memory\n"
    )
    assert "Traceback" in captured.err
    assert len(records.read_all()) == 3


def test_run_stops_when_interrupted(lab):
    lab.broken = {DENSE[1]: KeyboardInterrupt()}
    assert main(["run"]) == 130
    assert lab.ran == DENSE


# ------------------------------------------------------------------------------------------ judge


class Bench:
    """What `judging` and `suites.card` promise, without a network; `broken` is the tests' lever."""

    SUITES = ("occlusion", "attacks", "objects")

    def __init__(self):
        self.asked, self.networks, self.broken, self.accuracy = [], [], {}, 0.5

    def suites_of(self, dataset):
        return self.SUITES if dataset == "shapes" else self.SUITES[:2]

    def judgement_name(self, experiment, suite):
        place = f"{experiment.scale}/{experiment.dataset}"
        return f"{place}/{experiment.method}.{suite}/seed{experiment.seed}"

    def valid_judgement(self, experiment, suite):
        try:
            record = records.read(self.judgement_name(experiment, suite))
        except records.RecordNotFound:
            return None
        return record if standing.same_sources(record) else None

    def judge(self, experiment, suite, *, root=None, networks=None, probe=None, progress=True):
        name = self.judgement_name(experiment, suite)
        self.asked.append(name)
        self.networks.append(networks)
        if name in self.broken:
            raise self.broken[name]
        records.write(
            records.provenance(["ersm_lab/results/records.py"])
            | {
                "name": name,
                "method": f"{experiment.method}.{suite}",
                "dataset": experiment.dataset,
                "scale": experiment.scale,
                "seed": experiment.seed,
                "config": {"judged": experiment.name},
                "metrics": {"accuracy": {"clean": self.accuracy}},
                "tolerance": {"accuracy": 0.01},
                "curve": [],
                "answers": None,
                "seconds": {"train": 0, "judge": 2.5},
                "probe": probe,
                "checkpoint": None,
            },
            root=root,
        )
        return records.read(name, root=root)


@pytest.fixture
def bench(lab, monkeypatch):
    fake = Bench()
    monkeypatch.setattr(ersm_lab, "judging", fake, raising=False)
    monkeypatch.setattr(ersm_lab.suites, "card", fake, raising=False)
    return fake


def test_judge_asks_what_is_not_yet_recorded_and_leaves_the_rest(bench, capsys):
    assert main(["judge", ERSM[0], "--suites", "attacks"]) == 0
    assert main(["judge", ERSM[0]]) == 0
    places = [f"smoke/shapes/ersm.{suite}/seed0" for suite in ("attacks", "occlusion", "objects")]
    assert bench.asked == places
    out = capsys.readouterr().out
    assert "[2/3] smoke/shapes/ersm.attacks/seed0: its record stands, left" in out
    assert "[3/3] smoke/shapes/ersm.objects/seed0: 2.5 s" in out
    assert out.endswith("2 judged, 1 left, 0 failed\n")


def test_judge_takes_several_networks_and_suites_in_the_order_given(bench):
    names = [ERSM[1], "laptop/cifar10/dense/seed0"]
    assert main(["judge", *names, "--suites", "attacks,occlusion"]) == 0
    assert bench.asked == [
        "smoke/shapes/ersm.attacks/seed1",
        "smoke/shapes/ersm.occlusion/seed1",
        "laptop/cifar10/dense.attacks/seed0",
        "laptop/cifar10/dense.occlusion/seed0",
    ]


def test_judge_asks_a_data_set_only_what_it_can_answer(bench):
    assert main(["judge", "laptop/cifar10/dense/seed0"]) == 0
    assert [name.split(".")[1] for name in bench.asked] == ["occlusion/seed0", "attacks/seed0"]


def test_judge_asks_again_when_forced_or_stale(bench):
    arguments = ["judge", ERSM[0], "--suites", "attacks"]
    for more in ([], [], ["--force"]):
        assert main([*arguments, *more]) == 0
    assert len(bench.asked) == 2
    spoil("smoke/shapes/ersm.attacks/seed0", source_hash="0" * 64)
    assert main(arguments) == 0
    assert len(bench.asked) == 3


def test_judge_goes_on_after_a_failure_and_says_so_at_the_end(bench, capsys):
    place = "smoke/shapes/ersm.attacks/seed0"
    bench.broken = {place: records.RecordNotFound("no current record with a checkpoint")}
    assert main(["judge", ERSM[0]]) == 1
    assert len(bench.asked) == 3
    assert capsys.readouterr().out.endswith(
        f"2 judged, 0 left, 1 failed\nfailed: {place}: RecordNotFound: "
        "no current record with a checkpoint\n"
    )


def test_judge_refuses_unknown_suites_and_networks(bench, capsys):
    assert main(["judge", ERSM[0], "--suites", "occlusion,atacks"]) == 1
    assert "no suite 'atacks'; there are: occlusion, attacks, objects" in capsys.readouterr().err
    assert main(["judge", "smoke/shapes/esrm/seed0"]) == 1
    assert "no experiment 'smoke/shapes/esrm/seed0'" in capsys.readouterr().err
    assert bench.asked == []


def test_verify_asks_the_network_of_a_judgement_again(bench, capsys, tmp_path):
    place = "smoke/shapes/ersm.attacks/seed0"
    main(["judge", ERSM[0], "--suites", "attacks"])
    assert main(["verify", place]) == 0
    assert bench.networks == [None, tmp_path]  # the second from the home that has the network
    bench.accuracy = 0.6
    assert main(["verify", place]) == 1
    assert f"{place}: does not agree in accuracy.clean" in capsys.readouterr().out


# --------------------------------------------------------------------------------- list and compare


def test_list(lab, capsys):
    assert main(["list"]) == 0
    assert "no such records" in capsys.readouterr().out
    main(["run"])
    spoil(ERSM[0], source_hash="0" * 64, probe=OLD, git_commit="0123456789" * 4, git_dirty=True)
    spoil(ERSM[1], metrics={"loss": 1.0}, tolerance={}, git_commit=None, git_dirty=None)
    capsys.readouterr()
    assert main(["list", "--scale", "smoke", "--dataset", "shapes", "--method", "ersm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line
    ]
    assert header == ["record", "test_accuracy", "seconds", "state", "commit"]
    assert rows == [
        [ERSM[0], "0.5", "2", "stale", "01234567+"],
        [ERSM[1], "–", "2", "current", "–"],
    ]
    assert "1 current, 1 stale" in lines
    assert any(line.startswith(f"{ERSM[0]}: stale: training/1f: loss.1 was 1") for line in lines)


def test_probe_says_which_records_stand_and_which_number_moved(lab, capsys, monkeypatch):
    main(["run"])
    spoil(DENSE[1], probe=OLD)
    asked = []

    def take_all(need, *, jobs):
        asked.extend(need)
        return PROBE, {}

    fake = types.SimpleNamespace(take_all=take_all, of_record=lambda record: [record["name"]])
    monkeypatch.setattr(ersm_lab, "probes", fake)
    capsys.readouterr()
    assert main(["probe"]) == 1
    out = capsys.readouterr().out
    assert asked == [*DENSE, *ERSM] and "1 probes of 4 records: 3 current, 1 stale" in out
    assert f"{DENSE[1]}: stale: training/1f: loss.1 was 1, is 2" in out
    assert main(["probe", "ersm"]) == 0
    assert main(["probe", "none"]) == 1
    assert "no record has one of the names none" in capsys.readouterr().err


def test_compare(lab, capsys):
    main(["run"])
    spoil(ERSM[1], config={"epochs": 5})
    capsys.readouterr()
    assert main(["compare", ERSM[0], ERSM[1]]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert "| test_accuracy | 0.5 | 0.6 | 0.1 | 0.01 | NO |".split() in lines
    assert "| config: epochs | 1 | 5 | – | – | NO |".split() in lines


def test_compare_of_an_unknown_name(lab, capsys):
    main(["run", ERSM[0]])
    assert main(["compare", ERSM[0], "smoke/shapes/esrm/seed0"]) == 1
    assert f"the nearest: {ERSM[0]}" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- verify


def test_verify_agrees_and_leaves_the_record_alone(lab, capsys, tmp_path):
    main(["run", ERSM[0]])
    path = tmp_path / "data" / "results" / f"{ERSM[0]}.json"
    before = path.read_bytes(), path.stat().st_mtime_ns
    lab.accuracy += 0.005
    assert main(["verify", ERSM[0]]) == 0
    assert lab.ran == [ERSM[0]] * 2
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert f"{ERSM[0]}: agrees within its tolerance" in capsys.readouterr().out


def test_verify_that_does_not_agree(lab, capsys):
    main(["run", *ERSM])
    spoil(ERSM[1], metrics={"test_accuracy": 0.7})
    assert main(["verify", *ERSM, "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert f"{ERSM[0]}: agrees within its tolerance" in out
    assert f"{ERSM[1]}: does not agree in test_accuracy" in out


def test_verify_of_other_settings_does_not_agree(lab, capsys):
    main(["run", ERSM[0]])
    spoil(ERSM[0], config={"epochs": 9})
    assert main(["verify", ERSM[0]]) == 1
    assert "does not agree in epochs" in capsys.readouterr().out


def test_verify_says_when_the_machine_is_another(lab, capsys):
    main(["run", ERSM[0]])
    spoil(ERSM[0], device=records.read(ERSM[0])["device"] | {"name": "An abacus"})
    assert main(["verify", ERSM[0]]) == 0
    assert "recorded on another device: name An abacus -> " in capsys.readouterr().out


def test_verify_without_a_tolerance_verifies_nothing(lab, capsys):
    lab.tolerance = None
    main(["run", ERSM[0]])
    assert main(["verify", ERSM[0]]) == 1
    assert "states no tolerance" in capsys.readouterr().out


def test_verify_says_when_the_sources_are_others(lab, capsys):
    main(["run", ERSM[0]])
    spoil(ERSM[0], source_hash="0" * 64, sources={"ersm_lab/results/records.py": "0" * 64})
    assert main(["verify", ERSM[0]]) == 0
    assert "recorded with other sources: ersm_lab/results/records.py\n" in capsys.readouterr().out


def test_verify_takes_one_smoke_record_of_each_kind_of_method(lab):
    main(["run", "--scale", "laptop"])
    main(["run"])
    lab.ran.clear()
    assert main(["verify", "--jobs", "1"]) == 0
    assert lab.ran == [DENSE[0], ERSM[0]]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_verify_names_every_record_that_is_not_there(lab, capsys, jobs):
    assert main(["verify", "--jobs", jobs]) == 1
    lines = capsys.readouterr().out.splitlines()
    for line, name in zip(lines, (DENSE[0], ERSM[0]), strict=True):
        assert line.startswith(f"{name}: could not be run again: RecordNotFound: no record named")


def test_verify_goes_on_after_a_run_that_fails(lab, capsys):
    main(["run", *ERSM])
    lab.broken = {ERSM[0]: RuntimeError("out of memory")}
    assert main(["verify", "smoke/shapes/none/seed0", *ERSM, "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "none/seed0: could not be run again: RecordNotFound" in out
    assert f"{ERSM[0]}: could not be run again: RuntimeError: out of memory" in out
    assert f"{ERSM[1]}: agrees" in out


# ----------------------------------------------------------------------------------------- status


def test_status_page(lab, capsys, tmp_path):
    main(["run"])
    spoil(ERSM[0], source_hash="0" * 64, probe=OLD, git_commit="0123456789" * 4, git_dirty=False)
    device = records.read(ERSM[0])["device"] | {"name": "A|B <i>`c`", "memory_gib": None}
    spoil(ERSM[1], device=device)
    capsys.readouterr()
    assert main(["status"]) == 0
    assert "Records: 4, in 2 groups; 3 current, 1 stale." in capsys.readouterr().out
    page = tmp_path / "book" / "records.md"
    assert main(["records", "--write", str(page)]) == 0
    assert f"wrote {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "| smoke | shapes | ersm | 2 | 0.55 ± 0.071 | 1.5 |" in rows
    assert "Records: 4, in 2 groups; 3 current, 1 stale." in rows
    assert any(row.startswith(f"| `{ERSM[0]}` | 0.5 | 2 | ") for row in rows)
    assert any("| 01234567 | stale |" in row for row in rows)
    assert r"A\|B \<i\>\`c\` (cpu)" in text
    tables = [line for line in text.partition("## Over the seeds")[2].splitlines() if "|" in line]
    assert len(tables) == 2 + 2 + 2 + 4 + 2 + 2
    main(["records"])
    assert capsys.readouterr().out == text


def test_status_page_begins_with_the_verdict_on_every_claim(lab):
    from ersm_lab import ledger
    from ersm_lab.papers.claim import Finding

    def claim(key, *outcomes):
        findings = lambda **_: [Finding(outcome=outcome) for outcome in outcomes]  # noqa: E731
        told = "None." if key.startswith("C") else "An interval above zero."
        return types.SimpleNamespace(key=key, findings=findings, criterion=told)

    claims = [claim("A (a)", "open", "reproduced", "open"), claim("B 2", "not yet run")]
    claims.append(claim("C 1", "not yet run"))
    text = pages.status_page([], [], claims)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "| open, reproduced | [A (a)](#claim-a-a) |" in rows
    assert "| not yet run | [B 2](#claim-b-2) |" in rows
    assert "| no criterion | [C 1](#claim-c-1) |" in rows
    page = ledger.page()
    assert all(f"(claim-{key})=" in page for key in ("ersm-a", "isvs-4"))


def test_status_page_has_the_minutes_of_the_notebooks_by_device(lab, capsys):
    main(["run", "--method", "ersm", "--seed", "0"])
    own = records.read(ERSM[0])
    for kind, seconds in (("cpu", 90.0), ("cuda", 12.0)):
        name = f"laptop/cifar10/notebooks-{kind}/seed0"
        told = {"scale": "laptop", "dataset": "cifar10", "tolerance": {}, "name": name}
        metrics = {"01_quickstart": {"seconds": seconds, "threads": 2}}
        device = own["device"] | {"type": kind, "name": f"A {kind}"}
        told |= {"method": f"notebooks-{kind}", "metrics": metrics, "device": device}
        records.write(own | told)
    capsys.readouterr()
    assert main(["status"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "| 01_quickstart | 1.5 | 2 | laptop | cifar10 | A cpu (cpu) |" in rows
    assert "| 01_quickstart | 0.2 | 2 | laptop | cifar10 | A cuda (cuda) |" in rows


def test_the_ledger_of_claims_is_a_page_too(lab, capsys, tmp_path):
    page = tmp_path / "book" / "claims.md"
    assert main(["claims", "--write", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# The ledger of claims") and "not yet run" in text
    capsys.readouterr()
    main(["claims"])
    assert capsys.readouterr().out == text


def test_status_page_without_records_and_without_the_metric(lab, capsys):
    assert main(["status"]) == 0
    assert "There are no records yet." in capsys.readouterr().out
    main(["run", ERSM[0]])
    spoil(ERSM[0], metrics={"loss": 1.0}, tolerance={})
    capsys.readouterr()
    assert main(["records"]) == 0
    assert "| – " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- data


class NotFound(FileNotFoundError):
    pass


def shelf(found, source):
    def obtain(name):
        if source is None:
            raise NotFound(f"{name} could not be downloaded: set ERSM_DATA_DIR")
        return source

    return types.SimpleNamespace(locate=lambda name: found, obtain=obtain, DataNotFound=NotFound)


@pytest.mark.parametrize(
    ("found", "source", "said"),
    [
        ("here", None, ["cifar10: found in here"]),
        (None, "there", ["cifar10: downloaded to there"]),
        (None, None, ["could not be downloaded: set ERSM_DATA_DIR", "Textured shapes"]),
    ],
)
def test_data_is_found_downloaded_or_replaced(monkeypatch, capsys, found, source, said):
    monkeypatch.setattr(ersm_lab.images, "data", shelf(found, source), raising=False)
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in said)


# -------------------------------------------------------------------------------------- all verbs


def test_a_broken_record_is_named(lab, capsys, tmp_path):
    main(["run", ERSM[0]])
    path = tmp_path / "data" / "results" / f"{ERSM[0]}.json"
    path.write_text("{")
    assert main(["list"]) == 1
    assert f"error: {path} is not JSON" in capsys.readouterr().err


def said(*arguments, **variables):
    """A process of `python -m ersm_lab`, which writes to two pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "ersm_lab", *arguments],
        cwd=Path(ersm_lab.__file__).parents[1],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "arguments", [["list"], ["run", "--dry-run", "--dataset", "shapes", "--method", "dense"]]
)
def test_an_output_that_nobody_reads_ends_without_a_traceback(arguments, tmp_path):
    process = said(*arguments, ERSM_HOME=str(tmp_path), PYTHONUNBUFFERED="1")
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == b""


def test_a_terminal_that_knows_ascii_only_shows_a_question_mark(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(records, "read_all", lambda **_: [])
    monkeypatch.setattr(records, "results_dir", lambda: "données ±")
    assert main(["list"]) == 0
    assert shown.getvalue() == b"no such records in donn?es ?\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_where_nothing_can_be_written_the_error_names_the_way_out(monkeypatch, capsys, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "/somewhere/data")

    monkeypatch.setattr(records, "read_all", refuse)
    assert main(["list"]) == 1
    err = capsys.readouterr().err
    assert "/somewhere/data" in err and "ERSM_HOME names another folder" in err


def test_no_verb_and_unknown_verb_show_the_usage(capsys):
    for arguments in ([], ["fly"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: python -m ersm_lab" in capsys.readouterr().err
