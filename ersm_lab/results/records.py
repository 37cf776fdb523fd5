"""Records: one JSON file per run, from which every figure, table and quoted number is drawn.

A record says what was run (method, settings, data, seed, scale), what came out (metrics, curve,
seconds) and on what (machine, package versions, commit, hash of the code). Its shape is
`record.schema.json`; it lies at `<home>/data/results/<name>.json` and is replaced as a whole or not
at all.

Two folders matter and may differ: the *home* (`root=`) holds the records, the *code* folder
(`code=`) holds the sources that ran, `ersm_core.py` and `ersm_lab/`.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import difflib
import functools
import glob
import json
import math
import os
import re
import statistics
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jsonschema

from ersm_lab.common.files import write_whole
from ersm_lab.results.provenance import (
    code_folder,
    describe_device,
    describe_packages,
    git_state,
    provenance,
    source_hash,
)

__all__ = [
    "SCALES",
    "Difference",
    "RecordError",
    "RecordNotFound",
    "Summary",
    "code_folder",
    "compare",
    "default_of",
    "describe_device",
    "describe_packages",
    "find",
    "flatten",
    "git_state",
    "group",
    "home",
    "plain",
    "provenance",
    "read",
    "read_all",
    "results_dir",
    "settings_off",
    "source_hash",
    "summarise",
    "validated",
    "without_markup",
    "write",
]

SCALES = ("smoke", "laptop", "full")
TEST_IMAGES = 10_000  # of every data set
DEFLATED_FROM = 40_000  # bytes of answers


class RecordError(ValueError):
    """A record that is not valid, or that cannot be used as asked."""


class RecordNotFound(LookupError):
    """No record of that name; the message gives the nearest names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric, or one differing setting, of two records.

    Attributes:
        kind: `"metric"` or `"config"`.
        name: Flattened name, such as `mask.kept_fraction`.
        a: Value in the first record; None where it is null or missing.
        b: Value in the second record; None where it is null or missing.
        tolerance: What the first record allows for |b − a|; None where it states nothing.
        within: Whether the two agree; None for a metric without a tolerance.
    """

    kind: str
    name: str
    a: Any
    b: Any
    tolerance: float | None = None
    within: bool | None = None

    @property
    def difference(self) -> float | None:
        """b − a of a metric; None where one of the two is null or missing, and for settings."""
        if self.kind != "metric" or self.a is None or self.b is None:
            return None
        return self.b - self.a


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric over the seeds.

    Attributes:
        metric: Flattened name of the metric.
        mean: Mean over the seeds; None if every value is null.
        sd: Standard deviation with n − 1 in the denominator; None for fewer than two values.
        n: Number of values.
        values: Value by seed.
        nulls: Seeds whose value is null (not a number when it was recorded): left out, not hidden.
    """

    metric: str
    mean: float | None
    sd: float | None
    n: int
    values: dict[int, float]
    nulls: tuple[int, ...]


# ---------------------------------------------------------------------------------------- folders


def home() -> Path:
    """The folder that holds `data/`.

    Returns:
        `ERSM_HOME` if set, else the repository around this package (told by its pyproject.toml),
        else the current folder.
    """
    if os.environ.get("ERSM_HOME"):
        return Path(os.environ["ERSM_HOME"]).expanduser().resolve()
    return code_folder() if (code_folder() / "pyproject.toml").is_file() else Path.cwd()


def results_dir(root: str | Path | None = None) -> Path:
    """The folder of the records below `root` (default: `home()`); it need not exist."""
    return (Path(root) if root is not None else home()) / "data" / "results"


# ------------------------------------------------------------------------------------ write, read


def plain(value: Any) -> Any:
    """A value as JSON will hold it: dataclasses as dicts, tuples as lists, 0-d tensors as numbers.

    `record["config"] == plain(config)` tells whether a record was made with these settings.

    Raises:
        RecordError: A value JSON has no form for, or a number that is NaN or infinite.
    """
    return _plain(value, "value")


