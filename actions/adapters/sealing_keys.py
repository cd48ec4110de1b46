"""The keys of the SealedSecrets controller, out of its Secrets.

The controller marks them with the label `sealedsecrets.bitnami.com/sealed-secrets-key`, whose value is `active` for the
keys it may seal with; a new one is made every 30 days by default and old ones are kept, because they open what was
sealed with them (bitnami-labs/sealed-secrets, README, "Secret Rotation").
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from actions.adapters.kubernetes_session import Resource, Session
from actions.adapters.kubernetes_sessions import Connect, Sessions
from actions.errors import PermanentError, UserError
from actions.escrow import SealingKey, SealingKeys
from actions.ports import Secrets
from actions.site import Site

Json = dict[str, Any]

LABEL = "sealedsecrets.bitnami.com/sealed-secrets-key"
SECRETS = Resource("", "v1", "secrets")
KEPT = ("name", "namespace", "labels", "annotations")
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

    async def _found(self, cluster: str) -> list[Json]:
        known = self._site.clusters.get(cluster)
        if known is None or not known.sealed_secrets:
            raise UserError(
                f"The plan file names no controller of SealedSecrets for cluster `{cluster}`. Give its namespace as "
                "`sealed_secrets`."
            )
        namespace = known.sealed_secrets
        return await self._sessions.run(cluster, lambda session: session.list(SECRETS, namespace, labels=LABEL))


def _key(found: Json) -> SealingKey:
    metadata = found["metadata"]
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(found["data"]["tls.crt"]))
    except (KeyError, ValueError) as error:
        # The text of the error may quote what it could not read.
        raise PermanentError(f"The sealing key `{metadata['name']}` has no certificate. Look at its Secret.") from error
    return SealingKey(
        name=metadata["name"],
        fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        made_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        active=metadata["labels"][LABEL] == "active",
    )


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
