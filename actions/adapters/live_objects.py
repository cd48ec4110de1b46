"""Whole objects of a cluster, of any kind it serves, for comparing them with manifests. Reads alone."""

from __future__ import annotations

from collections.abc import Sequence

from actions.adapters.kubernetes_session import Resource, Session
from actions.adapters.kubernetes_sessions import Connect, Sessions
from actions.errors import UserError
from actions.manifest_files import veiled
from actions.manifests import Json, KindName, Live, LiveObjects
from actions.ports import Secrets
from actions.site import Site


class ClusterObjects(LiveObjects):
    """All clusters of the site."""

    def __init__(self, site: Site, secrets: Secrets, *, connect: Connect = Session.open) -> None:
        self._sessions = Sessions(site, secrets, connect=connect)

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        self._sessions.close()

    async def read(self, cluster: str, kinds: Sequence[KindName], namespaces: Sequence[str]) -> Live:
        return await self._sessions.run(cluster, lambda session: _read(session, kinds, namespaces))


def _read(session: Session, kinds: Sequence[KindName], namespaces: Sequence[str]) -> Live:
    objects: list[Json] = []
    wide: list[KindName] = []
    unserved: list[KindName] = []
    refused: list[tuple[KindName, str]] = []
    served: dict[str, dict[str, tuple[Resource, bool]]] = {}
    for kind in kinds:
        group, _, version = kind.api_version.rpartition("/")
        if kind.api_version not in served:
            served[kind.api_version] = session.kinds(group, version)
        known = served[kind.api_version].get(kind.kind)
        if known is None:
            unserved.append(kind)
            continue
        resource, namespaced = known
        if not namespaced:
            wide.append(kind)
        try:
            for namespace in namespaces if namespaced else [None]:
                # A list leaves out what its items are.
                what = {"apiVersion": kind.api_version, "kind": kind.kind}
                objects += [veiled({**found, **what}) for found in session.list(resource, namespace)]
        except UserError as error:
            refused.append((kind, str(error)))
    return Live(objects=tuple(objects), cluster_wide=tuple(wide), unserved=tuple(unserved), refused=tuple(refused))
