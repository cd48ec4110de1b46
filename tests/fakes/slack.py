"""A Slack on loopback that is stricter than Slack.

Unknown methods and arguments, invalid blocks, spent triggers and response URLs, messages faster than one a second and
updates of unknown messages are refused. Faults can be put in front of any method. Events go out signed (HTTP) or over
one of the open sockets (Socket Mode), as Slack sends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlencode

from aiohttp import WSMsgType, web
from slack_bolt.async_app import AsyncBoltRequest
from slack_sdk.signature import SignatureVerifier

from tests.fakes.block_rules import message_problems, view_problems

BOT_TOKEN = "xoxb-fake-bot"
APP_TOKEN = "xapp-fake-app"
SECRET = "fake-signing-secret"
TEAM = "T0FAKE"
BOT_USER = "U0BOT"
TRIGGER_S = 3.0
RESPONSE_USES = 5

ARGUMENTS: dict[str, set[str]] = {
    "auth.test": set(),
    "apps.connections.open": set(),
    "bots.info": {"bot"},
    "chat.postMessage": {
        "channel",
        "text",
        "blocks",
        "metadata",
        "thread_ts",
        "unfurl_links",
        "unfurl_media",
    },
    "chat.update": {"channel", "ts", "text", "blocks"},
    "chat.postEphemeral": {"channel", "user", "text", "blocks"},
    "chat.getPermalink": {"channel", "message_ts"},
    "views.open": {"trigger_id", "view"},
    "views.push": {"trigger_id", "view"},
    "views.update": {"view_id", "view"},
    "users.info": {"user", "include_locale"},
    "usergroups.users.list": {"usergroup", "include_disabled"},
    "conversations.info": {"channel"},
    "conversations.history": {"channel", "limit", "latest", "oldest", "inclusive", "include_all_metadata"},
    "conversations.replies": {"channel", "ts", "limit", "latest", "inclusive"},
    "conversations.create": {"name", "is_private"},
    "conversations.setTopic": {"channel", "topic"},
    "conversations.invite": {"channel", "users"},
    "pins.add": {"channel", "timestamp"},
    "files.getUploadURLExternal": {"filename", "length", "alt_txt", "snippet_type"},
    "files.completeUploadExternal": {"files", "channel_id", "initial_comment", "thread_ts", "channels"},
}


class RefusedError(Exception):
    """An answer with `ok: false`."""


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer: an error code, a status, silence, or an effect whose answer is lost."""

    error: str = ""
    status: int = 200
    retry_after: int | None = None
    lost: bool = False
    seconds: float = 0.0


@dataclass
class Message:
    channel: str
    ts: str
    text: str
    blocks: list[dict[str, Any]]
    user: str = BOT_USER
    metadata: dict[str, Any] | None = None
    thread_ts: str | None = None
    updates: int = 0


