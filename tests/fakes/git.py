"""A repository and a cluster's objects in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from actions.commits import BranchGit
from actions.errors import TemporaryError, UserError
from actions.manifest_files import veiled
from actions.manifests import Json, KindName, Live, LiveObjects, RepositoryFile
from actions.site import ManifestsPolicy

WIDE = ("Namespace", "ClusterRole", "PersistentVolume")


class MemoryGit(BranchGit):
    """`push` adds a commit to a branch of the one repository; `down` is a host that does not answer, `closed` one that
    takes no push of the bot. A tree is known by a hash of its files."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}  # of the commits that the bot has made
        self.contents: dict[str, Mapping[str, bytes]] = {}  # of trees, by their id
        self.closed = False
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
        self._keep(commit, {path: text.encode() for path, text in files.items()})
        return commit

    def _keep(self, commit: str, files: Mapping[str, bytes]) -> None:
        self.trees[commit] = files
        self.contents[_tree(files)] = files

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
        text = f"# v2 git bundle\n{commit}\n{json.dumps(sorted(self.mirrored))}\n"
        await asyncio.to_thread(into.write_text, text)

    async def files(self, name: str, commit: str, path: str) -> Sequence[RepositoryFile]:
        if not await self.has(name, commit):
            raise UserError(f"The mirror of `{name}` has no commit `{commit}`.")
        tree = self.trees[commit]
        return [RepositoryFile(each, tree[each]) for each in sorted(tree) if each.startswith(path)]

    # ------------------------------------------------------------ written on top

    async def folder(self, policy: ManifestsPolicy, commit: str) -> str | None:
        inside = {path: body for path, body in self.trees[commit].items() if _within(path, policy.path)}
        return _tree(inside) if inside else None

    async def root(self, name: str, commit: str) -> str:
        return _tree(self.trees[commit])

    async def tree(self, policy: ManifestsPolicy, commit: str, *, onto: str) -> str:
        inside = {path: body for path, body in self.trees[commit].items() if _within(path, policy.path)}
        if not inside:
            raise UserError(f"Commit `{commit[:12]}` of `{policy.url}` has no folder `{policy.path}`.")
        outside = {path: body for path, body in self.trees[onto].items() if not _within(path, policy.path)}
        made = {**outside, **inside}
        self.contents[_tree(made)] = made
        return _tree(made)

    async def changed(self, name: str, one: str, other: str) -> int:
        before, after = (self.trees.get(each) or self.contents[each] for each in (one, other))
        return len(dict(before.items() ^ after.items()))

    async def later(self, name: str, head: str, since: str) -> Sequence[tuple[str, str]]:
        known = self._history(since)
        found: list[tuple[str, str]] = []
        at: str | None = head
        while at is not None and at not in known:
            found.append((at, self.marks.get(at, "")))
            at = self.parents[at]
        return found

    async def commit(self, name: str, *, tree: str, parent: str, subject: str, mark: str) -> str:
        text = json.dumps([parent, tree, subject, mark])
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.parents[commit], self.marks[commit] = parent, mark
        self.mirrored.add(commit)
        self._keep(commit, self.contents[tree])
        return commit

    async def may_push(self, policy: ManifestsPolicy, head: str) -> None:
        if self.closed:
            raise UserError(f"Repository `{policy.url}` refuses: error 403")

    async def move(self, policy: ManifestsPolicy, commit: str, *, over: str) -> bool:
        await self.may_push(policy, over)
        if self.branches.get(policy.branch) != over:
            return False
        self.branches[policy.branch] = commit
        return True

    async def take(self, name: str, bundle: Path, commit: str) -> bool:
        held = json.loads((await asyncio.to_thread(bundle.read_text)).splitlines()[2])
        self.mirrored |= {commit} & set(held)
        return commit in held

    def _history(self, commit: str | None) -> set[str]:
        found = set()
        while commit is not None:
            found.add(commit)
            commit = self.parents[commit]
        return found


def _tree(files: Mapping[str, bytes]) -> str:
    text = json.dumps(sorted((path, body.decode()) for path, body in files.items()))
    return hashlib.sha1(f"tree {text}".encode(), usedforsecurity=False).hexdigest()


def _within(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder.strip('/')}/")


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
