"""A Slack workspace on this machine: the npm package `local-slack-linux-x64`, with the demo's accounts.

It is laxer than Slack (`docs.slack.dev` is the judge, not it) and **listens on all interfaces**, whatever it is told;
its control API asks for no password. So tokens are random at each start, and the demo says so. Facts below are those
of version 0.1.8.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from actions.adapters.embedded_postgres import port_is_free
from actions.adapters.programs import Program
from actions.errors import TemporaryError, UserError
from bot.demo.local_slack_control import LocalSlackControl
from bot.demo.people import ACCOUNTS, Account
from bot.demo.ports import free_ports

PACKAGE = "local-slack-linux-x64"
BINARY_SETTING = "DRBOT_LOCAL_SLACK"
APP_ID = "A0DRBOT01"
BOT_USER_ID = "U0DRBOT01"
TEAM_ID = "T0PRISMORA"


@dataclass(frozen=True, kw_only=True)
class Channel:
    id: str
    name: str
    members: tuple[str, ...]


OPS = Channel(id="C0OPS", name="ops", members=tuple(account.slack_id for account in ACCOUNTS))
INCIDENTS = Channel(id="C0INCIDENTS", name="incidents", members=tuple(account.slack_id for account in ACCOUNTS))
GENERAL = Channel(id="C0GENERAL", name="general", members=tuple(account.slack_id for account in ACCOUNTS))
CHANNELS = (OPS, INCIDENTS, GENERAL)


@dataclass(frozen=True, kw_only=True, repr=False)
class Tokens:
    """What the bot must be given. Random, since the server can be reached from the network."""

    bot: str
    app: str
    signing_secret: str

    @classmethod
    def random(cls) -> "Tokens":
        return cls(
            bot=f"xoxb-{secrets.token_hex(24)}",
            app=f"xapp-1-{APP_ID}-{secrets.token_hex(24)}",
            signing_secret=secrets.token_hex(16),
        )


class LocalSlack:
    """One workspace. `async with` starts it and ends it; it ends with this process, even after `kill -9` (Linux).

    Socket Mode by default; with `request_url` it posts signed requests there instead. Nothing is kept between starts.
    """

    bot_user_id = BOT_USER_ID
    app_id = APP_ID
    team_id = TEAM_ID

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        accounts: Sequence[Account] = ACCOUNTS,
        channels: Sequence[Channel] = CHANNELS,
        request_url: str | None = None,
        bot_name: str = "drbot",
        start_timeout: timedelta = timedelta(seconds=20),
    ) -> None:
        """`port` is a wish: when it is taken, a free one is chosen."""
        self.directory = directory.absolute()
        self.port = port or 0
        self.accounts = tuple(accounts)
        self.channels = tuple(channels)
        self.tokens = Tokens.random()
        self._domain = f"superprismora-{secrets.token_hex(3)}"
        self._request_url = request_url
        self._bot_name = bot_name
        self._start_timeout = start_timeout
        self._program: Program | None = None

    @property
    def page_url(self) -> str:
        """The address for a browser, where a person can act as any account."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def api_url(self) -> str:
        """The base URL for slack-sdk, with the slash at its end that it needs."""
        return f"{self.page_url}api/"

    @property
    def log(self) -> Path:
        return self.directory / "local-slack.log"

    @property
    def pid(self) -> int | None:
        return self._program.pid if self._program is not None else None

    def control(self) -> LocalSlackControl:
        """A hand in the workspace, to be entered with `async with`."""
        return LocalSlackControl(self.page_url)

    async def start(self) -> None:
        """Start it and return when it answers. Raises UserError when it is not installed, TemporaryError if late."""
        binary = local_slack_binary()
        self.directory.mkdir(parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._start_timeout.total_seconds()
        while loop.time() < limit:
            if not self.port or not port_is_free(self.port):
                [self.port] = free_ports(1)
            self._program = Program.start(
                [
                    *(binary, "--config", self._write_config(), "--port", str(self.port)),
                    *("--base-host", "127.0.0.1", "--files-dir", self.directory / "files"),
                ],
                cwd=self.directory,
                log=self.log,
            )
            if await self._ready(until=limit):
                return
            await self.stop()
            self.port = 0  # most likely taken
        raise TemporaryError(
            f"the local Slack did not answer within {self._start_timeout.total_seconds():g} s; see `{self.log}`"
        )

    async def stop(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            await asyncio.to_thread(program.stop, grace=timedelta(seconds=1))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _ready(self, *, until: float) -> bool:
        clock = asyncio.get_running_loop().time
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while self._program is not None and self._program.code() is None and clock() < until:
                try:
                    async with session.get(f"{self.page_url}_control/state") as answer:
                        # Another program, even another local Slack, may hold the port; ours knows its domain.
                        if answer.status == 200 and self._domain in await answer.text():
                            return True
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.05)
        return False

    def _write_config(self) -> Path:
        path = self.directory / "workspace.json"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump(self._config(), stream)
        return path

    def _config(self) -> dict[str, object]:
        app: dict[str, object] = {
            "appId": APP_ID,
            "botUserId": BOT_USER_ID,
            "botName": self._bot_name,
            "botToken": self.tokens.bot,
            "appToken": self.tokens.app,
            "signingSecret": self.tokens.signing_secret,
            "mode": "events" if self._request_url else "socket",
        }
        if self._request_url:
            app["requestUrl"] = self._request_url
        return {
            "workspace": {"name": "Super Prismora", "domain": self._domain, "teamId": TEAM_ID},
            "apps": [app],
            "users": [
                {"id": a.slack_id, "name": a.login, "real_name": a.name, "email": a.email, "tz": "Etc/UTC"}
                for a in self.accounts
            ],
            "channels": [{"id": c.id, "name": c.name, "members": [*c.members, BOT_USER_ID]} for c in self.channels],
        }


def local_slack_binary() -> Path:
    """The program: from DRBOT_LOCAL_SLACK, or from node_modules here or in a folder above."""
    named = os.environ.get(BINARY_SETTING)
    if named:
        if not os.access(named, os.X_OK):
            raise UserError(f"{BINARY_SETTING} names `{named}`, which is no program; correct it or leave it out")
        return Path(named)
    for folder in (*Path(__file__).resolve().parents, Path.cwd(), *Path.cwd().parents):
        found = folder / "node_modules" / PACKAGE / "bin" / "local-slack"
        if found.exists():
            return found
    raise UserError(f"the local Slack is not installed; run `make setup`, or set {BINARY_SETTING} to its program")
