"""Downloads from a server on this machine that fails in every way that servers have."""

import hashlib
import http.server
import io
import random
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ersm_lab.images.download import CHUNK, Archive, fetch_archive

ROOT = Path(__file__).resolve().parents[2]


def pack(hello=b"hello"):
    """The bytes of a .tar.gz that does not fit into one read."""
    file, noise = io.BytesIO(), random.Random(0).randbytes(2 * CHUNK + 1_000)
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in (("tiny/hello.txt", hello), ("tiny/noise.bin", noise)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


CONTENT = pack()


class Source(http.server.BaseHTTPRequestHandler):
    """Answers with its server's `content`, or in the way of the next of its server's `faults`."""

    def do_GET(self):
        server = self.server
        server.asked += 1
        fault = server.faults.pop(0) if server.faults else "none"
        content, half = server.content, len(server.content) // 2
        if fault == "babble":
            self.wfile.write(b"this is no answer\r\n\r\n")
        elif fault.startswith("busy"):
            self.send_response(503)
            self.send_header("Retry-After", fault.split()[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "missing":
            self.send_error(404)
        elif fault == "trickle":
            self.answer(len(content))
            while not server.ended.wait(0.05):
                self.wfile.write(b"x")
        elif fault == "silent":
            self.answer(len(content))
            server.ended.wait(60)
        elif fault == "cut":
            self.answer(len(content))
            self.wfile.write(content[:half])
        elif fault == "reset":
            self.answer(len(content))
            self.wfile.write(content[:half])
            now = struct.pack("ii", 1, 0)  # a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            self.connection.close()
        else:
            self.answer({"length": "abc", "negative": -5}.get(fault, len(content)))
            self.wfile.write(content)

    def answer(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def handle(self):
        try:
            super().handle()
        except OSError:  # the client has gone
            self.close_connection = True

    def finish(self):
        try:
            super().finish()
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Starts a source: serve(fault, ...) -> server with `.url` and how often it was `.asked`."""
    with ExitStack() as stack:

        def start(*faults, content=CONTENT):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Source)
            server.content, server.faults, server.asked = content, [*faults], 0
            server.ended = threading.Event()
            server.url = f"http://127.0.0.1:{server.server_port}/tiny.tar.gz"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            stack.callback(server.ended.set)
            return server

        yield start


@pytest.fixture
def dead():
    """The address of a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}/tiny.tar.gz"  # bound, but not listening


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds between one try and the next, which pass at once."""
    asked, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: (asked.append(s), sleep(min(s, 0.01))))
    return asked


def tiny(*urls, content=CONTENT):
    return Archive(file="tiny.tar.gz", md5=hashlib.md5(content).hexdigest(), urls=urls)


def fetch(target, *urls, **settings):
    return fetch_archive(tiny(*urls), target, progress=False, **{"timeout": 10} | settings)


def assert_complete(target):
    """Archive and content are there, and nothing of the way to them."""
    assert (target / "tiny.tar.gz").read_bytes() == CONTENT
    assert sorted(p.name for p in (target / "tiny").iterdir()) == ["hello.txt", "noise.bin"]
    assert (target / "tiny" / "hello.txt").read_bytes() == b"hello"
    assert {p.name for p in target.iterdir()} <= {"tiny", "tiny.tar.gz", ".tiny.tar.gz.lock"}


# --- one source ------------------------------------------------------------------------------------


def test_an_archive_is_downloaded_checked_and_unpacked(serve, tmp_path):
    source, second = serve(), serve()
    target = tmp_path / "not" / "yet"
    assert fetch(target, source.url, second.url) == target
    assert_complete(target)
    assert source.asked == 1 and second.asked == 0


def test_a_complete_archive_is_not_fetched_again(serve, tmp_path):
    source = serve()
    (tmp_path / "tiny.tar.gz").write_bytes(CONTENT)
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert source.asked == 0


def test_a_damaged_archive_is_fetched_again(serve, tmp_path):
    source = serve()
    (tmp_path / "tiny.tar.gz").write_bytes(CONTENT[:-1])
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert source.asked == 1


@pytest.mark.parametrize("fault", ["reset", "cut", "babble", "length", "negative"])
def test_the_only_source_may_fail_twice(serve, tmp_path, fault):
    source = serve(fault, fault)
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)


@pytest.mark.parametrize(("said", "waited"), [(3, 3), (3_600, 10)])
def test_a_busy_source_is_asked_again_when_it_says_but_not_in_an_hour(
    serve, tmp_path, waits, said, waited
):
    source = serve(f"busy {said}", f"busy {said}")
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert waits == [waited, waited]


def test_what_is_not_there_is_not_asked_for_again(serve, tmp_path):
    source = serve("missing")
    with pytest.raises(OSError, match="404"):
        fetch(tmp_path, source.url)
    assert source.asked == 1


@pytest.mark.parametrize(
    ("fault", "settings", "said"),
    [("trickle", {"patience": 0.5}, "slow"), ("silent", {"timeout": 0.2}, "timed out")],
)
def test_a_source_that_sends_next_to_nothing_is_given_up(serve, tmp_path, fault, settings, said):
    source = serve(*[fault] * 9)
    with pytest.raises(OSError, match=said):
        fetch(tmp_path, source.url, **settings)
    assert [p.name for p in tmp_path.glob("tiny*")] == []


# --- several sources -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["busy 1", "missing", "reset", "cut", "babble", "trickle"])
def test_after_a_source_that_fails_the_next_is_asked(serve, tmp_path, fault):
    first, second = serve(*[fault] * 99), serve()
    fetch(tmp_path, first.url, second.url, patience=0.3)
    assert_complete(tmp_path)
    assert first.asked >= 1 and second.asked == 1


def test_after_a_dead_source_the_next_is_asked_without_a_wait(serve, dead, tmp_path, waits):
    fetch(tmp_path, dead, serve().url)
    assert_complete(tmp_path)
    assert waits == []


def test_after_a_wrong_md5_the_next_source_is_asked(serve, tmp_path):
    wrong, right = serve(content=CONTENT[:-1] + b"?"), serve()
    fetch(tmp_path, wrong.url, right.url)
    assert_complete(tmp_path)


def test_the_only_source_may_be_slow(serve, tmp_path):
    fetch(tmp_path, serve().url, patience=0, slow=float("inf"))  # any speed is slow
    assert_complete(tmp_path)


def test_a_slow_source_is_left_for_the_next_but_better_than_none(serve, dead, tmp_path):
    slow = serve()
    fetch(tmp_path, slow.url, dead, patience=0, slow=float("inf"))
    assert_complete(tmp_path)
    assert slow.asked == 2


def test_when_every_source_fails_the_error_names_each_and_its_reason(serve, dead, tmp_path):
    wrong = serve(content=b"something else")
    with pytest.raises(OSError) as caught:
        fetch(tmp_path, dead, wrong.url)
    first, second = str(caught.value).split("; ")
    assert first.startswith(f"{dead}: ") and "refused" in first
    assert second.startswith(f"{wrong.url}: MD5 hash of downloaded file")
    assert not list(tmp_path.glob("tiny*"))


# --- unpacking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"no archive", CONTENT[:-200_000], CONTENT[:300_000] + b"\0" * 300_000]
)
def test_a_broken_archive_is_an_error_that_names_it_and_leaves_what_was_there(tmp_path, content):
    (tmp_path / "tiny.tar.gz").write_bytes(content)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "old.txt").touch()
    with pytest.raises(OSError, match=r"tiny\.tar\.gz cannot be unpacked"):
        fetch_archive(tiny(content=content), tmp_path)
    assert [p.name for p in (tmp_path / "tiny").iterdir()] == ["old.txt"]


def test_what_an_archive_holds_takes_the_place_of_what_has_its_name(serve, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "half").touch()
    left = tmp_path / ".tiny.tar.gz.unfinished" / "new"  # of a process that was killed
    left.mkdir(parents=True)
    (left / "junk").touch()
    fetch(tmp_path, serve().url)
    assert_complete(tmp_path)


# --- several processes -----------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from ersm_lab.images.download import Archive, fetch_archive
url, md5, target = *sys.argv[1:3], Path(sys.argv[3])
archive = Archive(file="tiny.tar.gz", md5=md5, urls=(url,))
fetch_archive(archive, target, needed=lambda: not (target / "tiny").exists(), progress=False)
assert (target / "tiny" / "hello.txt").read_bytes() == b"hello"
"""


def start(url, target):
    command = [sys.executable, "-c", FETCH, url, hashlib.md5(CONTENT).hexdigest(), str(target)]
    return subprocess.Popen(command, cwd=ROOT)


def test_four_processes_at_once_share_one_download(serve, tmp_path):
    source = serve()
    processes = [start(source.url, tmp_path) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert_complete(tmp_path)
    assert source.asked == 1


def test_a_process_that_is_killed_leaves_nothing_in_the_way(serve, tmp_path):
    source = serve("trickle")
    process = start(source.url, tmp_path)
    end = time.monotonic() + 60
    while not source.asked and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert source.asked == 2
