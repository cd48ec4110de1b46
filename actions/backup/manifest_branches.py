"""Branches of manifests repositories: what they held at a commit, and the commit that takes them back to it."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path

from actions.backup.crypto import Identity
from actions.commits import Branches, BranchGit, Carried, WayBack
from actions.errors import PreconditionError, UserError, VerificationError
from actions.manifest_files import read
from actions.manifests import BundleManifest, Manifests, Tree
from actions.ports import ObjectStore, Secrets
from actions.site import ManifestsPolicy, Site

BUNDLES = 3
"""So many are opened in search of a commit: those of that very head first, then the newest."""


class ManifestBranches(Branches):
    """`work` takes a bundle while it is opened."""

    def __init__(
        self, site: Site, git: BranchGit, mirrors: Manifests, *, objects: ObjectStore, secrets: Secrets, work: Path
    ) -> None:
        self._site, self._git, self._mirrors = site, git, mirrors
        self._objects, self._secrets, self._work = objects, secrets, work

    async def head(self, name: str) -> str | None:
        return await self._git.fetch(self._site.manifests_of(name))

    async def may_push(self, name: str) -> None:
        policy = self._site.manifests_of(name)
        await self._may_push(policy, await self._head(policy))

    async def way_back(self, name: str, commit: str) -> WayBack | None:
        policy = self._site.manifests_of(name)
        head = await self._head(policy)
        source = await self._found(policy, commit, head)
        if source is None:
            return None
        head_tree, tree = await self._git.root(name, head), await self._git.tree(policy, commit, onto=head)
        if tree != head_tree:
            await self._may_push(policy, head)
        return WayBack(
            name=name,
            head=head,
            head_tree=head_tree,
            commit=commit,
            tree=tree,
            changed=await self._git.changed(name, head, tree),
            later=len(await self._git.later(name, head, commit)),
            source=source,
        )

    async def manifests(self, name: str, commit: str) -> Tree:
        policy = self._site.manifests_of(name)
        if not await self._git.has(name, commit):
            await self._git.fetch(policy)
        return read(await self._git.files(name, commit, policy.path))

    async def alike(self, name: str, one: str, other: str) -> bool:
        policy = self._site.manifests_of(name)
        if not (await self._git.has(name, one) and await self._git.has(name, other)):
            await self._git.fetch(policy)
        if not (await self._git.has(name, one) and await self._git.has(name, other)):
            return False
        return await self._git.folder(policy, one) == await self._git.folder(policy, other)

    async def carried(self, name: str, mark: str, *, since: str) -> Carried | None:
        head = await self._git.fetch(self._site.manifests_of(name))
        if head is None or not await self._git.has(name, since):
            return None
        made = [commit for commit, found in await self._git.later(name, head, since) if found == mark]
        return Carried(commit=made[0], tree=await self._git.root(name, made[0]), head=head) if made else None

    async def carry(self, name: str, *, over: str, like: str, tree: str, mark: str, subject: str) -> str:
        policy = self._site.manifests_of(name)
        head = await self._git.fetch(policy)
        if head != over:
            raise PreconditionError([moved(policy, head, over)])
        if await self._found(policy, like, head) is None:  # this worker may be another one than the planner
            raise UserError(f"Commit `{like[:12]}` is not to be had any more. Plan again.")
        made = await self._git.tree(policy, like, onto=over)
        if made != tree:
            raise VerificationError(f"Going back to `{like[:12]}` gives `{made[:12]}`, but `{tree[:12]}` was signed.")
        commit = await self._git.commit(name, tree=tree, parent=over, subject=subject, mark=mark)
        if not await self._git.move(policy, commit, over=over):
            raise PreconditionError([moved(policy, await self._git.fetch(policy), over)])
        await self._git.fetch(policy)
        return commit

    async def _head(self, policy: ManifestsPolicy) -> str:
        head = await self._git.fetch(policy)
        if head is None:
            raise UserError(
                f"Branch `{policy.branch}` of `{policy.url}` is gone. `/dr manifests status` has the commands that "
                "give it back."
            )
        return head

    async def _may_push(self, policy: ManifestsPolicy, head: str) -> None:
        if not policy.push:
            raise UserError(f"The plan file gives `{policy.name}` no `push`, so the bot pushes nothing there.")
        await self._secrets.resolve(policy.push)
        await self._git.may_push(policy, head)

    # ------------------------------------------------------------ where a commit is

    async def _found(self, policy: ManifestsPolicy, commit: str, head: str) -> str | None:
        """It is in the mirror of this machine when this returns; None when it is nowhere."""
        if await self._git.contains(policy.name, head, commit):
            return "the repository"
        if await self._git.has(policy.name, commit):
            return "the mirror"
        usable = [each.manifest for each in await self._mirrors.bundles(policy.name) if each.problem is None]
        fit = [each for each in usable if each.commit == commit]
        for bundle in [*fit, *(each for each in usable if each not in fit)][:BUNDLES]:
            if await self._opened(policy, bundle, commit):
                return f"bundle `{bundle.commit[:12]}`"
        return None

    async def _opened(self, policy: ManifestsPolicy, bundle: BundleManifest, commit: str) -> bool:
        if not policy.identity:
            raise UserError(
                f"Commit `{commit[:12]}` is not in `{policy.url}`, and its bundles are opened by custodians alone: "
                "`/dr manifests status` has the commands."
            )
        identity = Identity(await self._secrets.resolve(policy.identity), policy.identity)
        identity.check_opens(bundle.commit[:12], bundle.recipients)
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="returned-", dir=self._work) as folder:
            stored, plain = Path(folder, "stored"), Path(folder, "mirror.bundle")
            sha256 = hashlib.sha256()
            with await asyncio.to_thread(stored.open, "xb") as target:
                async for block in self._objects.get_stream(bundle.bucket, bundle.key):
                    sha256.update(block)
                    await asyncio.to_thread(target.write, block)
            if sha256.hexdigest() != bundle.sha256:
                raise VerificationError(f"Bundle `{bundle.commit[:12]}` of `{policy.name}` is not as it was signed.")
            plain_sha256 = await asyncio.to_thread(_decrypt, identity, stored, plain, bundle.commit[:12])
            if plain_sha256 != bundle.plain_sha256:
                raise VerificationError(f"Bundle `{bundle.commit[:12]}` of `{policy.name}` holds something else.")
            return await self._git.take(policy.name, plain, commit)


def moved(policy: ManifestsPolicy, head: str | None, over: str) -> str:
    """Somebody has pushed."""
    now = "gone" if head is None else f"at `{head[:12]}`"
    return f"branch `{policy.branch}` of `{policy.url}` is {now}, not at `{over[:12]}` as planned"


def _decrypt(identity: Identity, stored: Path, plain: Path, name: str) -> str:
    with stored.open("rb") as source, plain.open("xb") as target:
        identity.decrypt(source, target, name)
    with plain.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
