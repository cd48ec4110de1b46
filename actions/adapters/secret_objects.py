"""Secrets with their values, out of a cluster and into it. Nothing of a value, and no word of a server that may quote
one, gets into a message."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

from actions.adapters.kubernetes_session import Resource, Session, StaleError
from actions.adapters.kubernetes_sessions import Connect, Sessions
from actions.errors import PermanentError, TemporaryError, VerificationError
from actions.ports import Secrets
from actions.secret_copies import Json, SecretObjects
from actions.site import Site

SECRETS = Resource("", "v1", "secrets")
PROBE = "drbot-may-it-create"


class ClusterSecrets(SecretObjects):
    """All clusters of the site."""

    def __init__(self, site: Site, secrets: Secrets, *, connect: Connect = Session.open) -> None:
        self._sessions = Sessions(site, secrets, connect=connect)

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        self._sessions.close()

    async def read(self, cluster: str, namespaces: Collection[str]) -> Sequence[Json]:
        def listed(session: Session) -> list[Json]:
            return [each for namespace in namespaces for each in session.list(SECRETS, namespace)]

        return await self._sessions.run(cluster, listed)

    async def write(self, cluster: str, item: Json, *, over: str, dry_run: bool = False) -> None:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        what = f"Secret `{namespace}/{name}` of cluster `{cluster}`"
        try:
            await self._sessions.run(cluster, lambda session: _write(session, item, over, dry_run=dry_run))
        except StaleError:
            raise VerificationError(f"{what} is another one than was looked at: somebody wrote it just now.") from None
        except TemporaryError:
            raise TemporaryError(f"{what}: the cluster failed while it was written.") from None
        except PermanentError:
            # The server may quote what it refuses.
            why = "it is immutable, of another type, or against a policy of the cluster"
            raise PermanentError(f"{what} is refused as it was: {why}.") from None

    async def may_write(self, cluster: str, namespace: str) -> None:
        probe = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": PROBE, "namespace": namespace}}

        def tried(session: Session) -> None:
            with contextlib.suppress(StaleError):  # there is one of that name: the right is there too
                session.create(SECRETS, namespace, probe, dry_run=True)
            session.allowed("patch", SECRETS, namespace, PROBE)

        await self._sessions.run(cluster, tried)


def _write(session: Session, item: Json, over: str, *, dry_run: bool) -> None:
    namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
    if not over:
        session.create(SECRETS, namespace, item, dry_run=dry_run)
        return
    version, _, uid = over.partition(" of ")
    found = next((each for each in session.list(SECRETS, namespace) if each["metadata"]["name"] == name), None)
    if found is None or (found["metadata"]["resourceVersion"], found["metadata"]["uid"]) != (version, uid):
        raise StaleError("it is another one")
    if (found.get("type") or "Opaque") != (item.get("type") or "Opaque"):
        raise PermanentError("another type")
    wanted = item.get("data") or {}
    # A merge leaves out nothing by itself. That nobody has written in between is for the server to see.
    gone = dict.fromkeys((found.get("data") or {}).keys() - wanted.keys())
    body = {"metadata": {"resourceVersion": version, "uid": uid}, "data": {**gone, **wanted}}
    session.patch(SECRETS, namespace, name, body, dry_run=dry_run)
