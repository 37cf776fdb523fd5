"""Whether a record still stands: by its sources, else by what its probes give today."""

import copy
import json

import pytest

from ersm_lab.results import provenance, records, standing

THEN = {"training/1f": {"protocol": 1, "numbers": {"loss.1": 2.0, "norm.w": 0.5, "accuracy": 0.25}}}


@pytest.fixture
def record():
    """A record whose sources have changed since."""
    return {"probe": copy.deepcopy(THEN), "sources": {"ersm_core.py": "0"}, "source_hash": "1"}


def today(**numbers):
    found = copy.deepcopy(THEN)
    found["training/1f"]["numbers"] |= numbers
    return found


def test_sources_that_have_not_changed_are_enough():
    whole, hashes = provenance.source_hash(["ersm_lab/results/standing.py"])
    same = {"probe": None, "sources": hashes, "source_hash": whole}
    assert standing.of(same) == standing.Standing(state="current")


def test_numbers_that_agree_leave_it_current(record):
    assert standing.of(record, outcomes=today(**{"loss.1": 2.0005})).state == standing.CURRENT


def test_the_reason_names_the_number_and_by_how_much_it_moved(record):
    found = standing.of(record, outcomes=today(**{"loss.1": 2.5, "norm.w": 0.51}))
    assert found.state == standing.STALE
    assert "training/1f: loss.1 was 2, is 2.5 (+25 %), norm.w was 0.5, is 0.51 (+2 %)" in found.why


@pytest.mark.parametrize("now", [0.25 + 2 / 64, 0.25 - 2 / 64])
def test_one_image_more_or_less_is_rounding(record, now):
    assert standing.of(record, outcomes=today(accuracy=now)).state == standing.CURRENT
    assert standing.of(record, outcomes=today(accuracy=now + 0.1)).state == standing.STALE


def test_a_raised_protocol_makes_it_stale(record):
    raised = copy.deepcopy(THEN)
    raised["training/1f"]["protocol"] = 2
    found = standing.of(record, outcomes=raised)
    assert found.state == standing.STALE and "its protocol was 1, is 2" in found.why


def test_a_number_that_is_gone_or_new_counts(record):
    lost = copy.deepcopy(THEN)
    del lost["training/1f"]["numbers"]["norm.w"]
    assert "norm.w was 0.5, is not there" in standing.of(record, outcomes=lost).why
    assert "new was not there, is 1" in standing.of(record, outcomes=today(new=1.0)).why


def test_without_outcomes_of_todays_code_it_is_unverified(record):
    found = standing.of(record, outcomes={})
    assert found.state == standing.UNVERIFIED and "python -m ersm_lab probe" in found.why
    record["probe"] = None
    assert "run it again" in standing.of(record, outcomes={}).why


def test_data_that_are_not_at_hand_are_left_out(record):
    record["probe"]["data/cifar10"] = {"protocol": 1, "numbers": {"train.images": 45_000}}
    assert standing.of(record, outcomes=THEN).state == standing.CURRENT


def test_a_timing_is_of_its_day(record):
    record["probe"] = {}
    assert standing.of(record).state == standing.CURRENT


# ------------------------------------------------------------------------------------ on file


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ERSM_HOME", str(tmp_path))
    return tmp_path


def test_outcomes_count_only_for_the_code_that_gave_them(home, monkeypatch, record):
    assert standing.known() == {}
    standing.keep(THEN, provenance.code_hash())
    assert standing.known() == THEN and standing.of(record).state == standing.CURRENT
    monkeypatch.setattr(provenance, "code_hash", lambda: "another")
    assert standing.known() == {} and standing.of(record).state == standing.UNVERIFIED
    standing.keep(today(**{"loss.1": 3.0}), provenance.code_hash())
    assert standing.of(record).state == standing.STALE


def test_the_hash_of_the_code_is_of_what_probes_import(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "code_folder", lambda: tmp_path)
    (tmp_path / "lab").mkdir()
    files = {
        "lab/__init__.py": "",
        "lab/probes.py": "from lab import a\n\ndef f():\n    from .b import g\n    import torch\n",
        "lab/a.py": "import core\n",
        "lab/b.py": "from . import a\n",
        "lab/report.py": "x = 1\n",
        "core.py": "y = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = provenance.code_hash("lab/probes.py")
    (tmp_path / "lab/report.py").write_text("x = 2\n")  # nothing that is probed imports it
    assert provenance.code_hash("lab/probes.py") == before
    for name in ("core.py", "lab/b.py"):
        (tmp_path / name).write_text(files[name] + "z = 2\n")
        assert provenance.code_hash("lab/probes.py") != before
        (tmp_path / name).write_text(files[name])


def test_outcomes_of_the_same_code_are_added(home):
    standing.keep(THEN, provenance.code_hash())
    other = {"occlusion/2a": {"protocol": 1, "numbers": {"pass.0": 0.125}}}
    standing.keep(other, provenance.code_hash())
    assert standing.known() == THEN | other
    assert len(standing.outcomes_file().read_text().splitlines()) == 4  # one probe a line


def test_another_machine_changes_no_line(home):
    before = standing.keep(THEN, provenance.code_hash()).read_text()
    standing.keep(today(**{"loss.1": 2.0001}), provenance.code_hash())
    assert standing.outcomes_file().read_text() == before
    standing.keep(today(**{"loss.1": 2.0009}), provenance.code_hash())
    assert json.loads(standing.outcomes_file().read_text())["outcomes"] != THEN


def test_a_damaged_file_of_outcomes_is_as_none(home):
    standing.keep(THEN, provenance.code_hash()).write_text('{"code": ')
    assert standing.known() == {}
    standing.keep(THEN, provenance.code_hash())
    assert standing.known() == THEN


# ------------------------------------------------------------------------------------- settings


def test_settings_off_names_what_changed():
    from ersm_lab.training.loop import TrainSettings

    now = TrainSettings(epochs=4)
    then = records.plain(now)
    assert records.settings_off(then, now) == []
    assert records.settings_off(then | {"epochs": 3}, now) == ["epochs was 3, is 4"]
    nested = then | {"augment": then["augment"] | {"cutout": 8}}
    assert records.settings_off(nested, now) == ["augment.cutout was 8, is 0"]


def test_a_field_that_came_later_changes_nothing_at_its_default():
    from ersm_lab.training.loop import TrainSettings

    older = records.plain(TrainSettings(epochs=4))
    del older["ema_decay"]
    assert records.settings_off(older, TrainSettings(epochs=4)) == []
    changed = records.settings_off(older, TrainSettings(epochs=4, ema_decay=0.9))
    assert changed == ["ema_decay was not there, is 0.9"]
    assert records.settings_off(older | {"gone": 1}, TrainSettings(epochs=4)) == [
        "gone was 1, is no setting any more"
    ]
