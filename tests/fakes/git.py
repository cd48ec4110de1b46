"""A repository and a cluster's objects in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from actions.errors import TemporaryError, UserError
from actions.manifest_files import veiled
from actions.manifests import Git, Json, KindName, Live, LiveObjects, RepositoryFile
from actions.site import ManifestsPolicy

WIDE = ("Namespace", "ClusterRole", "PersistentVolume")


class MemoryGit(Git):
    """`push` adds a commit to a branch of the one repository; `down` is a host that does not answer."""

    def __init__(self) -> None:
        self.parents: dict[str, str | None] = {}
        self.trees: dict[str, Mapping[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.mirrored: set[str] = set()
        self.seen: dict[str, str] = {}
        self.down = False

    def push(self, files: Mapping[str, str], *, branch: str = "main", onto: str | None = None) -> str:
        """The new commit. `onto` another parent than the head is a push with force; empty: without any history."""
        parent = self.branches.get(branch) if onto is None else onto or None
        commit = hashlib.sha1(json.dumps([parent, dict(files)]).encode(), usedforsecurity=False).hexdigest()
        self.parents[commit], self.branches[branch] = parent, commit
        self.trees[commit] = {path: text.encode() for path, text in files.items()}
        return commit

    async def fetch(self, policy: ManifestsPolicy) -> str | None:
        if self.down:
            raise TemporaryError(f"Repository `{policy.url}` does not answer.")
        for commit in self.branches.values():
            self.mirrored |= self._history(commit)
        self.seen = dict(self.branches)
        return self.branches.get(policy.branch)

    async def has(self, name: str, commit: str) -> bool:
        return commit in self.mirrored

    async def contains(self, name: str, commit: str, ancestor: str) -> bool:
        return await self.has(name, commit) and ancestor in self._history(commit)

    async def refs(self, name: str) -> str:
        return hashlib.sha256(json.dumps([sorted(self.seen.items()), sorted(self.mirrored)]).encode()).hexdigest()

    async def bundle(self, policy: ManifestsPolicy, commit: str, into: Path) -> None:
        text = f"# v2 git bundle\n{commit}\n{sorted(self.mirrored)}\n"
        await asyncio.to_thread(into.write_text, text)

    async def files(self, name: str, commit: str, path: str) -> Sequence[RepositoryFile]:
        if not await self.has(name, commit):
            raise UserError(f"The mirror of `{name}` has no commit `{commit}`.")
        tree = self.trees[commit]
        return [RepositoryFile(each, tree[each]) for each in sorted(tree) if each.startswith(path)]

    def _history(self, commit: str | None) -> set[str]:
        found = set()
        while commit is not None:
            found.add(commit)
            commit = self.parents[commit]
        return found


class MemoryLive(LiveObjects):
    """`held` is what the cluster has; `refused` are kinds that the bot may not list."""

    def __init__(self) -> None:
        self.held: list[Json] = []
        self.refused: set[str] = set()

    async def read(self, cluster: str, kinds: Sequence[KindName], namespaces: Sequence[str]) -> Live:
        wanted = {kind for kind in kinds if kind.kind not in self.refused}
        return Live(
            objects=tuple(
                veiled(each)
                for each in self.held
                if KindName(each["apiVersion"], each["kind"]) in wanted
                and (each["kind"] in WIDE or each["metadata"].get("namespace") in namespaces)
            ),
            cluster_wide=tuple(kind for kind in kinds if kind.kind in WIDE),
            refused=tuple((kind, "no right to it") for kind in kinds if kind.kind in self.refused),
        )
