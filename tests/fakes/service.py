"""The application's own view, as a test arranges it."""

from actions.ports import DatabaseRefSeen, ServiceCheck
from actions.site import DatabaseRef, SecretRef
from tests.fakes.postgres import MemoryPostgres


class MemoryServiceCheck(ServiceCheck):
    """`answers`: URL -> what the check says (None is well). `connections`: DSN reference -> the database it points to,
    looked up in the fake PostgreSQL at every call, so that a swap is seen.
    """

    def __init__(self, postgres: MemoryPostgres) -> None:
        self._postgres = postgres
        self.answers: dict[str, str | None] = {}
        self.connections: dict[SecretRef, DatabaseRef] = {}
        self.logins: dict[SecretRef, str] = {}  # DSN reference -> the role it logs in as
        self.addresses: dict[str, str] = {}  # host:port -> the server behind it, where that is not the host

    async def http(self, url: str) -> str | None:
        return self.answers.get(url)

    async def connection(self, dsn: SecretRef, *, at: str = "") -> DatabaseRefSeen | str:
        ref = self.connections.get(dsn)
        if ref is not None and at:
            ref = DatabaseRef(self.addresses.get(at, at.partition(":")[0]), ref.name)
        if ref is None:
            return f"the application's connection `{dsn}` is not set"
        server = self._postgres.servers.get(ref.server)
        if server is None or server.down:
            return f"the application's connection `{dsn}` was refused: no server"
        database = server.databases.get(ref.name)
        if database is None or not database.allows_connections:
            return f"the application's connection `{dsn}` was refused: no database `{ref.name}` that takes it"
        return DatabaseRefSeen(
            name=ref.name, oid=database.oid, system_id=server.system_id, in_recovery=server.in_recovery
        )

    async def login(self, dsn: SecretRef) -> str:
        return self.logins.get(dsn, "")
