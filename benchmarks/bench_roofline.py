"""What disk and S3 give at best, beside which the other figures are read: nothing that moves a backup can be quicker.

One stream each, of bytes that do not compress, on the disk that the demo uses. ROOFLINE_MB=n (1024), RUNS=n (3).
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.site import Bucket, Site
from bot.demo.seaweedfs import SeaweedFs
from tests.fixtures.shared_s3 import S3

pytestmark = pytest.mark.bench

MEGABYTES = int(os.environ.get("ROOFLINE_MB", "1024"))
RUNS = int(os.environ.get("RUNS", "3"))
MIB = 1 << 20
BLOCK = random.Random(1).randbytes(4 * MIB)
BUCKET, KEY = "roofline", "object"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="drbot-roofline-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def told(name: str, seconds: list[float]) -> None:
    rates = [MEGABYTES / each for each in seconds]
    print(f"{name}: median {statistics.median(rates):.0f} MiB/s, {min(rates):.0f} to {max(rates):.0f}, n={len(rates)}")


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def test_disk(folder: Path) -> None:
    path = folder / "file"

    def write() -> None:
        with path.open("wb", buffering=0) as stream:
            for _ in range(0, MEGABYTES, 4):
                stream.write(BLOCK)
            os.fsync(stream.fileno())

    def read() -> None:
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while stream.read(4 * MIB):
                pass

    written, got = [], []
    for _ in range(RUNS):
        written.append(timed(write))
        got.append(timed(read))
    told("disk, written and synced", written)
    told("disk, read past the cache", got)
    assert path.stat().st_size == MEGABYTES * MIB


async def test_s3(folder: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(0, MEGABYTES, 4):
            yield BLOCK

    async with SeaweedFs(folder) as server:
        entry = Bucket(name=BUCKET, endpoint=server.endpoint, access_key="env:A", secret_key="env:S")
        secrets = SecretReferences({"A": server.access_key, "S": server.secret_key})
        store = S3Store(Site(buckets={BUCKET: entry}), secrets)
        S3(server.endpoint, server.access_key, server.secret_key).client().create_bucket(Bucket=BUCKET)
        stored, got = [], []
        for _ in range(RUNS):
            begun = time.perf_counter()
            assert await store.put_stream(BUCKET, KEY, body()) == MEGABYTES * MIB
            stored.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            assert sum([len(chunk) async for chunk in store.get_stream(BUCKET, KEY)]) == MEGABYTES * MIB
            got.append(time.perf_counter() - begun)
        store.close()
    told("S3, one object stored in parts", stored)
    told("S3, one object read", got)
