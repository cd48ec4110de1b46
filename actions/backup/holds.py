"""Legal holds: what a pin says, kept by the store itself, so that whoever has the keys of a bucket cannot delete it.

The store is asked before the pin is written, and before it is taken off: a run that dies between the two finds the pin
as it was, and does both again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from actions.buckets import Hold
from actions.errors import DrError, TemporaryError
from actions.ports import ObjectStore

AT_ONCE = 16
log = logging.getLogger(__name__)


async def put_on(objects: ObjectStore, wanted: Mapping[str, Iterable[str]]) -> None:
    """Hold these keys, by bucket, those that are there. What cannot be held is logged and told by `look`: a pin without
    a hold is worth more than none. Raises TemporaryError when no bucket answers."""
    await _all(objects, wanted, on=True)


async def take_off(objects: ObjectStore, unneeded: Mapping[str, Iterable[str]]) -> None:
    """Let go of these keys, by bucket. Raises UserError or PermanentError when one refuses, TemporaryError when all are
    silent; one that is silent beside another is left as it is."""
    await _all(objects, unneeded, on=False)


async def look(objects: ObjectStore, wanted: Mapping[str, Iterable[str]]) -> Sequence[Hold]:
    """How these keys are held, one for each bucket."""
    return await asyncio.gather(*(_look(objects, bucket, sorted(keys)) for bucket, keys in wanted.items()))


async def _all(objects: ObjectStore, keys: Mapping[str, Iterable[str]], *, on: bool) -> None:
    failed: dict[str, DrError] = {}
    for bucket, each in keys.items():
        try:
            await _one(objects, bucket, sorted(each), on=on)
        except DrError as error:
            log.warning("legal_hold_not_%s: %s: %s", "set" if on else "taken_off", bucket, error)
            failed[bucket] = error
    refused = [error for error in failed.values() if not isinstance(error, TemporaryError)]
    if refused and not on:
        raise refused[0]
    if failed and len(failed) == len(keys) and not refused:
        raise next(iter(failed.values()))


async def _one(objects: ObjectStore, bucket: str, keys: Sequence[str], *, on: bool) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def each(key: str) -> bool:
        async with room:
            if await objects.head(bucket, key) is None:
                return True  # half a copy, or a segment that has not been archived yet
            held = await objects.held(bucket, key)
            return held is not None and (held is on or await objects.hold(bucket, key, on=on))

    if keys and not await each(keys[0]):
        return  # no Object Lock: the others cannot be held either
    await asyncio.gather(*(each(key) for key in keys[1:]))


async def _look(objects: ObjectStore, bucket: str, keys: Sequence[str]) -> Hold:
    room = asyncio.Semaphore(AT_ONCE)

    async def each(key: str) -> bool | None:
        async with room:
            return await objects.held(bucket, key) if await objects.head(bucket, key) is not None else False

    try:
        found = await asyncio.gather(*(each(key) for key in keys))
    except DrError as error:
        return Hold(bucket=bucket, objects=len(keys), problem=str(error))
    lockable = None not in found
    return Hold(bucket=bucket, objects=len(keys), held=sum(each is True for each in found), lockable=lockable)
