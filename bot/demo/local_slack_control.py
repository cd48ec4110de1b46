"""A hand in the local Slack: does what people do in the page, and looks at what they would see.

Two ways in, both without a password: HTTP under `/_control/` and the page's own websocket `/ui`. Shapes as of
local-slack 0.1.8. A call returns when the bot has acknowledged, since local-slack waits for that.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import aiohttp

from actions.errors import PermanentError, TemporaryError

# What Slack calls an object: keys and kinds are Slack's own, so it stays a dict.
Json = dict[str, Any]
PATIENCE = timedelta(seconds=15)


class LocalSlackError(PermanentError):
    """The local Slack refused, or what was looked for is not there."""


@dataclass(frozen=True)
class Message:
    """A message as a channel holds it. `ephemeral_to` is the only account that sees it, if any."""

    raw: Json

    @property
    def ts(self) -> str:
        return str(self.raw["ts"])

    @property
    def channel(self) -> str:
        return str(self.raw["channel"])

    @property
    def user(self) -> str:
        return str(self.raw.get("user", ""))

    @property
    def text(self) -> str:
        return str(self.raw.get("text", ""))

    @property
    def blocks(self) -> list[Json]:
        return list(self.raw.get("blocks") or [])

    @property
    def thread_ts(self) -> str | None:
        return self.raw.get("thread_ts")

    @property
    def ephemeral_to(self) -> str | None:
        return self.raw.get("ephemeral_to")

    def all_text(self) -> str:
        """The text and every text inside the blocks, for looking for words."""
        return "\n".join([self.text, *texts(self.blocks)])

    def element(self, action_id: str) -> Json:
        """The button or menu with this action_id, together with its `block_id`."""
        found = element_in(self.blocks, action_id)
        if found is None:
            raise LocalSlackError(f"message {self.ts} has no `{action_id}`, only {sorted(action_ids(self.blocks))}")
        return found


@dataclass(frozen=True)
class ViewOutcome:
    """What the bot answered to a submitted view: errors by block_id, or the stack of views that is open now."""

    errors: Mapping[str, str] = field(default_factory=dict)
    open_views: tuple[Json, ...] = ()


class LocalSlackControl:
    """Use with `async with`. All methods raise LocalSlackError when the local Slack refuses, TemporaryError when late.

    The local Slack has ONE stack of open modals for the whole workspace: two accounts cannot have one open at a time.
    """

    def __init__(self, page_url: str) -> None:
        self._url = page_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._ui: aiohttp.ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._views: list[Json] = []
        self._homes: dict[str, dict[str, Json]] = {}
        self._view_events = 0
        self._errors: tuple[int, Json] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        try:
            self._ui = await self._session.ws_connect(f"{self._url}/ui", max_msg_size=0)
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._session.close()
            raise TemporaryError(f"the local Slack at {self._url} does not answer") from error
        first = await self._ui.receive_json()
        self._views = list(first["state"]["modalStack"])
        self._homes = dict(first["state"]["homeViews"])
        self._reader = asyncio.create_task(self._read(self._ui))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._ui is not None:
            await self._ui.close()
        if self._session is not None:
            await self._session.close()

    # ------------------------------------------------------------ what people do

    async def message(self, user: str, channel: str, text: str, *, thread_ts: str | None = None) -> Message:
        """Say something. POST /_control/message {channel, user, text, thread_ts?}."""
        body = {"channel": channel, "user": user, "text": text}
        answer = await self._post("message", body | ({"thread_ts": thread_ts} if thread_ts else {}))
        return Message(answer["message"])

    async def command(self, user: str, channel: str, text: str) -> None:
        """Type a slash command, such as `/dr status`. POST /_control/command {channel, user, command, text}."""
        command, _, arguments = text.partition(" ")
        await self._post("command", {"channel": channel, "user": user, "command": command, "text": arguments})

    async def click(self, user: str, message: Message, action_id: str) -> None:
        """Press the button with this action_id on a message."""
        await self.interact(user, message, message.element(action_id))

    async def select(self, user: str, message: Message, action_id: str, value: str) -> None:
        """Choose the option with this value in a static select or an overflow menu on a message."""
        element = message.element(action_id)
        for option in element.get("options", []):
            if option["value"] == value:
                await self.interact(user, message, {**element, "selected_option": option})
                return
        raise LocalSlackError(f"`{action_id}` on message {message.ts} has no option `{value}`")

    async def interact(self, user: str, message: Message, action: Json) -> None:
        """Send one action as it is.

        POST /_control/interact {channel, messageTs, user, action: {type, action_id, block_id, value?, text?,
        selected_option?, selected_options?, selected_date?}}.
        """
        body = {"channel": message.channel, "messageTs": message.ts, "user": user, "action": action}
        await self._post("interact", body)

    async def click_in_view(self, user: str, channel: str, action: Json) -> None:
        """Press a button inside a modal or Home tab; `channel` is any. The bot gets it WITHOUT `view`, unlike Slack."""
        await self._say({"t": "block_action", "channel": channel, "messageTs": "", "user": user, "action": action})

    async def reaction(self, user: str, message: Message, name: str, *, present: bool = True) -> None:
        """Add or remove an emoji. POST /_control/reaction {channel, ts, user, name, present}."""
        body = {"channel": message.channel, "ts": message.ts, "user": user, "name": name, "present": present}
        await self._post("reaction", body)

    async def open_home(self, user: str) -> None:
        """Open the bot's Home tab. POST /_control/open-home {user}."""
        await self._post("open-home", {"user": user})

    async def submit_view(
        self, user: str, values: Mapping[str, Mapping[str, Json]], *, within: timedelta = PATIENCE
    ) -> ViewOutcome:
        """Fill in and submit the view on top, and give what the bot answered.

        `values` is {block_id: {action_id: {"type": "plain_text_input", "value": "x"}}}; a select's part is
        {"type": "static_select", "selected_option": {...}}. Inputs left out are empty. A `views.update` of the bot
        that arrives before its answer counts as the answer: the local Slack does not tell them apart.
        """
        if not self._views:
            raise LocalSlackError("no view is open")
        before = self._view_events
        await self._say({"t": "view_submit", "user": user, "values": values})
        await self._until(lambda: self._view_events > before, within, "no answer to the submitted view")
        if self._errors is not None and self._errors[0] > before:
            return ViewOutcome(errors=self._errors[1], open_views=tuple(self._views))
        return ViewOutcome(open_views=tuple(self._views))

    async def close_view(self, user: str) -> None:
        """Close all views; the bot hears of the one on top if it asked to (notify_on_close)."""
        await self._say({"t": "view_close", "user": user})
        await self._until(lambda: not self._views, PATIENCE, "the views did not close")

    # ------------------------------------------------------------ what people see

    async def messages(self, channel: str) -> list[Message]:
        """Every message of a channel (id), ephemeral ones too, oldest first. GET /_control/messages/CHANNEL."""
        answer = await self._get(f"messages/{channel}")
        return [Message(raw) for raw in answer["messages"]]

    async def log(self) -> list[Json]:
        """The last 1000 exchanges: {id, time, direction: to_bot|from_bot|internal, kind, summary, detail}."""
        answer = await self._get("log")
        return list(answer["log"])

    async def state(self) -> Json:
        """{workspace, apps, users, channels}; a direct message is a channel with `is_im`."""
        return await self._get("state")

    async def channel_named(self, name: str) -> str | None:
        """The id of a channel, which the bot may have made."""
        for channel in (await self.state())["channels"]:
            if channel["name"] == name.removeprefix("#"):
                return str(channel["id"])
        return None

    @property
    def open_views(self) -> tuple[Json, ...]:
        """The stack of open modals; the last is on top."""
        return tuple(self._views)

    def home(self, user: str) -> Json | None:
        """The Home tab that the bot has published for this account."""
        return next(iter(self._homes.get(user, {}).values()), None)

    async def wait_message(
        self, channel: str, wanted: Callable[[Message], bool], *, within: timedelta = PATIENCE, what: str = "message"
    ) -> Message:
        """The newest message of the channel for which `wanted` is true, as soon as there is one."""
        found: Message | None = None
        limit = asyncio.get_running_loop().time() + within.total_seconds()
        while found is None:
            heard = await self.messages(channel)
            found = next((message for message in reversed(heard) if wanted(message)), None)
            if found is None and asyncio.get_running_loop().time() > limit:
                last = heard[-1].all_text()[:300] if heard else "nothing"
                raise TemporaryError(f"no {what} in {channel} within {within.total_seconds():g} s; the last is: {last}")
            if found is None:
                await asyncio.sleep(0.05)
        return found

    async def wait_view(self, wanted: Callable[[Json], bool] = lambda _: True, *, within: timedelta = PATIENCE) -> Json:
        """The view on top, as soon as it is a wanted one (a loading view may come first)."""
        await self._until(lambda: bool(self._views) and wanted(self._views[-1]), within, "no such view opened")
        return self._views[-1]

    async def wait_connected(self, *, within: timedelta = PATIENCE) -> None:
        """Return when the bot has answered one Socket Mode greeting, that is, when it can be spoken to."""
        limit = asyncio.get_running_loop().time() + within.total_seconds()
        while not await self._connected():
            if asyncio.get_running_loop().time() > limit:
                raise TemporaryError(f"no bot connected within {within.total_seconds():g} s")
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------ inside

    async def _connected(self) -> bool:
        async with self._http().ws_connect(f"{self._url}/ui", max_msg_size=0) as ui:
            first = await ui.receive_json()
        return any(app["connected"] for app in first["state"]["apps"])

    async def _read(self, ui: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in ui:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(frame.data)
            async with self._changed:
                self._take(event)
                self._changed.notify_all()

    def _take(self, event: Json) -> None:
        match event["t"]:
            case "view":
                self._views = list(event["stack"])
                self._view_events += 1
            case "view_errors":
                self._view_events += 1
                self._errors = (self._view_events, dict(event["errors"]))
            case "home":
                self._homes.setdefault(event["user"], {})[event["appId"]] = event["view"]

    async def _until(self, true: Callable[[], bool], within: timedelta, late: str) -> None:
        try:
            async with asyncio.timeout(within.total_seconds()), self._changed:
                await self._changed.wait_for(true)
        except TimeoutError as error:
            raise TemporaryError(f"{late} within {within.total_seconds():g} s") from error

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise LocalSlackError("the control of the local Slack is used outside its `async with`")
        return self._session

    async def _say(self, event: Json) -> None:
        if self._ui is None:
            raise LocalSlackError("the control of the local Slack is used outside its `async with`")
        await self._ui.send_json(event)

    async def _post(self, path: str, body: Json) -> Json:
        return await self._call("POST", path, body)

    async def _get(self, path: str) -> Json:
        return await self._call("GET", path, None)

    async def _call(self, method: str, path: str, body: Json | None) -> Json:
        try:
            async with self._http().request(method, f"{self._url}/_control/{path}", json=body) as answer:
                said: Json = await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TemporaryError(f"the local Slack at {self._url} does not answer") from error
        if said.get("ok") is False:
            raise LocalSlackError(f"the local Slack refused {path}: {said.get('error')}")
        return said


def texts(value: object) -> list[str]:
    """Every `text` string inside blocks, in order."""
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    if isinstance(value, dict):
        own = [value["text"]] if isinstance(value.get("text"), str) else []
        return own + [text for part in value.values() for text in texts(part)]
    return []


def action_ids(blocks: list[Json]) -> set[str]:
    return {element["action_id"] for element in _elements(blocks) if "action_id" in element}


def element_in(blocks: list[Json], action_id: str) -> Json | None:
    """The element with this action_id, with the `block_id` of its block."""
    return next((element for element in _elements(blocks) if element.get("action_id") == action_id), None)


def _elements(blocks: list[Json]) -> list[Json]:
    found = []
    for block in blocks:
        inside = [*block.get("elements", []), block.get("accessory"), block.get("element")]
        found += [{"block_id": block.get("block_id"), **part} for part in inside if isinstance(part, dict)]
    return found
