"""Secrets of the services that nothing else brings back, sealed in escrow: see `escrow_shelf`.

Who brings a Secret back is told by what its writer leaves on it: an owner (SealedSecrets, operators), the label of the
External Secrets Operator (https://external-secrets.io, since 0.9), the annotation of cert-manager, and the marks by
which Argo CD and Flux know their objects.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import rfc8785

from actions.backup.escrow_shelf import Shelf, Shelved, nothing, shelved_objects
from actions.backup.fingerprints import fingerprint, fingerprint_key
from actions.drift import LAST_APPLIED, SERVER_TYPES
from actions.errors import DrError, UserError, VerificationError
from actions.manifest_files import veiled
from actions.manifests import KindName, LiveObjects
from actions.ports import Clock, ObjectStore, Secrets
from actions.secret_copies import (
    FoundSecret,
    HeldSecret,
    Json,
    Returnable,
    SecretCopies,
    SecretCopyEntry,
    SecretCopyManifest,
    SecretObjects,
    SecretsNow,
)
from actions.site import EscrowPolicy, Site

FOLDER, CONTENT, KIND = "escrow-secrets", "secrets.age", "secret-copy"
SECRET, SEALED_SECRET = KindName("v1", "Secret"), KindName("bitnami.com/v1alpha1", "SealedSecret")
KEPT = ("name", "namespace", "labels", "annotations")
SEALING_KEY = "sealedsecrets.bitnami.com/sealed-secrets-key"
MARKS = {
    "reconcile.external-secrets.io/managed": "an ExternalSecret",
    "cert-manager.io/certificate-name": "a Certificate of cert-manager",
    "argocd.argoproj.io/tracking-id": "Git, by Argo CD",
    "argocd.argoproj.io/instance": "Git, by Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Git, by Flux",
    "helm.toolkit.fluxcd.io/name": "Git, by Flux",
    SEALING_KEY: "the escrow of sealing keys",
}
"""Label or annotation of a Secret -> what writes it anew."""


class EscrowedSecrets(SecretCopies):
    """All clusters of the site that services run in."""

    def __init__(
        self,
        site: Site,
        secret_objects: SecretObjects,
        live: LiveObjects,
        objects: ObjectStore,
        secrets: Secrets,
        clock: Clock,
    ) -> None:
        self._site, self._values, self._live = site, secret_objects, live
        self._secrets, self._clock = secrets, clock
        self._shelf = Shelf(
            site,
            objects,
            secrets,
            manifest=SecretCopyManifest,
            kind=KIND,
            folder=FOLDER,
            content=CONTENT,
            noun="sealed copy",
            by_hand="the plan of `/dr-restore recovery-point` has the command for each",
        )

    async def current(self, cluster: str) -> SecretsNow:
        # Values do not come so far: only their hashes do.
        live = await self._live.read(cluster, (SECRET, SEALED_SECRET), sorted(self._namespaces(cluster)))
        for kind, said in live.refused:
            if kind == SECRET:
                raise UserError(said)
        key = await self._key()
        sealed = {_path(each) for each in live.objects if each["kind"] == SEALED_SECRET.kind}
        found = [
            FoundSecret(
                **_held(each, cluster, key).model_dump(),
                by="a SealedSecret" if _path(each) in sealed else _brought_by(each),
            )
            for each in live.objects
            if each["kind"] == SECRET.kind and each.get("type") not in SERVER_TYPES
        ]
        return SecretsNow(secrets=tuple(sorted(found, key=lambda each: each.name)))

    async def entries(self, cluster: str) -> Sequence[SecretCopyEntry]:
        found = [self._entry(cluster, each) for each in await self._shelf.all(cluster)]
        return sorted(found, key=lambda entry: entry.manifest.made_at, reverse=True)

    async def find(self, cluster: str, copy_id: str) -> SecretCopyEntry | None:
        found = await self._shelf.find(cluster, copy_id)
        return None if found is None else self._entry(cluster, found)

    async def seal(
        self, copy_id: str, cluster: str, secrets: Collection[str], *, requested_by: str = ""
    ) -> SecretCopyManifest:
        there = await self._shelf.find(cluster, copy_id)
        if there is not None and there.manifest is not None and there.problem is None:
            return there.manifest
        paths = {_path_of(name) for name in secrets}
        items = await self._items(cluster, paths)
        lacking = paths - items.keys()
        if lacking:
            raise UserError(f"Cluster `{cluster}` has no Secret {', '.join(f'`{path}`' for path in sorted(lacking))}.")
        key = await self._key()
        held = [_held(veiled(items[path]), cluster, key) for path in sorted(items)]
        plain = json.dumps(
            {"apiVersion": "v1", "kind": "List", "items": [_bare(items[path]) for path in sorted(items)]}
        )
        stored = await self._shelf.store(cluster, copy_id, plain.encode())
        made = SecretCopyManifest(**stored, made_at=self._clock.now(), secrets=tuple(held), requested_by=requested_by)
        return await self._shelf.sign(made)

    async def check(self, cluster: str, copy_id: str, over: Mapping[str, str]) -> Returnable:
        held, key = await self._opened(cluster, copy_id), await self._key()
        contents: dict[str, str] = {}
        problems: dict[str, str] = {}
        for name, version in sorted(over.items()):
            item = held.get(_path_of(name))
            if item is None:
                problems[name] = f"Sealed copy `{copy_id}` does not hold it."
                continue
            contents[name] = _content(veiled(item), key)
            try:
                await self._values.write(cluster, item, over=version, dry_run=True)
            except DrError as error:
                problems[name] = str(error)
        return Returnable(contents=contents, problems=problems)

    async def give_back(self, cluster: str, copy_id: str, secret: str, *, over: str) -> None:
        item = (await self._opened(cluster, copy_id)).get(_path_of(secret))
        if item is None:
            raise VerificationError(f"Sealed copy `{copy_id}` does not hold `{secret}`.")
        await self._values.write(cluster, item, over=over)

    async def may_give_back(self, cluster: str) -> None:
        for namespace in sorted(self._namespaces(cluster)):
            await self._values.may_write(cluster, namespace)

    async def whole(self, cluster: str, copy_id: str) -> bool:
        found = await self._shelf.find(cluster, copy_id)
        if found is None or found.manifest is None or found.problem is not None:
            return False
        return await self._shelf.whole(found.manifest)

    async def remove(self, cluster: str, copy_id: str) -> None:
        await self._shelf.remove(cluster, copy_id)

    async def _opened(self, cluster: str, copy_id: str) -> dict[str, Json]:
        """What it holds, by namespace and name: it goes to the cluster and nowhere else."""
        _, plain = await self._shelf.open(cluster, copy_id)
        return {_path(item): item for item in json.loads(plain)["items"]}

    async def _items(self, cluster: str, paths: Collection[str]) -> dict[str, Json]:
        namespaces = {path.partition("/")[0] for path in paths}
        found = {_path(each): each for each in await self._values.read(cluster, sorted(namespaces))}
        return {path: each for path, each in found.items() if path in paths}

    async def _key(self) -> bytes:
        signer = self._shelf.policy.signing_key
        return fingerprint_key(await self._secrets.resolve(signer))

    def _namespaces(self, cluster: str) -> set[str]:
        refs = [ref for service in self._site.services.values() for ref in service.workloads]
        return {ref.namespace for ref in refs if ref.cluster == cluster}

    def _entry(self, cluster: str, found: Shelved[SecretCopyManifest]) -> SecretCopyEntry:
        bare = nothing(self._shelf.policy, cluster, found.id)
        manifest = found.manifest or SecretCopyManifest(**bare, secrets=())
        return SecretCopyEntry(manifest=manifest, problem=found.problem, trusted=found.trusted)


def copy_objects(policy: EscrowPolicy, cluster: str, copy_id: str) -> tuple[str, str]:
    """What one sealed copy is made of, by key in its bucket."""
    return shelved_objects(policy, FOLDER, CONTENT, cluster, copy_id)


def _brought_by(found: Json) -> str:
    """What writes it anew when it is lost; empty: nobody."""
    metadata = found["metadata"]
    owners: Iterable[Any] = metadata.get("ownerReferences") or ()
    for owner in owners:
        return f"{owner.get('kind')} {owner.get('name')}"
    marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return next((who for mark, who in MARKS.items() if mark in marks), "")


def _held(found: Json, cluster: str, key: bytes) -> HeldSecret:
    """Of a veiled object."""
    metadata = found["metadata"]
    return HeldSecret(
        name=f"Secret {cluster}/{_path(found)}",
        version=f"{metadata.get('resourceVersion', '')} of {metadata.get('uid', '')}",
        content=_content(found, key),
    )


def _content(veiled_one: Json, key: bytes) -> str:
    """What was put into it; not its labels, which others write as well."""
    said = rfc8785.dumps([veiled_one.get("type") or "Opaque", veiled_one.get("data") or {}])
    return fingerprint(key, said.decode())


def _bare(found: Json) -> Json:
    """What a new cluster needs; uid, version and owner are those of the old one."""
    metadata = {name: found["metadata"][name] for name in KEPT if found["metadata"].get(name)}
    if "annotations" in metadata:
        # `kubectl apply` writes the whole object into an annotation of it.
        metadata["annotations"] = {key: said for key, said in metadata["annotations"].items() if key != LAST_APPLIED}
    rest = {name: found[name] for name in ("type", "data", "immutable") if found.get(name)}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, **rest}


def _path(found: Json) -> str:
    return f"{found['metadata'].get('namespace')}/{found['metadata']['name']}"


def _path_of(name: str) -> str:
    """`shop/database` of `Secret main/shop/database`."""
    return name.partition(" ")[2].partition("/")[2]
