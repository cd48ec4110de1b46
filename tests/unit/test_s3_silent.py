"""A store that takes connections and never answers: named soon, left alone for a while, and no other is held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from actions.adapters import s3
from actions.adapters.s3 import S3Store
from actions.adapters.secrets import SecretReferences
from actions.backup.patience import AwayError
from actions.site import Bucket, Site
from tests.fixtures.hanging import ABSENT, hanging
from tests.fixtures.waiting import eventually

WITHIN = timedelta(milliseconds=300)


@asynccontextmanager
async def store_of(**ports: int) -> AsyncIterator[S3Store]:
    entries = {
        name: Bucket(name=name, endpoint=f"http://127.0.0.1:{port}", access_key="env:A", secret_key="env:S")
        for name, port in ports.items()
    }
    store = S3Store(Site(buckets=entries), SecretReferences({"A": "a", "S": "s"}), answered_within=WITHIN)
    try:
        yield store
    finally:
        store.close()


async def test_a_bucket_that_hangs_is_named_and_not_waited_for_twice() -> None:
    async with hanging() as server, hanging(ABSENT) as other, store_of(near=server.port, far=other.port) as store:
        with pytest.raises(AwayError, match=f"Bucket `near` did not list.*127.0.0.1:{server.port} does not answer"):
            await store.list("near", "")
        asked, begun = server.connections, time.monotonic()
        for _ in range(20):
            with pytest.raises(AwayError, match=r"Bucket `near` does not answer: .* Check that it runs"):
                await store.get("near", "key")
        assert time.monotonic() - begun < 20 * WITHIN.total_seconds()
        assert server.connections == asked
        assert await store.head("far", "key") is None  # the other one is asked all the same


async def test_it_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "LEFT_ALONE", timedelta(milliseconds=200))
    async with hanging() as server, store_of(near=server.port) as store:
        with pytest.raises(AwayError):
            await store.head("near", "key")
        server.status.set_result(ABSENT)

        async def answers() -> bool:
            try:
                return await store.head("near", "key") is None
            except AwayError:
                return False

        await eventually(answers)


async def test_what_is_stored_is_given_its_time_and_never_held_back() -> None:
    async with hanging() as server, store_of(near=server.port) as store:
        with pytest.raises(AwayError):
            await store.head("near", "key")
        asked = server.connections
        storing = asyncio.ensure_future(store.put("near", "key", b"body"))

        async def tried() -> bool:
            return server.connections > asked

        await eventually(tried)
        assert (await asyncio.wait({storing}, timeout=2 * WITHIN.total_seconds()))[1]
        server.status.set_result("200 OK")
        await storing