def validated(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it will be written; raises as `write`."""
    record = _plain(record, "")
    _validate(record, "the record")
    return {field: record[field] for field in _validator().schema["required"]}  # one order


def write(record: Mapping[str, Any], *, root: str | Path | None = None) -> Path:
    """Validates a record and writes it as a whole, replacing one of the same name.

    Args:
        record: What `record.schema.json` describes.
        root: The home to write in; default `home()`.

    Returns:
        The file written.

    Raises:
        RecordError: The record does not fit the schema, holds NaN or infinity (give null, and
            beside it the number of such values), or states a tolerance for no metric of its own.
    """
    record = validated(record)
    path = results_dir(root) / f"{record['name']}.json"
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return write_whole(path, f"{text}\n".encode())


def read(name_or_path: str | Path, *, root: str | Path | None = None) -> dict[str, Any]:
    """Reads and validates one record.

    Args:
        name_or_path: A name (`laptop/cifar10/ersm/seed0`), or a path: a `Path`, or ends in .json.
        root: The home a name is looked up in; default `home()`.

    Raises:
        RecordNotFound: There is none; the message gives the nearest names.
        RecordError: The file is not a valid record, or not the one its place says.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".json"):
        path = Path(name_or_path)
        if not path.is_file():
            raise RecordNotFound(f"no record at {path}")
        return _load(path)
    path = results_dir(root) / f"{name_or_path}.json"
    if not path.is_file():
        names = [_name(known, root) for known in _files(root)]
        nearest = difflib.get_close_matches(name_or_path, names, n=3, cutoff=0.5)
        hint = f"the nearest: {', '.join(nearest)}" if nearest else "make it with the verb run"
        raise RecordNotFound(f"no record named {name_or_path!r} in {results_dir(root)}; {hint}")
    return _load(path, name_or_path)


def find(name: str, *, root: str | Path | None = None) -> dict[str, Any] | None:
    """The record of a name, or None where there is none that is valid; arguments as of `read`."""
    path = results_dir(root) / f"{name}.json"
    try:
        return _load(path, name) if path.is_file() else None
    except RecordError:  # one of an older schema, say
        return None


def bits(answers: str, count: int) -> bytes:
    """A record's answers to so many images, eight of them a byte; many are deflated in the record."""
    content = base64.b64decode(answers)
    if len(content) < count / 8:
        with contextlib.suppress(zlib.error):
            return zlib.decompress(content)
    return content


def read_all(
    *,
    root: str | Path | None = None,
    scale: str | None = None,
    dataset: str | None = None,
    method: str | None = None,
) -> list[dict[str, Any]]:
    """Every record, or those of one scale, data set and method, in order of scale, name and seed.

    Raises:
        RecordError: A file under `data/results` is not a valid record.
    """
    parts = {"scale": scale, "dataset": dataset, "method": method}
    asked = {key: value for key, value in parts.items() if value is not None}
    records = [_load(path, _name(path, root)) for path in _files(root, **asked)]
    records = [r for r in records if all(r[key] == value for key, value in asked.items())]
    return sorted(records, key=lambda r: (SCALES.index(r["scale"]), group(r), r["seed"], r["name"]))


# ------------------------------------------------------------------------------- judge and compare


def group(record: Mapping[str, Any]) -> str:
    """What the seeds of one experiment share: the record's name without its last part."""
    return record["name"].rpartition("/")[0]


def settings_off(recorded: Any, today: Any, name: str = "") -> list[str]:
    """In what a record's settings are not those of today: ["train.mask_ramp was 0.1, is 0.2"].

    A field that came later counts as the same where it is at its default today: it changes nothing.

    Args:
        recorded: a record's config, or a part of it.
        today: the settings, with dataclasses as they are.
        name: of the part.
    """
    if not (dataclasses.is_dataclass(today) and isinstance(recorded, Mapping)):
        told = f"{name or 'config'} was {recorded!r}, is {plain(today)!r}"
        return [] if recorded == plain(today) else [told]
    off = []
    fields = {field.name: field for field in dataclasses.fields(today)}
    for part in dict.fromkeys([*fields, *recorded]):
        place = f"{name}.{part}".lstrip(".")
        if part not in fields:
            off.append(f"{place} was {recorded[part]!r}, is no setting any more")
        elif part in recorded:
            off += settings_off(recorded[part], getattr(today, part), place)
        elif getattr(today, part) != default_of(fields[part]):
            off.append(f"{place} was not there, is {plain(getattr(today, part))!r}")
    return off


