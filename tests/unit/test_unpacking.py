"""A sink that stops early: the rest is measured, unless whoever took the bytes has ended."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pyrage
import pytest

from actions.backup.crypto import Identity
from actions.backup.unpacking import EnoughError, GoneError, Plain, Sink, Unpacked, unpack

BLOCK, BLOCKS = bytes(1 << 20), 400  # more than all stages hold


class Stops(Sink):
    def __init__(self, kind: type[EnoughError]) -> None:
        self._kind = kind

    def run(self, source: Plain, /) -> None:
        source.get()
        raise self._kind


class Stored:
    given = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(BLOCKS):
            self.given += 1
            yield BLOCK


async def unpacked(stored: Stored, kind: type[EnoughError]) -> Unpacked:
    identity = Identity(str(pyrage.x25519.Identity.generate()), "none")
    return await unpack(stored.chunks(), backup="b1", identity=identity, sink=Stops(kind), done=lambda _: None)


async def test_what_a_sink_does_not_need_is_measured() -> None:
    read = await unpacked(Stored(), EnoughError)
    assert read.plain_bytes == BLOCKS * len(BLOCK)
    assert read.plain_sha256 == hashlib.sha256(BLOCK * BLOCKS).hexdigest()


async def test_a_taker_that_has_ended_is_told_at_once() -> None:
    stored = Stored()
    with pytest.raises(GoneError):
        await unpacked(stored, GoneError)
    assert stored.given < BLOCKS
