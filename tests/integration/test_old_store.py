"""A store that knows nothing of the client's newer checksums, nor of conditions: the first must do, the second is
found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from actions.adapters.s3_buckets import S3Buckets
from actions.adapters.secrets import SecretReferences
from actions.site import Bucket, Site

pytestmark = pytest.mark.integration

HEADERS = {
    "ETag": '"e"',
    "Last-Modified": "Mon, 23 Nov 2026 10:12:00 GMT",
    "x-amz-replication-status": "FAILED",
}
UPLOAD = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"


class _Old(BaseHTTPRequestHandler):
    """As such stores were before 2025: `objects` of the server are kept as the bodies came."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        newer = [name for name in self.headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum"))]
        if newer or "aws-chunked" in self.headers.get("Content-Encoding", "") or "x-amz-trailer" in self.headers:
            self._answer(400, b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>")
            return
        path = urlsplit(self.path)
        self.server.objects[path.path] = body
        self._answer(200, ETag='"e"')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        begins = "uploads" in parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        self._answer(200, UPLOAD.encode() if begins else b"<CompleteMultipartUploadResult/>")

    def do_GET(self) -> None:
        body = self.server.objects.get(urlsplit(self.path).path)
        if body is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, body, **HEADERS)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        self.server.objects.pop(urlsplit(self.path).path, None)
        self._answer(204)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nobody reads it."""


class _Server(ThreadingHTTPServer):
    objects: dict[str, bytes]


@pytest.fixture
def store() -> Iterator[S3Buckets]:
    server = _Server(("127.0.0.1", 0), _Old)
    server.objects = {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    bucket = Bucket(
        name="old", endpoint=f"http://127.0.0.1:{server.server_port}", access_key="env:A", secret_key="env:S"
    )
    made = S3Buckets(Site(buckets={"old": bucket}), SecretReferences({"A": "a", "S": "s"}))
    yield made
    made.close()
    server.shutdown()
    thread.join()
    server.server_close()


async def test_it_is_written_and_read_and_found_to_ignore_conditions(store: S3Buckets) -> None:
    trials = {trial.what: trial.problem for trial in await store.trials("old", "some/")}
    assert (trials["store and read"], trials["store in parts and read"]) == ("", "")
    assert "the store ignores `If-None-Match`" in trials["refuse to overwrite"]
    await store.put("old", "k", b"body")
    assert await store.get("old", "k") == b"body"


async def test_what_a_store_says_of_its_own_copy_of_an_object_is_read(store: S3Buckets) -> None:
    await store.put("old", "k", b"body")
    facts = await store.head("old", "k")
    assert facts is not None
    assert (facts.etag, facts.replication) == ("e", "FAILED")


async def test_one_that_gives_back_other_bytes_is_found(store: S3Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    def framed(self: _Old) -> None:
        self._answer(200, b"3\r\nbad", ETag='"e"')

    monkeypatch.setattr(_Old, "do_GET", framed)
    trials = {trial.what: trial.problem for trial in await store.trials("old", "some/")}
    assert "what comes back is not what was stored" in trials["store and read"]
    assert "what comes back is not what was stored" in trials["store in parts and read"]
