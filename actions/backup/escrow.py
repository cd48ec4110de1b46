"""Sealing keys in escrow, beside the backups: see `escrow_shelf`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from actions.backup.escrow_shelf import Shelf, Shelved, nothing, shelved_objects
from actions.errors import PermanentError, UserError, VerificationError
from actions.escrow import Escrow, EscrowEntry, EscrowManifest, SealingKey, SealingKeys
from actions.ports import Clock, ObjectStore, Secrets
from actions.site import EscrowPolicy, Site

FOLDER, KEYS, KIND = "escrow", "keys.age", "secrets-escrow"


class Escrows(Escrow):
    """All clusters of the site that have a controller."""

    def __init__(self, site: Site, keys: SealingKeys, objects: ObjectStore, secrets: Secrets, clock: Clock) -> None:
        self._keys, self._clock = keys, clock
        self._shelf = Shelf(
            site,
            objects,
            secrets,
            manifest=EscrowManifest,
            kind=KIND,
            folder=FOLDER,
            content=KEYS,
            noun="escrow",
            by_hand="`/dr secrets status` has the commands",
        )

    async def current(self, cluster: str) -> Sequence[SealingKey]:
        return await self._keys.keys(cluster)

    async def entries(self, cluster: str) -> Sequence[EscrowEntry]:
        found = [self._entry(cluster, each) for each in await self._shelf.all(cluster)]
        return sorted(found, key=lambda entry: entry.manifest.made_at, reverse=True)

    async def make(self, escrow: str, cluster: str, *, requested_by: str = "") -> EscrowEntry:
        there = await self._shelf.find(cluster, escrow)
        if there is not None and there.problem is None:
            return self._entry(cluster, there)
        keys = tuple(await self._keys.keys(cluster))
        if not keys:
            raise UserError(
                f"Cluster `{cluster}` has no sealing keys where the plan looks for them. Correct `sealed_secrets` of "
                "the cluster: it is the namespace of the controller."
            )
        stored = await self._shelf.store(cluster, escrow, await self._keys.export(cluster))
        if tuple(await self._keys.keys(cluster)) != keys:
            raise PermanentError(f"The sealing keys of `{cluster}` were changed just now. Make the escrow again.")
        made = EscrowManifest(**stored, made_at=self._clock.now(), keys=keys, requested_by=requested_by)
        return EscrowEntry(manifest=await self._shelf.sign(made))

    async def check(self, cluster: str, escrow: str, fingerprints: Collection[str]) -> None:
        manifest, plain = await self._shelf.open(cluster, escrow)
        held = {key.fingerprint for key in manifest.keys}
        if not plain or not set(fingerprints) <= held:
            raise VerificationError(f"Escrow `{escrow}` lacks sealing keys of `{cluster}` that it is said to hold.")
        await self._keys.may_add(cluster)

    async def give_back(self, cluster: str, escrow: str, fingerprints: Collection[str]) -> None:
        _, plain = await self._shelf.open(cluster, escrow)
        await self._keys.add(cluster, plain, fingerprints)

    async def remove(self, cluster: str, escrow: str) -> None:
        await self._held_by_others(cluster, escrow)
        await self._shelf.remove(cluster, escrow)

    async def _held_by_others(self, cluster: str, escrow: str) -> None:
        """Raise VerificationError unless every key of this escrow is in another one that is whole, by its bytes: what
        is sealed with a key that is in none can never be opened again, and a listing tells sizes alone."""
        entries = await self.entries(cluster)
        lacking = {key.fingerprint for each in entries if each.manifest.id == escrow for key in each.manifest.keys}
        for manifest in (each.manifest for each in entries if each.problem is None and each.manifest.id != escrow):
            held = lacking & {key.fingerprint for key in manifest.keys}
            if held and await self._shelf.whole(manifest):
                lacking -= held
        if lacking:
            raise VerificationError(
                f"Escrow `{escrow}` of `{cluster}` stays: {len(lacking)} of its keys are in no other one that is as it "
                "was signed. Look at the newer ones, and make another."
            )

    def _entry(self, cluster: str, found: Shelved[EscrowManifest]) -> EscrowEntry:
        bare = nothing(self._shelf.policy, cluster, found.id)
        manifest = found.manifest or EscrowManifest(**bare, keys=())
        return EscrowEntry(manifest=manifest, problem=found.problem, trusted=found.trusted)


def escrow_objects(policy: EscrowPolicy, cluster: str, escrow: str) -> tuple[str, str]:
    """What one escrow is made of, by key in its bucket."""
    return shelved_objects(policy, FOLDER, KEYS, cluster, escrow)