@dataclass
class FakeSlack:
    """`async with FakeSlack() as slack` serves at `slack.url`."""

    paced: bool = True
    missing: set[str] = field(default_factory=set)
    scopes: str | None = None  # what the token was granted, as every answer tells it; None: it does not
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, set[str]] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    whispers: list[dict[str, Any]] = field(default_factory=list)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pins: list[tuple[str, str]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    uninvited: dict[str, str] = field(default_factory=dict)  # account: why it cannot be invited
    invited: list[str] = field(default_factory=list)
    channels: dict[str, str] = field(default_factory=lambda: {"C0GENERAL": "general", "C0OPS": "ops"})
    shared: dict[str, str] = field(default_factory=dict)  # channel: how, such as is_ext_shared
    url: str = ""

    def __post_init__(self) -> None:
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._triggers: dict[str, float] = {}
        self._responses: dict[str, int] = {}
        self._posted_at: dict[str, float] = {}
        self._uploads: dict[str, bytes] = {}
        self._count = itertools.count(1)
        self._news = asyncio.Condition()
        self._sockets: list[web.WebSocketResponse] = []
        self._acks: dict[str, asyncio.Future[dict[str, Any]]] = {}
        for user, extra in (
            ("U0ANA", {}),
            ("U0BEN", {}),
            ("U0GUEST", {"is_restricted": True}),
            ("U0GONE", {"deleted": True}),
            ("U0ROBOT", {"is_bot": True}),
            ("U0ALIEN", {"team_id": "T0OTHER", "is_stranger": True}),
        ):
            self.users.setdefault(
                user, {"id": user, "team_id": TEAM, "name": user.lower(), "real_name": user.removeprefix("U0")} | extra
            )

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=10_000_000)
        app.router.add_route("*", "/api/{method}", self._api)
        app.router.add_post("/response/{id}", self._response)
        app.router.add_post("/upload/{id}", self._upload)
        app.router.add_get("/socket", self._socket)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._root = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.url = f"{self._root}/api/"
        return self

    async def __aexit__(self, *_: object) -> None:
        for socket in list(self._sockets):
            await socket.close()
        await self._runner.cleanup()

    # ------------------------------------------------------------ what a test does

    def fail(self, method: str, *faults: Fault) -> None:
        """Put faults in front of the next calls of a method."""
        self._faults[method] += faults

    def trigger(self) -> str:
        """A trigger id, good once and for three seconds."""
        name = f"trigger-{next(self._count)}"
        self._triggers[name] = time.monotonic() + TRIGGER_S
        return name

    def response_url(self) -> str:
        name = f"r{next(self._count)}"
        self._responses[name] = RESPONSE_USES
        return f"{self._root}/response/{name}"

    def said(self, text: str, *, channel: str = "C0OPS", user: str = "U0ANA", thread_ts: str | None = None) -> Message:
        """A message of a person."""
        message = Message(channel, self._ts(), text, [], user=user, thread_ts=thread_ts)
        self.messages.append(message)
        return message

    def heal(self, method: str) -> None:
        """Forget what was still to happen to this method."""
        self._faults[method].clear()

    async def until(self, happened: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until a call made it true; fails with the calls so far."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(happened)
        except TimeoutError:
            said = f"calls: {[name for name, _ in self.calls]}; whispers: {self.whispers}"
            raise AssertionError(f"did not happen; {said}") from None

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    # ------------------------------------------------------------ payloads, as Slack sends them

    def slash(self, command: str, text: str, *, user: str = "U0ANA", channel: str = "C0OPS") -> dict[str, Any]:
        return {
            "command": command,
            "text": text,
            "user_id": user,
            "user_name": user.lower(),
            "team_id": TEAM,
            "channel_id": channel,
            "response_url": self.response_url(),
            "trigger_id": self.trigger(),
            "api_app_id": "A0FAKE",
        }

    def click(
        self, action: str, value: str, *, message: Message | None = None, view: str | None = None, user: str = "U0BEN"
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": "block_actions",
            "api_app_id": "A0FAKE",
            "user": {"id": user, "team_id": TEAM},
            "team": {"id": TEAM},
            "trigger_id": self.trigger(),
            "actions": [
                {"type": "button", "action_id": action, "block_id": "b", "value": value, "action_ts": self._ts()}
            ],
        }
        if message is not None:
            body |= {
                "channel": {"id": message.channel},
                "message": {"ts": message.ts},
                "container": {"type": "message", "message_ts": message.ts, "channel_id": message.channel},
                "response_url": self.response_url(),
            }
        if view is not None:
            body |= {"view": self.views[view], "container": {"type": "view", "view_id": view}}
        return body

    def submission(self, view: str, *, user: str = "U0BEN", **values: str) -> dict[str, Any]:
        state = {name: {name: {"type": "plain_text_input", "value": value}} for name, value in values.items()}
        return {
            "type": "view_submission",
            "api_app_id": "A0FAKE",
            "user": {"id": user, "team_id": TEAM},
            "team": {"id": TEAM},
            "trigger_id": self.trigger(),
            "view": self.views[view] | {"state": {"values": state}},
        }

    def shortcut(self, callback: str, message: Message, *, user: str = "U0ANA") -> dict[str, Any]:
        return {
            "type": "message_action",
            "api_app_id": "A0FAKE",
            "callback_id": callback,
            "user": {"id": user, "team_id": TEAM},
            "team": {"id": TEAM},
            "channel": {"id": message.channel},
            "message": {"type": "message", "ts": message.ts, "text": message.text, "user": message.user},
            "message_ts": message.ts,
            "trigger_id": self.trigger(),
            "response_url": self.response_url(),
        }

    def reaction(self, name: str, message: Message, *, user: str = "U0ANA") -> dict[str, Any]:
        return {
            "type": "event_callback",
            "api_app_id": "A0FAKE",
            "team_id": TEAM,
            "event_id": f"Ev{next(self._count)}",
            "authorizations": [{"team_id": TEAM, "user_id": BOT_USER, "is_bot": True}],
            "event": {
                "type": "reaction_added",
                "user": user,
                "reaction": name,
                "item": {"type": "message", "channel": message.channel, "ts": message.ts},
                "item_user": message.user,
                "event_ts": self._ts(),
            },
        }

    # ------------------------------------------------------------ sockets

    async def connected(self, number: int = 1) -> None:
        await self.until(lambda: len(self._sockets) >= number)

    async def deliver(
        self, kind: str, payload: Mapping[str, Any], *, socket: int = 0, retry: int = 0
    ) -> dict[str, Any]:
        """Send an envelope to one socket and return what was acknowledged."""
        envelope = f"env-{next(self._count)}"
        self._acks[envelope] = asyncio.get_running_loop().create_future()
        frame = {"type": kind, "envelope_id": envelope, "payload": payload, "accepts_response_payload": True}
        if retry:
            frame |= {"retry_attempt": retry, "retry_reason": "timeout"}
        await self._sockets[socket].send_json(frame)
        try:
            async with asyncio.timeout(TRIGGER_S):
                return await self._acks[envelope]
        finally:
            del self._acks[envelope]

    async def drop_socket(self, number: int = 0) -> None:
        """Tell a client to go, then close, as at the hourly refresh."""
        socket = self._sockets[number]
        await socket.send_json({"type": "disconnect", "reason": "refresh_requested"})
        await socket.close()

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "hello", "num_connections": len(self._sockets) + 1})
        self._sockets.append(socket)
        await self._notify()
        try:
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    continue
                with contextlib.suppress(ValueError):
                    answer = json.loads(frame.data)
                    waiting = self._acks.get(answer.get("envelope_id", ""))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(answer.get("payload") or {})
        finally:
            self._sockets.remove(socket)
        return socket

    # ------------------------------------------------------------ the Web API

    async def _api(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        arguments = await _arguments(request)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or arguments.pop("token", "")
        arguments.pop("token", None)
        self.calls.append((method, arguments))
        fault = self._faults[method].pop(0) if self._faults[method] else None
        try:
            if fault is not None and not fault.lost:
                return await self._faulty(fault)
            answer = self._answer(method, token, arguments)
        except RefusedError as error:
            if str(error) == "ratelimited":
                return web.json_response(
                    {"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "1"}
                )
            return web.json_response({"ok": False, "error": error.args[0], "why": list(error.args[1:])})
        finally:
            await self._notify()
        if fault is not None and fault.lost:
            return await self._faulty(fault)
        return web.json_response(
            {"ok": True} | answer, headers={} if self.scopes is None else {"x-oauth-scopes": self.scopes}
        )

    async def _faulty(self, fault: Fault) -> web.StreamResponse:
        if fault.seconds:
            await asyncio.sleep(fault.seconds)
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        if fault.error:
            return web.json_response({"ok": False, "error": fault.error}, status=fault.status, headers=headers)
        return web.Response(status=fault.status if fault.status != 200 else 500, headers=headers)

    def _answer(self, method: str, token: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if method not in ARGUMENTS or method in self.missing:
            raise RefusedError("unknown_method")
        if token != (APP_TOKEN if method == "apps.connections.open" else BOT_TOKEN):
            raise RefusedError("invalid_auth")
        extra = set(arguments) - ARGUMENTS[method]
        if extra:
            raise RefusedError("invalid_arguments", f"unknown: {sorted(extra)}")
        handler: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self, "_" + method.replace(".", "_"))
        return handler(arguments)

    def _auth_test(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"team_id": TEAM, "user_id": BOT_USER, "bot_id": "B0BOT", "url": self._root}

    def _bots_info(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"bot": {"id": "B0BOT", "app_id": "A0FAKE"}}

    def _apps_connections_open(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"url": self._root.replace("http", "ws") + "/socket"}

    def _chat_postMessage(self, arguments: dict[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments)
        _judge(message_problems(arguments), "invalid_blocks")
        last = self._posted_at.get(channel)
        if self.paced and last is not None and time.monotonic() - last < 1.0:
            raise RefusedError("ratelimited")
        self._posted_at[channel] = time.monotonic()
        message = Message(
            channel,
            self._ts(),
            arguments["text"],
            arguments.get("blocks", []),
            metadata=arguments.get("metadata"),
            thread_ts=arguments.get("thread_ts"),
        )
        self.messages.append(message)
        return {"channel": channel, "ts": message.ts}

    def _chat_update(self, arguments: dict[str, Any]) -> dict[str, Any]:
        _judge(message_problems(arguments), "invalid_blocks")
        channel = self._channel(arguments)
        for message in self.messages:
            if (message.channel, message.ts, message.user) == (channel, arguments["ts"], BOT_USER):
                message.text, message.blocks = arguments["text"], arguments.get("blocks", [])
                message.updates += 1
                return {"channel": channel, "ts": message.ts}
        raise RefusedError("message_not_found")

    def _chat_postEphemeral(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._channel(arguments)
        if arguments["user"] not in self.users:
            raise RefusedError("user_not_in_channel")
        _judge(message_problems(arguments), "invalid_blocks")
        self.whispers.append(arguments)
        return {"message_ts": self._ts()}

    def _chat_getPermalink(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"permalink": f"https://fake.slack.com/archives/{arguments['channel']}/p{arguments['message_ts']}"}

    def _views_open(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._spend(arguments["trigger_id"])
        return self._keep_view(f"V{next(self._count)}", arguments["view"])

    def _views_push(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._views_open(arguments)

    def _views_update(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["view_id"] not in self.views:
            raise RefusedError("not_found")
        return self._keep_view(arguments["view_id"], arguments["view"])

    def _keep_view(self, name: str, view: dict[str, Any]) -> dict[str, Any]:
        _judge(view_problems(view), "invalid_arguments")
        self.views[name] = view | {"id": name, "hash": str(next(self._count))}
        return {"view": self.views[name]}

    def _users_info(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["user"] not in self.users:
            raise RefusedError("user_not_found")
        return {"user": self.users[arguments["user"]]}

    def _usergroups_users_list(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["usergroup"] not in self.groups:
            raise RefusedError("no_such_subteam")
        return {"users": sorted(self.groups[arguments["usergroup"]])}

    def _conversations_info(self, arguments: dict[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments)
        how = {self.shared[channel]: True} if channel in self.shared else {}
        return {"channel": {"id": channel, "name": self.channels[channel], "is_channel": True} | how}

    def _conversations_history(self, arguments: dict[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments)
        latest = arguments.get("latest")
        found = [item for item in self.messages if item.channel == channel and item.thread_ts is None]
        if latest:
            found = [item for item in found if item.ts <= latest]
        return {"messages": [_seen(item) for item in reversed(found)][: int(arguments.get("limit", 100))]}

    def _conversations_replies(self, arguments: dict[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments)
        found = [item for item in self.messages if item.channel == channel and item.ts == arguments["ts"]]
        return {"messages": [_seen(item) for item in found]}

    def _conversations_create(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["name"] in self.channels.values():
            raise RefusedError("name_taken")
        name = f"C0NEW{next(self._count)}"
        self.channels[name] = arguments["name"]
        return {"channel": {"id": name, "name": arguments["name"]}}

    def _conversations_setTopic(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"channel": {"id": self._channel(arguments)}}

    def _conversations_invite(self, arguments: dict[str, Any]) -> dict[str, Any]:
        for user in str(arguments["users"]).split(","):
            if user in self.uninvited:  # one of them, and nobody is invited
                raise RefusedError(self.uninvited[user])
        self.invited += str(arguments["users"]).split(",")
        return {"channel": {"id": self._channel(arguments)}}

    def _pins_add(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.pins.append((self._channel(arguments), arguments["timestamp"]))
        return {}

    def _files_getUploadURLExternal(self, arguments: dict[str, Any]) -> dict[str, Any]:
        name = f"F{next(self._count)}"
        return {"upload_url": f"{self._root}/upload/{name}", "file_id": name}

    def _files_completeUploadExternal(self, arguments: dict[str, Any]) -> dict[str, Any]:
        files = arguments["files"]
        for item in files:
            self.files.append(dict(item) | {"content": self._uploads[item["id"]], **arguments})
        return {"files": files}

    async def _upload(self, request: web.Request) -> web.Response:
        self._uploads[request.match_info["id"]] = await request.read()
        return web.Response(text="OK")

    async def _response(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if self._responses.get(name, 0) < 1:
            return web.Response(status=404, text="used_url")
        self._responses[name] -= 1
        payload = await request.json()
        problems = list(message_problems(payload))
        if problems:
            return web.Response(status=400, text="invalid_blocks: " + "; ".join(problems))
        self.whispers.append(payload)
        await self._notify()
        return web.Response(text="ok")

    def _channel(self, arguments: Mapping[str, Any]) -> str:
        channel = str(arguments["channel"])
        if channel not in self.channels:
            raise RefusedError("channel_not_found")
        return channel

    def _spend(self, trigger: str) -> None:
        if trigger not in self._triggers:
            raise RefusedError("exchanged_trigger_id")
        if time.monotonic() > self._triggers.pop(trigger):
            raise RefusedError("expired_trigger_id")

    def _ts(self) -> str:
        return f"{1_790_000_000 + next(self._count)}.{next(self._count):06d}"

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()


def signed(body: Mapping[str, Any], *, age: int = 0, secret: str = SECRET) -> AsyncBoltRequest:
    """A request as Slack would send it over HTTP."""
    raw, headers = signed_http(body, age=age, secret=secret)
    return AsyncBoltRequest(body=raw, headers={name: [value] for name, value in headers.items()})


def signed_http(body: Mapping[str, Any], *, age: int = 0, secret: str = SECRET) -> tuple[str, dict[str, str]]:
    """Raw body and headers: commands are a form, clicks are a form around JSON, events are JSON."""
    if "command" in body:
        raw, kind = urlencode(body), "application/x-www-form-urlencoded"
    elif body.get("type") in ("event_callback", "url_verification"):
        raw, kind = json.dumps(body), "application/json"
    else:
        raw, kind = urlencode({"payload": json.dumps(body)}), "application/x-www-form-urlencoded"
    stamp = str(int(time.time()) - age)
    signature = SignatureVerifier(secret).generate_signature(timestamp=stamp, body=raw) or ""
    return raw, {"content-type": kind, "x-slack-request-timestamp": stamp, "x-slack-signature": signature}


async def _arguments(request: web.Request) -> dict[str, Any]:
    found: dict[str, Any] = dict(request.query)
    if request.content_type == "application/json":
        found |= await request.json()
    else:
        found |= {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
    for name in ("blocks", "view", "metadata", "files"):
        if isinstance(found.get(name), str):
            found[name] = json.loads(found[name])
    return {name: value for name, value in found.items() if value is not None}


def _judge(problems: Any, code: str) -> None:
    found = list(problems)
    if found:
        raise RefusedError(code, *found)


def _seen(message: Message) -> dict[str, Any]:
    seen: dict[str, Any] = {"type": "message", "ts": message.ts, "text": message.text, "user": message.user}
    if message.metadata is not None:
        seen["metadata"] = message.metadata
    return seen
