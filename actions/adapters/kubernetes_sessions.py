"""Open sessions to the clusters of the site, renewed when a server does not accept their credentials any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from actions.adapters.kubernetes_session import ExpiredError, Session
from actions.errors import UNKNOWN_NAME, RefusedError, UserError
from actions.ports import Secrets
from actions.site import Site

T = TypeVar("T")
Connect = Callable[[str, str, str | None], Session]


class Sessions:
    """One for each cluster. `connect` opens a session from cluster name, kubeconfig text and context."""

    def __init__(self, site: Site, secrets: Secrets, *, connect: Connect = Session.open) -> None:
        self._site = site
        self._secrets = secrets
        self._connect = connect
        self._open: dict[str, Session] = {}

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        while self._open:
            self._open.popitem()[1].close()

    async def run(self, cluster: str, work: Callable[[Session], T]) -> T:
        """Do blocking work on a session, in a thread. Raises UserError when the credentials are refused."""
        try:
            return await asyncio.to_thread(work, await self.session(cluster))
        except ExpiredError:
            # The kubeconfig may have been rotated since it was read: read it once more.
            self._forget(cluster)
        try:
            return await asyncio.to_thread(work, await self.session(cluster))
        except ExpiredError as error:
            self._forget(cluster)
            raise UserError(
                f"Cluster `{cluster}` does not accept the bot's credentials ({error}); renew its kubeconfig."
            ) from error

    async def session(self, cluster: str) -> Session:
        """Raises UserError for a cluster the plan file does not know."""
        access = self._site.clusters.get(cluster)
        if access is None:
            known = ", ".join(f"`{name}`" for name in sorted(self._site.clusters)) or "none"
            raise RefusedError(f"The plan file knows no cluster `{cluster}`. Known: {known}.", code=UNKNOWN_NAME)
        if cluster not in self._open:
            kubeconfig = await self._secrets.resolve(access.kubeconfig) if access.kubeconfig else ""
            opened = await asyncio.to_thread(self._connect, cluster, kubeconfig, access.context)
            if self._open.setdefault(cluster, opened) is not opened:
                opened.close()  # another task was quicker
        return self._open[cluster]

    def _forget(self, cluster: str) -> None:
        session = self._open.pop(cluster, None)
        if session is not None:
            session.close()