def default_of(field: dataclasses.Field) -> Any:
    """The default of a dataclass's field; MISSING where it has none."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name: `{"mask": {"kept": [1, 2]}}` → mask.kept.0, mask.kept.1."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(values, Mapping):
        items = values.items()
    elif isinstance(values, (list, tuple)):
        items = enumerate(values)
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Compares two records: every metric, and the settings in which they differ.

    The tolerance is the one `a` states for the metric, else for the nearest group that holds it:
    `{"mask": 0.01}` covers mask.kept_fraction. A metric that is null or missing in one of the two
    only is not within any tolerance; a setting that differs never is. One that is null says what one
    that is not there says: nothing.
    """
    rows = []
    metrics_a, metrics_b = flatten(a["metrics"]), flatten(b["metrics"])
    for name in metrics_a | metrics_b:
        x, y = metrics_a.get(name), metrics_b.get(name)
        tolerance = _tolerance(a["tolerance"], name)
        if tolerance is None:
            within = None
        elif x is None or y is None:
            within = x is y and name in metrics_a and name in metrics_b
        else:
            within = abs(y - x) <= tolerance
        rows.append(
            Difference(kind="metric", name=name, a=x, b=y, tolerance=tolerance, within=within)
        )
    config_a, config_b = flatten(a["config"]), flatten(b["config"])
    for name in config_a | config_b:
        x, y = config_a.get(name), config_b.get(name)
        if x != y:
            rows.append(Difference(kind="config", name=name, a=x, b=y, within=False))
    return rows


def summarise(records: Iterable[Mapping[str, Any]], metric: str) -> Summary:
    """Mean and spread of one metric over the seeds of one experiment.

    Args:
        records: Records that differ in their seed.
        metric: Flattened name, such as `test_accuracy` or `mask.kept_fraction`.

    Raises:
        RecordError: No records, records of more than one experiment, the same seed twice, or a
            record without the metric.
    """
    records = list(records)
    if not records:
        raise RecordError(f"no records to summarise {metric!r} over")
    groups = sorted({group(record) for record in records})
    if len(groups) > 1:
        raise RecordError(f"summarise takes the seeds of one experiment, not: {', '.join(groups)}")
    found: dict[int, float | None] = {}
    for record in records:
        metrics = flatten(record["metrics"])
        if metric not in metrics:
            nearest = difflib.get_close_matches(metric, metrics, n=3, cutoff=0.3) or list(metrics)
            raise RecordError(
                f"{record['name']} has no metric {metric!r}; the nearest: {', '.join(nearest)}"
            )
        if record["seed"] in found:
            raise RecordError(f"{record['name']}: seed {record['seed']} is there twice")
        found[record["seed"]] = metrics[metric]
    values = {seed: value for seed, value in sorted(found.items()) if value is not None}
    return Summary(
        metric=metric,
        mean=statistics.fmean(values.values()) if values else None,
        sd=statistics.stdev(values.values()) if len(values) > 1 else None,
        n=len(values),
        values=values,
        nulls=tuple(seed for seed, value in sorted(found.items()) if value is None),
    )


def without_markup(text: str) -> str:
    """Text of a record for a Markdown page: no character of it is markup. Bars are left to the table."""
    return re.sub(r"([\\`*_{}\[\]<>#$!&^~])", r"\\\1", " ".join(text.split()))


# --------------------------------------------------------------------------------- the small print


