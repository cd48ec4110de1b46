"""What a plan looks at before it says what it will do: servers, databases, workloads, as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import CatalogueEntry, DatabaseFacts, Ports, ServerFacts, WorkloadFacts
from actions.site import BackupPolicy, Database, Frozen, Service, WorkloadRef
from actions.steps.facts import closed_for_good
from actions.steps.phrases import size

DISK_MARGIN = 1 << 30
"""Room beside the copy for WAL and for what else grows meanwhile, in bytes."""


class Application(Frozen):
    """A service and its workloads: those found, in stop order, and those that are not there."""

    service: Service
    workloads: tuple[WorkloadFacts, ...]
    missing: tuple[WorkloadRef, ...]


class Target(Frozen):
    """A server that a dump may be loaded into."""

    server: ServerFacts
    databases: tuple[DatabaseFacts, ...]
    host: str | None = None  # what applications connect to, where the plan file names it
    closed: bool = False  # by a promotion

    def database(self, name: str) -> DatabaseFacts | None:
        return next((facts for facts in self.databases if facts.name == name), None)


class Scene(Frozen):
    """Everything a restore plan is made from."""

    key: str  # the database by the plan file
    database: Database
    policy: BackupPolicy
    endpoint: str | None  # of the bucket the backup is in
    entry: CatalogueEntry
    home: Target | None  # None: the database's own server does not answer
    home_error: str
    spare: Target | None
    application: Application | None
    suspect: bool  # the request says that the server is
    elsewhere: str  # why production's own server is not used; empty when it is
    config_value: str | None  # what the application's ConfigMap says now
    now: datetime

    @property
    def production(self) -> DatabaseFacts | None:
        return None if self.home is None else self.home.database(self.database.name)

    @property
    def home_address(self) -> str:
        return "" if self.home is None else self.home.server.address

    @property
    def on_spare(self) -> bool:
        return bool(self.elsewhere) and self.spare is not None

    @property
    def target(self) -> Target:
        """Where the dump is loaded."""
        target = self.spare if self.on_spare else self.home
        if target is None:
            raise PermanentError(f"No server to restore `{self.key}` on.")
        return target

    @property
    def repointable(self) -> bool:
        """Whether the application can be pointed at the spare server."""
        place = config_place(self.application)
        return self.on_spare and place is not None and bool(self.target.host or self.target.server.address)

    @property
    def disk_needed(self) -> int:
        """Bytes: the database as it was dumped, a third more for indexes built in another order, and the margin."""
        return disk_needed(self.entry)


def disk_needed(entry: CatalogueEntry) -> int:
    return entry.manifest.database_bytes * 13 // 10 + DISK_MARGIN


async def application_of(ports: Ports, service: str) -> Application:
    """Read the workloads of a service; one that is not there is listed as missing, not an error."""
    known = ports.site.service(service)
    found: list[WorkloadFacts] = []
    missing: list[WorkloadRef] = []
    for ref in known.workloads:
        facts = await ports.cluster.workload(ref)
        if facts is None:
            missing.append(ref)
        else:
            found.append(facts)
    return Application(service=known, workloads=tuple(found), missing=tuple(missing))


async def look(ports: Ports, key: str, entry: CatalogueEntry, *, instance_suspect: bool) -> Scene:
    """Read what a restore of this backup needs to know. Raises UserError when there is no server to restore on."""
    database = ports.site.database(key)
    home, home_error = await _home(ports, database)
    elsewhere = _elsewhere(database, entry, home, instance_suspect=instance_suspect)
    spare = None
    if elsewhere and database.spare_server is not None:
        spare = await target_of(ports, database.spare_server)
    if home is None and spare is None:
        raise UserError(
            f"Server `{database.server}` does not answer ({home_error}) and the plan file names no spare server for "
            f"`{key}`. Bring the server back, or add `spare_server` to the plan file."
        )
    application = None if database.service is None else await application_of(ports, database.service)
    return Scene(
        key=key,
        database=database,
        policy=ports.site.backup(key),
        endpoint=ports.site.endpoint_of(entry.manifest.stored.bucket),
        entry=entry,
        home=home,
        home_error=home_error,
        spare=spare,
        application=application,
        suspect=instance_suspect,
        elsewhere=elsewhere,
        config_value=None if spare is None else await _config_value(ports, application),
        now=ports.clock.now(),
    )


async def target_of(ports: Ports, server: str) -> Target:
    """A server with its databases."""
    facts = await ports.postgres.server(server)
    known = ports.site.servers.get(server)
    return Target(
        server=facts,
        databases=tuple(await ports.postgres.databases(server)),
        host=None if known is None else known.host,
        closed=await closed_for_good(ports, server),
    )


async def _home(ports: Ports, database: Database) -> tuple[Target | None, str]:
    try:
        return await target_of(ports, database.server), ""
    except (TemporaryError, PermanentError) as error:
        # A server that does not answer is what a restore is for: the plan then says so and goes elsewhere.
        return None, str(error)


def _elsewhere(database: Database, entry: CatalogueEntry, home: Target | None, *, instance_suspect: bool) -> str:
    if home is None:
        return f"Server `{database.server}` does not answer."
    if instance_suspect:
        return f"Server `{database.server}` is suspect, as the request says."
    free, needed = home.server.free_bytes, disk_needed(entry)
    if free is not None and free < needed:
        return f"Server `{database.server}` has {size(free)} of disk free, a copy needs {size(needed)}."
    return ""


async def _config_value(ports: Ports, application: Application | None) -> str | None:
    place = config_place(application)
    if application is None or place is None:
        return None
    cluster, namespace, name = place
    return (await ports.cluster.config(cluster, namespace, name)).get(application.service.config_key)


def config_place(application: Application | None) -> tuple[str, str, str] | None:
    """Cluster, namespace and name of the ConfigMap with the database host, where the plan file names one."""
    if application is None or application.service.config_map is None or not application.service.workloads:
        return None
    first = application.service.workloads[0]
    return first.cluster, first.namespace, application.service.config_map


def host_value(address: str, like: str) -> str:
    """An address `host:port` as the ConfigMap writes hosts: with the port only where it had one."""
    host, separator, _ = address.rpartition(":")
    return address if ":" in like or not separator else host


def others_work(databases: Sequence[DatabaseFacts], name: str) -> tuple[DatabaseFacts, ...]:
    """Databases that plans before this one made or set aside for the database of this name."""
    prefixes = (f"{name}_restore_", f"{name}_quarantine_", f"{name}_adopt_")
    return tuple(facts for facts in databases if facts.name.startswith(prefixes))
