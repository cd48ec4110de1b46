"""From a proven copy to an application that works on it: stop, close, swap by name, start, check."""

from __future__ import annotations

from actions.contract import Step
from actions.ports import DatabaseFacts, WorkloadFacts
from actions.site import DatabaseRef, Frozen
from actions.steps.application import CheckApplication
from actions.steps.connected import SeeConnected
from actions.steps.databases import CloseDatabase, GiveName, SwapDatabases
from actions.steps.gitops import ResumeGitOps, SuspendGitOps, controllers_of
from actions.steps.naming import live_mark, placeholder_mark, quarantine_mark
from actions.steps.scene import Application
from actions.steps.writers import StartWriters, StopWriters, writers_of


class Switch(Frozen):
    """The steps of one switch, in the names of one plan."""

    plan_id: str
    home: DatabaseRef  # production
    production: DatabaseFacts | None  # None: it is gone, or its server does not answer
    target: DatabaseRef  # where the application finds its database afterwards
    system_id: str  # of the target's server
    copy_name: str  # the copy on the target's server until it is swapped in
    copy_mark: str
    aside: str  # what production is called once it is set aside
    owner: str
    application: Application | None
    workloads: tuple[WorkloadFacts, ...]  # that are stopped meanwhile
    moved_to: str = ""  # the application's new database host (`host:port` or a host), where it is pointed elsewhere

    def beside(self) -> list[Step]:
        """On production's own server."""
        steps = [*self.stop(), *self.close(), self.swap(), *self.start()]
        controllers = controllers_of(self.workloads)
        if controllers:
            # The restore is complete and checked by then; whoever resumes by hand need not hold it up.
            steps.append(ResumeGitOps(controllers=controllers, mark=self.plan_id, optional=True))
        return steps

    def stop(self) -> list[Step]:
        steps: list[Step] = []
        controllers, writers = controllers_of(self.workloads), writers_of(self.workloads)
        if controllers:
            steps.append(SuspendGitOps(controllers=controllers, mark=self.plan_id))
        if writers:
            steps.append(StopWriters(writers=writers, mark=self.plan_id))
        return steps

    def close(self) -> list[Step]:
        production = self.production
        if production is None:
            return []
        return [CloseDatabase(target=self.home, oid=production.oid, was_open=production.allows_connections)]

    def swap(self) -> Step:
        server, name = self.target
        if self.production is None:
            return GiveName(
                server=server,
                current=name,
                copy_name=self.copy_name,
                aside=self.aside,
                owner=self.owner,
                placeholder_mark=placeholder_mark(self.plan_id),
                copy_mark=self.copy_mark,
                live_mark=live_mark(self.plan_id),
            )
        return SwapDatabases(
            server=server,
            current=name,
            copy_name=self.copy_name,
            aside=self.aside,
            old_oid=self.production.oid,
            old_mark=self.production.mark,
            live_mark=live_mark(self.plan_id),
            mark=quarantine_mark(self.plan_id),
            copy_mark=self.copy_mark,
        )

    def start(self) -> list[Step]:
        steps: list[Step] = []
        writers = writers_of(self.workloads)
        if writers:
            steps.append(StartWriters(writers=writers, mark=self.plan_id))
        application = self.application
        if application is None:
            return steps
        connection, health_url = application.service.database_dsn, application.service.health_url
        if self.moved_to and health_url is not None:
            # Its connection, as it is given here, still names the old host. The application itself is the better
            # witness of where it was pointed; without it, its connection is tried with the new host.
            connection = None
        if connection is not None or health_url is not None:
            steps.append(
                CheckApplication(
                    service=application.service.name,
                    target=self.target,
                    system_id=self.system_id,
                    # The oids of another server may happen to be equal; its system id is not.
                    old_oid=None if self.production is None or self.moved_to else self.production.oid,
                    connection=connection,
                    health_url=health_url,
                    address="" if connection is None else self.moved_to,
                )
            )
        if self.moved_to:
            steps.append(
                SeeConnected(
                    service=application.service.name,
                    target=self.target,
                    address=self.moved_to,
                    left=self.home,
                    connection=application.service.database_dsn,
                    health_url=health_url,
                    workloads=tuple(found.ref for found in self.workloads),
                    optional=True,  # the application works by then
                )
            )
        return steps
