"""Witnesses: places that keep checkpoints and that the bot's database cannot change.

They store lines and understand nothing; who reads them checks signatures. Their adapters are
`actions.adapters.witness_file` and `actions.adapters.witness_s3`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

from actions.errors import TemporaryError, VerificationError
from bot.services.record.checkpoint import Checkpoint, Signed, Trust

PATIENCE = timedelta(seconds=5)
"""How long one call to a witness may take before the witness counts as away."""

LOOKED_AT = 20
"""Lines that are tried for one with a good signature: whoever may write to a witness may write nonsense."""

T = TypeVar("T")


class Witness(Protocol):
    """Keeps lines under rising numbers. Calls raise DrError when it is away or refuses."""

    @property
    def name(self) -> str:
        """What people call it."""

    async def publish(self, number: int, lines: Sequence[str]) -> None:
        """Keep these lines; the last one is checkpoint `number`. Storing the same again changes nothing. Raises
        PermanentError when it holds another last line under that number."""

    async def newest(self, limit: int) -> Sequence[str]:
        """Up to `limit` last lines, newest first."""

    def everything(self) -> AsyncIterator[str]:
        """All lines, in no particular order."""


async def newest_of(witness: Witness, trust: Trust, *, patience: timedelta = PATIENCE) -> Checkpoint | None:
    """The newest checkpoint there that a trusted key has signed; None when there is none. Raises DrError when the
    witness is away."""
    lines = await bounded(witness.newest(LOOKED_AT), witness.name, patience)
    return max((found for line in lines if (found := checked(line, trust)) is not None), key=_number, default=None)


def checked(line: str, trust: Trust) -> Checkpoint | None:
    """The checkpoint of a line; None for what no trusted key has signed."""
    try:
        return trust.check(Signed.read(line))
    except VerificationError:
        return None


async def bounded(work: Awaitable[T], name: str, patience: timedelta = PATIENCE) -> T:
    """Wait for one call. Raises TemporaryError when it takes longer."""
    try:
        async with asyncio.timeout(patience.total_seconds()):
            return await work
    except TimeoutError as error:
        raise TemporaryError(f"Witness `{name}` has not answered within {patience.total_seconds():g} s.") from error


def _number(checkpoint: Checkpoint) -> int:
    return checkpoint.number
