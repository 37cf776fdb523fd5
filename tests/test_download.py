"""Downloads from a server on this machine: resumed, checked, and taken elsewhere when a source fails."""

import hashlib
import http.server
import io
import random
import socket
import tarfile
import threading
from contextlib import ExitStack

import pytest

from ersm_lab.download import CHUNK, Archive, fetch_archive


def pack():
    """The bytes of a .tar.gz that does not fit into one read."""
    file, noise = io.BytesIO(), random.Random(0).randbytes(2 * CHUNK + 1_000)
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in (("tiny/hello.txt", b"hello"), ("tiny/noise.bin", noise)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


CONTENT = pack()


class Source(http.server.BaseHTTPRequestHandler):
    """Serves its server's `content`; `ranges`, `stop_at` and `garbage` say how well."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.garbage:
            self.wfile.write(b"this is no answer\r\n\r\n")
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Starts a source: serve(content, ...) -> server with `.url` and the ranges it was `.asked` for."""
    with ExitStack() as stack:

        def start(content=CONTENT, *, ranges=True, stop_at=None, garbage=False):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Source)
            server.content, server.ranges, server.stop_at = content, ranges, stop_at
            server.garbage, server.asked = garbage, []
            server.url = f"http://127.0.0.1:{server.server_port}/tiny.tar.gz"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server

        yield start


@pytest.fixture
def dead():
    """The address of a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}/tiny.tar.gz"  # bound, but not listening


def fetch(target, *urls, **settings):
    archive = Archive(file="tiny.tar.gz", md5=hashlib.md5(CONTENT).hexdigest(), urls=urls)
    return fetch_archive(archive, target, progress=False, timeout=10, **settings)


def assert_complete(target):
    assert (target / "tiny.tar.gz").read_bytes() == CONTENT
    assert (target / "tiny" / "hello.txt").read_bytes() == b"hello"
    assert not (target / "tiny.tar.gz.part").exists()


def test_an_archive_is_downloaded_checked_and_unpacked(serve, tmp_path):
    source, second = serve(), serve()
    target = tmp_path / "not" / "yet"
    assert fetch(target, source.url, second.url) == target
    assert_complete(target)
    assert source.asked == [None] and second.asked == []


def test_a_complete_archive_is_not_fetched_again(serve, tmp_path):
    source = serve()
    (tmp_path / "tiny.tar.gz").write_bytes(CONTENT)
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert source.asked == []


def test_a_damaged_archive_is_fetched_again(serve, tmp_path):
    source = serve()
    (tmp_path / "tiny.tar.gz").write_bytes(CONTENT[:-1])
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert source.asked == [None]


def test_a_partial_file_is_resumed(serve, tmp_path):
    source = serve()
    (tmp_path / "tiny.tar.gz.part").write_bytes(CONTENT[:100_000])
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert source.asked == ["bytes=100000-"]


def test_a_source_that_cannot_resume_starts_over(serve, tmp_path):
    source = serve(ranges=False)
    (tmp_path / "tiny.tar.gz.part").write_bytes(CONTENT[:100_000])
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)
    assert source.asked == ["bytes=100000-"]


def test_a_partial_file_that_is_whole_already_is_used(serve, tmp_path):
    source = serve()
    (tmp_path / "tiny.tar.gz.part").write_bytes(CONTENT)
    fetch(tmp_path, source.url)
    assert_complete(tmp_path)


def test_after_a_wrong_md5_the_next_source_is_asked_for_the_whole_file(serve, tmp_path):
    wrong, right = serve(CONTENT[:-1] + b"?"), serve()
    fetch(tmp_path, wrong.url, right.url)
    assert_complete(tmp_path)
    assert wrong.asked == [None] and right.asked == [None]


def test_after_a_dead_source_the_next_is_asked(serve, dead, tmp_path):
    source = serve()
    fetch(tmp_path, dead, source.url)
    assert_complete(tmp_path)


def test_after_a_source_that_does_not_speak_http_the_next_is_asked(serve, tmp_path):
    babbling, source = serve(garbage=True), serve()
    fetch(tmp_path, babbling.url, source.url)
    assert_complete(tmp_path)
    assert babbling.asked == [None]


def test_what_a_source_broke_off_the_next_one_ends(serve, tmp_path):
    broken, source = serve(stop_at=150_000), serve()
    fetch(tmp_path, broken.url, source.url)
    assert_complete(tmp_path)
    assert source.asked == ["bytes=150000-"]


def test_a_slow_source_is_left_for_the_next_which_ends_its_file(serve, tmp_path):
    slow, source = serve(), serve()
    fetch(tmp_path, slow.url, source.url, patience=0, slow=float("inf"))  # any speed is slow
    assert_complete(tmp_path)
    assert slow.asked == [None] and source.asked == [f"bytes={CHUNK}-"]


def test_the_only_source_may_be_slow(serve, tmp_path):
    slow = serve()
    fetch(tmp_path, slow.url, patience=0, slow=float("inf"))
    assert_complete(tmp_path)


def test_a_slow_source_is_better_than_none(serve, dead, tmp_path):
    slow = serve()
    fetch(tmp_path, slow.url, dead, patience=0, slow=float("inf"))
    assert_complete(tmp_path)
    assert slow.asked == [None, f"bytes={CHUNK}-"]


def test_when_every_source_fails_the_error_names_each_and_its_reason(serve, dead, tmp_path):
    wrong = serve(b"something else")
    with pytest.raises(OSError) as caught:
        fetch(tmp_path, dead, wrong.url)
    first, second = str(caught.value).split("; ")
    assert first.startswith(f"{dead}: ") and "refused" in first
    assert second == f"{wrong.url}: the file's MD5 is wrong"
    assert not list(tmp_path.glob("tiny.tar.gz*"))
