"""Proofs: what each restore test found and measured, signed, kept beside the backups.

In every bucket of base backups: <prefix>proofs/<server>/<id>.json; in that of dumps:
<prefix>proofs/<database>/<id>.json. A test that failed is kept as well, with its `problem`. An engine whose own
catalogue looks for the newest one beside the backup that was restored gets a copy there, unless a key of its own signs
restore tests: whoever has that one writes under `proofs/` and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar
from urllib.parse import quote

from actions.backup.crypto import signing_key
from actions.backup.native_records import put_beside
from actions.backup.physical import Proof
from actions.backup.signing import Signed
from actions.errors import DrError, UserError, VerificationError
from actions.ports import ObjectFacts, ObjectStore, Secrets
from actions.site import BackupPolicy, PhysicalPolicy

READERS = 16  # proofs read at the same time
NEWEST = 100
"""So many are read, by the time they were stored; older ones stay in the bucket."""

Tested = PhysicalPolicy | BackupPolicy
"""What restore tests are about: the base backups of a server, or the dumps of a database."""

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class Proofs:
    """The restore tests of every server, and of the dumps of every database."""

    def __init__(self, objects: ObjectStore, secrets: Secrets) -> None:
        self._objects = objects
        self._secrets = secrets

    async def keep(self, policy: Tested, proof: Proof, *, beside: str | None = None) -> None:
        """Sign and store it, and once more under the key `beside`, where manifests and tests are signed by one key. The
        same one again changes nothing that counts. Raises UserError when nobody would believe the signature."""
        ref = policy.proof_signing_key or policy.signing_key
        signed = Signed[Proof].sign(proof, signing_key(await self._secrets.resolve(ref), ref))
        if policy.proof_signing_key and signed.signer not in policy.proof_signers:
            raise UserError(
                f"`{ref}` signs restore tests, and its public key is not among `backups.proof_signers`. Add "
                f"`{signed.signer}` there and have the plan file activated."
            )
        body = signed.body()
        if isinstance(policy, BackupPolicy):
            await self._objects.put(policy.bucket, _key(policy, proof.id), body)
            return
        if beside is not None and not policy.proof_signing_key:
            await put_beside(self._objects, policy, beside, body)
        await put_beside(self._objects, policy, _key(policy, proof.id), body)

    async def find(self, policy: Tested, proof: str) -> Proof | None:
        """None where there is none, or none that a trusted key has signed."""
        key = _key(policy, proof)
        found = await self._asked(policy, lambda bucket: self._objects.head(bucket, key))
        places = [(bucket, facts) for bucket, facts in found if facts is not None]
        return await self._read(policy, proof, places)

    async def newest(self, policy: Tested, *, limit: int = NEWEST) -> Sequence[Proof]:
        """Newest first. What is not signed by a trusted key, or is about something else, does not count."""
        known: dict[str, list[tuple[str, ObjectFacts]]] = {}
        for bucket, listed in await self._asked(
            policy, lambda bucket: self._objects.list(bucket, proofs_prefix(policy))
        ):
            for facts in listed:
                known.setdefault(facts.key, []).append((bucket, facts))
        recent = sorted(known.items(), key=lambda item: max(_stored(place) for place in item[1]), reverse=True)
        room = asyncio.Semaphore(READERS)

        async def one(key: str, places: Sequence[tuple[str, ObjectFacts]]) -> Proof | None:
            async with room:
                return await self._read(policy, key.removeprefix(proofs_prefix(policy)).removesuffix(".json"), places)

        found = await asyncio.gather(*(one(key, places) for key, places in recent[:limit]))
        return sorted((proof for proof in found if proof is not None), key=lambda proof: proof.proven_at, reverse=True)

    async def _read(self, policy: Tested, name: str, places: Sequence[tuple[str, ObjectFacts]]) -> Proof | None:
        """What was stored last: a test that was run again while a bucket was away is in the others alone. Raises the
        first error when none could be read."""
        failed: list[DrError] = []
        for bucket, facts in sorted(places, key=_stored, reverse=True):
            try:
                body = await self._objects.get(bucket, facts.key)
            except DrError as error:
                failed.append(error)
                continue
            if (proof := _checked(body, policy, name)) is not None:
                return proof
        if failed and len(failed) == len(places):
            raise failed[0]
        return None

    async def _asked(self, policy: Tested, ask: Callable[[str], Awaitable[Answer]]) -> list[tuple[str, Answer]]:
        """The answers of those buckets that answer. Raises the first one's error when none does."""
        found: list[tuple[str, Answer]] = []
        failed: list[DrError] = []
        for bucket in _buckets(policy):
            try:
                found.append((bucket, await ask(bucket)))
            except DrError as error:
                failed.append(error)
        if failed and not found:
            raise failed[0]
        return found


def _stored(place: tuple[str, ObjectFacts]) -> datetime:
    return place[1].modified_at


def proofs_prefix(policy: Tested) -> str:
    """Of all proofs of one server, in each bucket, or of the dumps of one database."""
    subject = policy.database if isinstance(policy, BackupPolicy) else policy.server
    return f"{proofs_folder(policy)}{quote(subject, safe='')}/"


def proofs_folder(policy: Tested) -> str:
    """Where the results of everything that shares this prefix are."""
    return f"{policy.prefix}proofs/"


def _buckets(policy: Tested) -> tuple[str, ...]:
    return (policy.bucket,) if isinstance(policy, BackupPolicy) else policy.base_buckets


def _key(policy: Tested, proof: str) -> str:
    return f"{proofs_prefix(policy)}{proof}.json"


def _checked(body: bytes, policy: Tested, name: str) -> Proof | None:
    try:
        proof = Signed[Proof].parse(
            body, (*policy.trusted_signers, *policy.proof_signers), what=f"Restore test `{name}`"
        )
    except VerificationError as error:
        log.warning("proof_left_out: %s", error)
        return None
    about = (proof.database, policy.database) if isinstance(policy, BackupPolicy) else (proof.server, policy.server)
    if proof.id != name or about[0] != about[1] or isinstance(policy, BackupPolicy) is not bool(proof.database):
        log.warning("proof_left_out: %s: it is about another test", name)
        return None
    return proof
