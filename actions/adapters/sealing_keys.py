"""The keys of the SealedSecrets controller, out of its Secrets.

The controller marks them with the label `sealedsecrets.bitnami.com/sealed-secrets-key`, whose value is `active` for the
keys it may seal with; a new one is made every 30 days by default and old ones are kept, because they open what was
sealed with them (bitnami-labs/sealed-secrets, README, "Secret Rotation").
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from actions.adapters.kubernetes_session import Resource, Session, StaleError
from actions.adapters.kubernetes_sessions import Connect, Sessions
from actions.errors import PermanentError, TemporaryError, UserError, VerificationError
from actions.escrow import SealingKey, SealingKeys
from actions.ports import Secrets
from actions.site import Site

Json = dict[str, Any]

LABEL = "sealedsecrets.bitnami.com/sealed-secrets-key"
SECRETS = Resource("", "v1", "secrets")
KEPT = ("name", "namespace", "labels", "annotations")
PROBE = "drbot-may-it-create"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class ClusterSealingKeys(SealingKeys):
    """All clusters of the site."""

    def __init__(self, site: Site, secrets: Secrets, *, connect: Connect = Session.open) -> None:
        self._site = site
        self._sessions = Sessions(site, secrets, connect=connect)

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        self._sessions.close()

    async def keys(self, cluster: str) -> Sequence[SealingKey]:
        return sorted(map(_key, await self._found(cluster)), key=lambda key: key.made_at, reverse=True)

    async def export(self, cluster: str) -> bytes:
        items = [_bare(found) for found in await self._found(cluster)]
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}).encode()

    async def may_add(self, cluster: str) -> None:
        namespace = self._namespace(cluster)
        probe = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": PROBE, "namespace": namespace}}
        with contextlib.suppress(StaleError):  # there is one of that name: the right is there too
            await self._sessions.run(cluster, lambda session: session.create(SECRETS, namespace, probe, dry_run=True))

    async def add(self, cluster: str, exported: bytes, fingerprints: Collection[str]) -> None:
        namespace = self._namespace(cluster)
        held = {_fingerprint(item): item for item in json.loads(exported)["items"]}
        if not set(fingerprints) <= held.keys():
            raise VerificationError(f"The escrow lacks sealing keys of `{cluster}` that it is said to hold.")
        there = {key.fingerprint for key in await self.keys(cluster)}
        for fingerprint in sorted(set(fingerprints) - there):
            await self._create(cluster, namespace, held[fingerprint], fingerprint)

    async def _create(self, cluster: str, namespace: str, item: Json, fingerprint: str) -> None:
        name = str(item["metadata"]["name"])
        for tried in (name, f"{name}-{fingerprint[:8]}"):
            metadata = {**item["metadata"], "name": tried, "namespace": namespace}
            body = {**_bare(item), "metadata": {key: metadata[key] for key in KEPT if metadata.get(key)}}
            try:
                await self._sessions.run(cluster, partial(_created, namespace=namespace, body=body))
            except StaleError:
                continue
            except TemporaryError:
                raise TemporaryError(f"Cluster `{cluster}` failed while a sealing key was created.") from None
            except PermanentError:
                # The server may quote what it refuses.
                raise PermanentError(
                    f"Cluster `{cluster}` refused the sealing key `{tried}`. Give it back by hand: "
                    "`/dr secrets status` has the commands."
                ) from None
            return
        raise PermanentError(
            f"`{namespace}` of cluster `{cluster}` has other Secrets under the names `{name}` and "
            f"`{name}-{fingerprint[:8]}`. Look what they are."
        )

    def _namespace(self, cluster: str) -> str:
        known = self._site.clusters.get(cluster)
        if known is None or not known.sealed_secrets:
            raise UserError(
                f"The plan file names no controller of SealedSecrets for cluster `{cluster}`. Give its namespace as "
                "`sealed_secrets`."
            )
        return known.sealed_secrets

    async def _found(self, cluster: str) -> list[Json]:
        namespace = self._namespace(cluster)
        return await self._sessions.run(cluster, lambda session: session.list(SECRETS, namespace, labels=LABEL))


def _key(found: Json) -> SealingKey:
    metadata = found["metadata"]
    return SealingKey(
        name=metadata["name"],
        fingerprint=_fingerprint(found),
        made_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        active=metadata["labels"][LABEL] == "active",
    )


def _created(session: Session, *, namespace: str, body: Json) -> None:
    session.create(SECRETS, namespace, body)


def _fingerprint(found: Json) -> str:
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(found["data"]["tls.crt"]))
    except (KeyError, ValueError) as error:
        # The text of the error may quote what it could not read.
        name = found["metadata"]["name"]
        raise PermanentError(f"The sealing key `{name}` has no certificate. Look at its Secret.") from error
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _bare(found: Json) -> Json:
    """What a new cluster needs; uid, version and owner are those of the old one."""
    metadata = {name: found["metadata"][name] for name in KEPT if found["metadata"].get(name)}
    if "annotations" in metadata:
        metadata["annotations"] = {
            name: value for name, value in metadata["annotations"].items() if name != LAST_APPLIED
        }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": found.get("type", "kubernetes.io/tls"),
        "metadata": metadata,
        "data": found.get("data", {}),
    }
