"""The Slack role: receives by Socket Mode or HTTP, delivers the outbox, says when it last heard from Slack."""

from __future__ import annotations

import asyncio
import errno
import itertools
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import aiohttp
import structlog
from aiohttp import web
from slack_bolt.adapter.socket_mode.async_handler import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from actions.errors import PermanentError, TemporaryError, UserError
from bot.ports import Desk, OutboxSource
from bot.redaction import Mask
from bot.router import Router
from bot.slack import accounts, deeds
from bot.slack.app import build_app
from bot.slack.door import HttpDoor
from bot.slack.gateway import Identity, LostFeature, WebGateway, translated
from bot.slack.middleware import Counter, bolt_logger
from bot.slack.sender import POST_EVERY, UPDATE_EVERY, OutboxSender

log = structlog.get_logger()

CONNECTIONS = 2
"""Slack refreshes a connection every few hours, and the client closes the old one first; the other one bridges it."""

EVENTS_PATH = "/slack/events"

APP_TOKEN_EVERY = 15
"""How many looks at the bot's token come on one at the app's."""

AGAIN = timedelta(seconds=60)
"""How long a start that Slack refused is waited with before the next one, and how often the token is looked at."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def app_of(app_token: str) -> str:
    """The app an app-level token belongs to, which it names: `xapp-1-A0123456789-...`."""
    found = re.fullmatch(r"xapp-[0-9]+-(A[A-Z0-9]+)-.*", app_token)
    return "" if found is None else found[1]


class SlackRuntime:
    """One process with the Slack tokens."""

    def __init__(
        self,
        *,
        bot_token: str,
        app_token: str | None,
        signing_secret: str | None,
        api_url: str,
        socket_mode: bool,
        http_host: str,
        http_port: int,
        desk: Desk,
        outbox: OutboxSource,
        team: str | None,
        mask: Mask | None = None,
        shared: Collection[str] = (),
        now: Callable[[], datetime] = utc_now,
        post_every: float = POST_EVERY,
        update_every: float = UPDATE_EVERY,
        again: timedelta = AGAIN,
    ) -> None:
        """`post_every` and `update_every` are the seconds between two messages to one channel. Raises UserError for
        settings that cannot work."""
        if socket_mode and not app_token:
            raise UserError("SLACK_APP_TOKEN is not set, and Socket Mode needs it; set it, or use `http` mode.")
        if not socket_mode and not signing_secret:
            # Bolt would start and answer every request with an error.
            raise UserError("SLACK_SIGNING_SECRET is not set, and HTTP mode needs it; set it, or use `socket` mode.")
        self._bot_token = bot_token
        self._app_token = app_token or ""
        self._signing_secret = signing_secret
        self._api_url = api_url if api_url.endswith("/") else api_url + "/"
        self._socket_mode = socket_mode
        self._http = (http_host, http_port)
        self._desk = desk
        self._outbox = outbox
        self._team = team
        self._now = now
        self._again = again
        self._pace = {"post_every": post_every, "update_every": update_every}
        self._gateway = WebGateway(token=bot_token, base_url=self._api_url, mask=mask, shared=shared)
        self._handlers: list[AsyncSocketModeHandler] = []
        self._door: HttpDoor | None = None
        self.port: int | None = None
        """The port HTTP mode listens on, once it does."""
        self.ready = asyncio.Event()
        """Set while requests are received; Socket Mode connects on its own time."""
        self.trouble = ""
        """Why nobody can use Slack now, in one sentence; empty while nothing is known to be wrong."""

    @property
    def lost(self) -> tuple[LostFeature, ...]:
        """What this workspace does not allow, as far as it was tried."""
        return self._gateway.lost

    @property
    def last_seen(self) -> datetime | None:
        """When a connection last answered a ping; None in HTTP mode and before the first one. A process whose
        `last_seen` is minutes old is deaf, whatever its sockets say."""
        times = [getattr(handler.client, "last_ping_pong_time", None) for handler in self._handlers]
        heard = [time for time in times if time is not None]
        return datetime.fromtimestamp(max(heard), tz=UTC) if heard else None

    async def run_beside_others(self) -> None:
        """Serve until cancelled, in a process whose other roles must go on: what ends `run` at its start is logged,
        kept as `trouble` and tried again."""
        while True:
            try:
                await self.run()
            except UserError as error:
                self.trouble = str(error)
                log.warning("slack_does_not_start", error=str(error), again_s=self._again.total_seconds())
            await asyncio.sleep(self._again.total_seconds())

    async def run(self) -> None:
        """Serve until cancelled. Raises PermanentError or UserError when Slack does not take the tokens."""
        identity = await self._identity()
        counter = Counter(desk=self._desk, gateway=self._gateway, router=Router(), identity=identity, now=self._now)
        app = build_app(counter, token=self._bot_token, base_url=self._api_url, signing_secret=self._signing_secret)
        sender = OutboxSender(self._outbox, self._gateway, now=self._now, **self._pace)
        async with self._receiving(app):
            self.ready.set()
            self.trouble = ""
            log.info("slack_ready", team=identity.team, socket_mode=self._socket_mode)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._look_at_token())
                tasks.create_task(sender.run())
                tasks.create_task(deeds.resume(counter))
                tasks.create_task(accounts.watch(self._gateway, self._desk, identity.team))
                if self._door is not None:
                    tasks.create_task(self._door.keep_count())

    async def _identity(self) -> Identity:
        """Ask Slack who we are. An outage is waited for; a refused token is not."""
        while True:
            try:
                identity = await self._gateway.identity()
                if self._socket_mode:
                    await self._try_connection()
            except TemporaryError as error:
                log.warning("slack_not_reachable", error=str(error))
                await asyncio.sleep(min(error.retry_after, timedelta(seconds=30)).total_seconds())
                continue
            except PermanentError as error:
                raise UserError(f"Slack does not take the tokens: {error} Check them in the app's settings.") from error
            if self._team not in (None, identity.team, identity.enterprise):
                raise UserError(
                    f"The bot token belongs to workspace `{identity.team}`, the plan file names `{self._team}`; "
                    "use the token of that workspace."
                )
            return identity.model_copy(update={"app": app_of(self._app_token) or await self._gateway.app()})

    async def _look_at_token(self) -> None:
        """A token can be revoked at any time, and the connections of Socket Mode would try again without a word. The
        app's is tried seldom: Slack allows one a minute, which a connection that ends needs for itself."""
        for look in itertools.count(1):
            await asyncio.sleep(self._again.total_seconds())
            try:
                await self._gateway.identity()
                if self._socket_mode and (look % APP_TOKEN_EVERY == 0 or self.trouble):
                    await self._try_connection()
            except TemporaryError:
                continue  # an outage says nothing about the token
            except PermanentError as error:
                self.trouble = f"Slack does not take the tokens any more: {error}"
                log.warning("slack_token_refused", error=str(error))
            else:
                self.trouble = ""

    async def _try_connection(self) -> None:
        """The client of slack-sdk retries a refused app token for ever, without a word; this call does not."""
        client = AsyncWebClient(self._app_token, base_url=self._api_url)
        try:
            await client.apps_connections_open(app_token=self._app_token)
        except SlackApiError as error:
            raise translated("apps.connections.open", error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TemporaryError(f"Slack did not answer apps.connections.open ({type(error).__name__}).") from error

    @asynccontextmanager
    async def _receiving(self, app: AsyncApp) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if self._socket_mode:
                for _ in range(CONNECTIONS):
                    await stack.enter_async_context(self._connection(app))
            else:
                await stack.enter_async_context(self._server(app))
            yield

    @asynccontextmanager
    async def _connection(self, app: AsyncApp) -> AsyncIterator[None]:
        handler = AsyncSocketModeHandler(
            app,
            self._app_token,
            logger=bolt_logger(),
            web_client=AsyncWebClient(self._app_token, base_url=self._api_url),
        )
        self._handlers.append(handler)
        # Connecting goes on for ever while Slack is away, so nobody waits for it.
        connecting = asyncio.create_task(handler.connect_async(), name="slack-connect")  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await handler.close_async()  # type: ignore[no-untyped-call]
            self._handlers.remove(handler)

    @asynccontextmanager
    async def _server(self, app: AsyncApp) -> AsyncIterator[None]:
        self._door = HttpDoor(app, self._desk, secret=self._signing_secret or "", now=self._now)
        runner = web.AppRunner(self._door.web_app(EVENTS_PATH), access_log=None)
        await runner.setup()
        host, port = self._http
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                raise UserError(_not_listening(host, port, error)) from error
            self.port = int(runner.addresses[0][1])
            yield
        finally:
            await runner.cleanup()


def _not_listening(host: str, port: int, error: OSError) -> str:
    """Why Slack's requests cannot be received here, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on `{host}` is used by another program. End that one, or set DRBOT_HTTP_PORT to a free port, "
            "and have the proxy in front send Slack's requests there."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Port {port} on `{host}` is not open to this account. Set DRBOT_HTTP_PORT to one from 1024 on."
    return (
        f"`{host}` cannot be listened on ({type(error).__name__}). Set DRBOT_HTTP_HOST to an address of this machine."
    )
