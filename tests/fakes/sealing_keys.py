"""A controller of SealedSecrets in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime

from actions.errors import TemporaryError, UserError
from actions.escrow import SealingKey, SealingKeys


class MemorySealingKeys(SealingKeys):
    """`add` makes a key; its private half is in no answer but `export`. `down` is a cluster that does not answer."""

    def __init__(self) -> None:
        self.held: dict[str, list[tuple[SealingKey, str]]] = {}
        self.down = False

    def add(self, cluster: str, name: str, private: str, *, at: datetime) -> SealingKey:
        held = self.held.setdefault(cluster, [])
        key = SealingKey(name=name, fingerprint=hashlib.sha256(private.encode()).hexdigest(), made_at=at)
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

    def _of(self, cluster: str) -> list[tuple[SealingKey, str]]:
        if self.down:
            raise TemporaryError(f"Cluster `{cluster}` cannot be reached.")
        if cluster not in self.held:
            raise UserError(f"The plan file names no controller of SealedSecrets for cluster `{cluster}`.")
        return self.held[cluster]