def _plain(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}.{i}") for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(
            f"{where} is {value}: give null (None) and, beside it, how many values were not finite"
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    raise RecordError(f"{where} is a {type(value).__name__}, for which JSON has no form")


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = Path(__file__).with_name("record.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(schema))


def _validate(record: Any, what: str) -> None:
    error = jsonschema.exceptions.best_match(_validator().iter_errors(record))
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "top level"
        raise RecordError(f"{what} does not fit record.schema.json at {where}: {error.message}")
    metrics = flatten(record["metrics"])
    for name in record["tolerance"]:
        if not any(metric == name or metric.startswith(f"{name}.") for metric in metrics):
            raise RecordError(
                f"{what} states a tolerance for {name!r}, which is none of its metrics"
            )
    wrong = _contradiction(record, metrics)
    if wrong:
        raise RecordError(f"{what} contradicts itself: {wrong}")


def _contradiction(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """What in a record cannot be true at once; empty where nothing is found."""
    place = f"{record['scale']}/{record['dataset']}/{record['method']}/seed{record['seed']}"
    if record["name"] != place:
        return f"its fields say {place!r}, its name is {record['name']!r}"
    for name, value in metrics.items():
        counts = "accuracy" in name.split(".")[0] and "energy" not in name and "error" not in name
        if counts and isinstance(value, (int, float)) and not 0 <= value <= 1:
            return f"{name} is a share of images, and {value} is not between 0 and 1"
    for name, outcome in (record["probe"] or {}).items():
        if not all(type(value) in (int, float) for value in outcome["numbers"].values()):
            return f"{name} holds something else than numbers"
    if record["answers"] is None:
        return ""
    try:
        base64.b64decode(record["answers"])
    except ValueError as error:
        return f"its answers are no base64 ({error})"
    if "conditions" in record["config"]:
        shares = [_share_of(metrics, name) for name in record["config"]["conditions"]]
        count = (metrics.get("images") or 0) * len(shares)
    else:
        shares = [metrics.get("test_accuracy")]
        count = record["config"].get("test_images") or TEST_IMAGES
    answers = bits(record["answers"], count)
    if len(answers) != math.ceil(count / 8):
        return f"{len(answers)} bytes of answers are not those of {count} images"
    right = sum(byte.bit_count() for byte in answers)
    if None not in shares and abs(right - sum(shares) / len(shares) * count) > 0.5:
        return f"{right} answers of {count} are right, which is not its accuracy"
    return ""


def _share_of(metrics: Mapping[str, Any], condition: str) -> Any:
    """The accuracy under a condition, whose parts may be joined by "." or "/"."""
    return metrics.get(f"accuracy.{condition.replace('/', '.')}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number; null stands for it")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refuse(text)


def _load(path: Path, name: str | None = None) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except ValueError as error:
        raise RecordError(f"{path} is not JSON: {error}") from error
    _validate_text(text, str(path))
    if name is not None and record["name"] != name:
        raise RecordError(f"{path} holds the record {record['name']!r}: move it, or run it again")
    return record


@functools.lru_cache(maxsize=2048)  # a chapter reads the same records many times
def _validate_text(text: str, what: str) -> None:
    _validate(json.loads(text), what)


def _files(root: str | Path | None, **asked: str) -> list[Path]:
    """All records' files, or those whose folders say the scale, data set and method asked for."""
    folder = results_dir(root)
    if not asked:
        return sorted(folder.rglob("*.json"))
    parts = (asked.get(part) for part in ("scale", "dataset", "method"))
    pattern = "/".join("*" if part is None else glob.escape(part) for part in parts)
    return sorted(folder.glob(f"{pattern}/*.json"))


def _name(path: Path, root: str | Path | None) -> str:
    return path.relative_to(results_dir(root)).with_name(path.name[: -len(".json")]).as_posix()


def _tolerance(stated: Mapping[str, float], name: str) -> float | None:
    while name and name not in stated:
        name = name.rpartition(".")[0]
    return stated.get(name)
