"""Manifests repositories: a bundle of each state that was seen, and the cluster beside what they say.

<prefix>manifests/<name>/<commit>-<refs>/mirror.bundle.age   all branches, tags and kept commits, age
<prefix>manifests/<name>/<commit>-<refs>/manifest.json       signed, written last
<prefix>manifests/<name>/state.json                          the newest look, signed, written over

`<commit>` is the head of the plan's branch, `<refs>` tells one set of branches, tags and kept commits from every other.
Bundles of earlier versions have no `-<refs>`.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from actions.backup.crypto import Recipients, signing_key
from actions.backup.signed_document import SignedDocument, opened
from actions.backup.stages import BLOCK
from actions.commits import commit_of
from actions.drift import compare, kinds_of, namespaces_of
from actions.errors import UserError, VerificationError
from actions.manifest_files import images_of, read
from actions.manifests import (
    BundleEntry,
    BundleManifest,
    Drift,
    Git,
    LiveObjects,
    Manifests,
    MirrorState,
    Rewrite,
)
from actions.ports import Clock, Cluster, GitOps, ObjectStore, Secrets
from actions.site import ManifestsPolicy, Site

MANIFEST, BUNDLE, STATE = "manifest.json", "mirror.bundle.age", "state.json"
KIND, STATE_KIND = "manifests-bundle", "manifests-state"
REWRITES = 20
REFS = 16  # hex digits that tell one state of the repository from the others


class ManifestMirrors(Manifests):
    """`work` takes a bundle while it is made."""

    def __init__(
        self,
        site: Site,
        git: Git,
        live: LiveObjects,
        *,
        cluster: Cluster,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
        work: Path,
    ) -> None:
        self._site, self._git, self._live, self._cluster = site, git, live, cluster
        self._objects, self._secrets, self._clock, self._work = objects, secrets, clock, work

    async def state(self, name: str) -> MirrorState | None:
        policy = self._site.manifests_of(name)
        key = f"{_folder(policy)}{STATE}"
        if await self._objects.head(policy.bucket, key) is None:
            return None
        what = f"The state of the mirror `{name}`"
        stored = await self._objects.get(policy.bucket, key)
        state = opened(stored, STATE_KIND, MirrorState, policy.trusted_signers, what=what)
        if state.name != name:
            raise VerificationError(f"{what} is that of `{state.name}`: somebody put it there.")
        return state

    async def bundles(self, name: str) -> Sequence[BundleEntry]:
        policy = self._site.manifests_of(name)
        folder = _folder(policy)
        listed = {facts.key: facts.bytes for facts in await self._objects.list(policy.bucket, folder)}
        states = [key.removeprefix(folder).partition("/")[0] for key in listed if key.endswith(f"/{MANIFEST}")]
        found = [await self._entry(policy, each, listed.get(f"{folder}{each}/{BUNDLE}")) for each in states]
        return sorted(found, key=lambda entry: entry.manifest.made_at, reverse=True)

    async def mirror(self, mirror: str, name: str, *, requested_by: str = "") -> MirrorState:
        policy, before = self._site.manifests_of(name), await self.state(name)
        if before is not None and before.mirror == mirror:
            return before
        head = await self._git.fetch(policy)
        if head is None and before is None:
            raise UserError(
                f"Repository `{policy.url}` has no branch `{policy.branch}`. Correct `branch` in the plan file."
            )
        rewrites = () if before is None else before.rewrites
        if before is not None and head is not None and not await self._git.contains(name, head, before.head):
            rewritten = Rewrite(before=before.head, after=head, seen_at=self._clock.now())
            rewrites = (rewritten, *rewrites)[:REWRITES]
        last = head or (before.head if before is not None else "")
        if head is not None or await self._git.has(name, last):  # other branches go on where that one is gone
            await self._bundle(policy, last, requested_by)
        state = MirrorState(
            name=name,
            mirror=mirror,
            checked_at=self._clock.now(),
            head=last,
            gone=head is None,
            rewrites=rewrites,
        )
        await self._objects.put(
            policy.bucket, f"{_folder(policy)}{STATE}", await self._signed(policy, STATE_KIND, state)
        )
        return state

    async def drift(self, name: str) -> Drift:
        policy = self._site.manifests_of(name)
        if not policy.cluster:
            raise UserError(
                f"The manifests `{name}` are of no cluster that is there, so nothing can differ from them. Where there "
                "is one, name it as `cluster` in the plan file."
            )
        state = await self._mirrored(name)
        owners = await self._owners(policy)
        commit, basis = await self._applied(policy, state, owners)
        tree = read(await self._git.files(name, commit, policy.path))
        live = await self._live.read(
            policy.cluster, kinds_of(tree.objects), namespaces_of(tree.objects, policy.namespace)
        )
        found = compare(tree.objects, live, namespace=policy.namespace)
        return Drift(
            name=name,
            cluster=policy.cluster,
            commit=commit,
            basis=basis,
            checked_at=state.checked_at,
            compared=len(tree.objects),
            entries=found.entries,
            notes=found.notes,
            not_understood=(*tree.not_understood, *found.unknown),
            controllers=tuple(
                f"{each.tool} {each.kind} `{each.namespace}/{each.name}`: {_told(each)}" for each in owners
            ),
        )

    async def images(self, name: str) -> Sequence[str]:
        policy, state = self._site.manifests_of(name), await self._mirrored(name)
        if not await self._git.has(name, state.head):
            await self._git.fetch(policy)
        return images_of(read(await self._git.files(name, state.head, policy.path)).objects)

    # ------------------------------------------------------------ a bundle

    async def _bundle(self, policy: ManifestsPolicy, head: str, requested_by: str) -> None:
        seen = f"{head}-{(await self._git.refs(policy.name))[:REFS]}"
        place, key = f"{_folder(policy)}{seen}/{MANIFEST}", f"{_folder(policy)}{seen}/{BUNDLE}"
        if await self._objects.head(policy.bucket, place) is not None:
            there = await self._objects.head(policy.bucket, key)
            if (await self._entry(policy, seen, None if there is None else there.bytes)).problem is None:
                return
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bundle-", dir=self._work) as folder:
            plain, stored = Path(folder, "mirror.bundle"), Path(folder, BUNDLE)
            await self._git.bundle(policy, head, plain)
            await asyncio.to_thread(_encrypt, Recipients(policy.recipients), plain, stored)
            plain_sha256, sha256 = await asyncio.to_thread(_hash, plain), await asyncio.to_thread(_hash, stored)
            size = (await asyncio.to_thread(stored.stat)).st_size
            await self._objects.put_stream(policy.bucket, key, _blocks(stored))
        returned = hashlib.sha256()
        async for block in self._objects.get_stream(policy.bucket, key):
            returned.update(block)
        if returned.hexdigest() != sha256:
            raise VerificationError(f"Bucket `{policy.bucket}` gives back other bytes than were stored as `{key}`.")
        manifest = BundleManifest(
            name=policy.name,
            commit=head,
            url=policy.url,
            branch=policy.branch,
            made_at=self._clock.now(),
            bucket=policy.bucket,
            key=key,
            bytes=size,
            sha256=sha256,
            plain_sha256=plain_sha256,
            recipients=policy.recipients,
            requested_by=requested_by,
        )
        await self._objects.put(policy.bucket, place, await self._signed(policy, KIND, manifest))

    async def _signed(self, policy: ManifestsPolicy, kind: str, body: MirrorState | BundleManifest) -> bytes:
        signer = signing_key(await self._secrets.resolve(policy.signing_key), policy.signing_key)
        return SignedDocument.sign(kind, body, signer).bytes()

    async def _entry(self, policy: ManifestsPolicy, seen: str, size: int | None) -> BundleEntry:
        commit = seen.partition("-")[0]
        body = await self._objects.get(policy.bucket, f"{_folder(policy)}{seen}/{MANIFEST}")
        what = f"The manifest of bundle `{commit[:12]}`"
        try:
            manifest = opened(body, KIND, BundleManifest, policy.trusted_signers, what=what)
        except VerificationError as error:
            return BundleEntry(manifest=_nothing(policy, commit), problem=str(error))
        here = manifest.key.endswith(f"/{seen}/{BUNDLE}")
        if not here or (manifest.name, manifest.commit) != (policy.name, commit):
            problem = f"{what} belongs to `{manifest.commit[:12]}` of `{manifest.name}`: somebody put it there."
            return BundleEntry(manifest=manifest, problem=problem)
        if size != manifest.bytes:
            problem = f"The object of bundle `{commit[:12]}` is missing or changed."
            return BundleEntry(manifest=manifest, problem=problem)
        return BundleEntry(manifest=manifest)

    # ------------------------------------------------------------ drift

    async def _mirrored(self, name: str) -> MirrorState:
        state = await self.state(name)
        if state is None:
            raise UserError(f"There is no mirror of `{name}` yet. Make it: `/dr manifests mirror {name}`.")
        return state

    async def _owners(self, policy: ManifestsPolicy) -> list[GitOps]:
        """The controllers of the workloads that the plan names in this cluster, each once."""
        found: dict[tuple[str, str, str], GitOps] = {}
        refs = {ref for service in self._site.services.values() for ref in service.workloads}
        for ref in sorted(ref for ref in refs if ref.cluster == policy.cluster):
            workload = await self._cluster.workload(ref)
            if workload is not None and workload.gitops is not None:
                owner = workload.gitops
                found[owner.kind, owner.namespace, owner.name] = owner
        return [found[key] for key in sorted(found)]

    async def _applied(self, policy: ManifestsPolicy, state: MirrorState, owners: Sequence[GitOps]) -> tuple[str, str]:
        """The commit to compare with, and why that one."""
        applied = {commit for owner in owners if (commit := commit_of(owner.revision))}
        for commit in sorted({*applied, state.head}):
            if not await self._git.has(policy.name, commit):
                await self._git.fetch(policy)  # the mirror on this machine is a cache
                break
        if len(applied) == 1:
            [commit] = applied
            if await self._git.has(policy.name, commit):
                return commit, "The commit that the cluster's controller says it has applied."
            return state.head, (
                f"The controller has applied `{commit[:12]}`, which is not in the mirror: it is of another "
                "repository, or was never pushed. Compared with the head of the mirror instead."
            )
        why = "the controllers have applied different commits" if applied else "no controller tells what it has applied"
        return state.head, f"The head of the mirror, since {why}."


def _told(owner: GitOps) -> str:
    held = " (suspended)" if owner.suspended else ""
    return f"{owner.status or 'says nothing'}{held}, at `{owner.revision[:60] or 'no commit'}`"


def _folder(policy: ManifestsPolicy) -> str:
    return f"{policy.prefix}manifests/{policy.name}/"


def _encrypt(recipients: Recipients, plain: Path, stored: Path) -> None:
    with plain.open("rb") as source, stored.open("xb") as target:
        recipients.encrypt(source, target)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


async def _blocks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as stream:
        while block := await asyncio.to_thread(stream.read, BLOCK):
            yield block


def _nothing(policy: ManifestsPolicy, commit: str) -> BundleManifest:
    """What stands in the list for a manifest that says nothing that can be believed."""
    return BundleManifest(
        name=policy.name,
        commit=commit,
        url=policy.url,
        branch=policy.branch,
        made_at=datetime.fromtimestamp(0, UTC),
        bucket=policy.bucket,
        key="",
        bytes=0,
        sha256="",
        plain_sha256="",
        recipients=(),
    )
