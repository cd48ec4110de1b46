"""A controller of SealedSecrets in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from actions.errors import TemporaryError, UserError, VerificationError
from actions.escrow import SealingKey, SealingKeys


class MemorySealingKeys(SealingKeys):
    """`add_key` makes one; its private half is in no answer but `export`. `down` is a cluster that does not answer,
    `closed` one that lets nobody create a key."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.now = now
        self.closed = False
        self.held: dict[str, list[tuple[SealingKey, str]]] = {}
        self.down = False

    def add_key(self, cluster: str, name: str, private: str, *, at: datetime) -> SealingKey:
        held = self.held.setdefault(cluster, [])
        key = SealingKey(name=name, fingerprint=_fingerprint(private), made_at=at)
        held.append((key, private))
        return key

    def forget(self, cluster: str, name: str) -> None:
        """Somebody has deleted it in the cluster."""
        self.held[cluster] = [(key, private) for key, private in self.held[cluster] if key.name != name]

    async def keys(self, cluster: str) -> Sequence[SealingKey]:
        return sorted((key for key, _ in self._of(cluster)), key=lambda key: key.made_at, reverse=True)

    async def export(self, cluster: str) -> bytes:
        items = [{"metadata": {"name": key.name}, "data": {"tls.key": private}} for key, private in self._of(cluster)]
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}).encode()

    async def may_add(self, cluster: str) -> None:
        self._of(cluster)
        if self.closed:
            raise UserError(f"Cluster `{cluster}` refused `create secrets`: the bot's account has no right to it.")

    async def add(self, cluster: str, exported: bytes, fingerprints: Collection[str]) -> None:
        held = {_fingerprint(item["data"]["tls.key"]): item for item in json.loads(exported)["items"]}
        if not set(fingerprints) <= held.keys():
            raise VerificationError(f"The escrow lacks sealing keys of `{cluster}` that it is said to hold.")
        for fingerprint in sorted(set(fingerprints) - {key.fingerprint for key, _ in self._of(cluster)}):
            name, private = held[fingerprint]["metadata"]["name"], held[fingerprint]["data"]["tls.key"]
            taken = {key.name for key, _ in self._of(cluster)}
            self.add_key(cluster, f"{name}-{fingerprint[:8]}" if name in taken else name, private, at=self.now())

    def _of(self, cluster: str) -> list[tuple[SealingKey, str]]:
        if self.down:
            raise TemporaryError(f"Cluster `{cluster}` cannot be reached.")
        if cluster not in self.held:
            raise UserError(f"The plan file names no controller of SealedSecrets for cluster `{cluster}`.")
        return self.held[cluster]


def _fingerprint(private: str) -> str:
    return hashlib.sha256(private.encode()).hexdigest()
