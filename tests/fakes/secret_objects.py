"""Secrets of a cluster with their values, in memory: those of `MemoryLive`."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

from actions.errors import PermanentError, TemporaryError, UserError, VerificationError
from actions.secret_copies import Json, SecretObjects
from tests.fakes.git import MemoryLive


class MemorySecretObjects(SecretObjects):
    """`closed` is a cluster that lets nobody write a Secret, `down` one that does not answer. `made` are names of those
    that were created."""

    def __init__(self, live: MemoryLive) -> None:
        self._live = live
        self.closed = self.down = False
        self.made: set[str] = set()
        self.writes = 0
        self._versions = 900

    async def read(self, cluster: str, namespaces: Collection[str]) -> Sequence[Json]:
        self._answers()
        return [
            copy.deepcopy(each)
            for each in self._live.held
            if each["kind"] == "Secret" and each["metadata"]["namespace"] in namespaces
        ]

    async def write(self, cluster: str, item: Json, *, over: str, dry_run: bool = False) -> None:
        await self.may_write(cluster, item["metadata"]["namespace"])
        name = item["metadata"]["name"]
        same = ("name", "namespace")
        there = next(
            (
                each
                for each in self._live.held
                if each["kind"] == "Secret" and all(each["metadata"][key] == item["metadata"][key] for key in same)
            ),
            None,
        )
        found = "" if there is None else f"{there['metadata']['resourceVersion']} of {there['metadata']['uid']}"
        if found != over:
            raise VerificationError(f"Secret `{name}` of cluster `{cluster}` is another one than was looked at.")
        if there is not None and (there.get("immutable") or there.get("type") != item.get("type")):
            raise PermanentError(f"Secret `{name}` of cluster `{cluster}` is refused as it was.")
        if dry_run:
            return
        self.writes += 1
        self._versions += 1
        if there is None:
            metadata = {**item["metadata"], "uid": f"uid-{self._versions}", "resourceVersion": str(self._versions)}
            self._live.held.append({**copy.deepcopy(item), "metadata": metadata})
            self.made.add(name)
        else:
            there["data"] = dict(item.get("data") or {})
            there["metadata"]["resourceVersion"] = str(self._versions)

    async def may_write(self, cluster: str, namespace: str) -> None:
        self._answers()
        if self.closed:
            raise UserError(f"Cluster `{cluster}` refused `create secrets`: the bot's account has no right to it.")

    def _answers(self) -> None:
        if self.down:
            raise TemporaryError("The cluster cannot be reached.")
