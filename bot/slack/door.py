"""HTTP mode: what stands between the network and Bolt.

A request is let in when its signature over the raw body, its time and its form are right, and when it was not answered
before. Nobody else gets more than a status: 401 for whatever is not proven to be Slack's, however broken it is.
Bodies are neither kept nor logged; refusals are counted, and the count is recorded every few seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

import structlog
from aiohttp import web
from slack_bolt.adapter.aiohttp import to_aiohttp_response
from slack_bolt.async_app import AsyncApp
from slack_bolt.request.async_request import AsyncBoltRequest

from actions.errors import DrError, UserError
from bot.ports import Desk, Who
from bot.services.refusals import Door
from bot.slack.inspection import LARGEST

log = structlog.get_logger()

PAST, AHEAD = 300, 60
"""Seconds a request may be old, and may be ahead of our clock."""

TOLD_EVERY = 10.0
READ_WITHIN = 5.0

_TIME = re.compile(r"[0-9]{1,12}", re.ASCII)
_SIGNATURE = re.compile(r"v0=[0-9a-f]{64}", re.ASCII)


class NotSlackError(Exception):
    """Not proven to come from Slack: no, a wrong or an old signature."""


class NotReadableError(Exception):
    """Signed, and yet not what Slack sends."""


class HttpDoor:
    """Lets Slack in, and counts the others."""

    def __init__(self, app: AsyncApp, desk: Desk, *, secret: str, now: Callable[[], datetime]) -> None:
        self._app = app
        self._desk = desk
        self._secret = secret.encode()
        self._now = now
        self._turned_away: Tally[str] = Tally()
        self._replayed = 0

    def web_app(self, path: str) -> web.Application:
        """An aiohttp application that serves Slack at `path`, and nothing else."""
        served = web.Application(client_max_size=LARGEST)
        served.router.add_post(path, self._post)
        return served

    async def keep_count(self) -> None:
        """Record, for ever, how many were turned away."""
        try:
            while True:
                await asyncio.sleep(TOLD_EVERY)
                await self.tell()
        finally:
            await self.tell()

    async def tell(self) -> None:
        """Record those turned away since the last time in one row, and those that came again in another."""
        again, self._replayed = self._replayed, 0
        if again:
            text = f"{again} request(s) over HTTP came again after they were answered, and had no effect."
            if not await self._recorded(Door.REPLAYED, text):
                self._replayed += again
        count, self._turned_away = self._turned_away, Tally()
        if not count:
            return
        reasons = ", ".join(f"{reason}: {number}" for reason, number in sorted(count.items()))
        log.warning("requests_turned_away", count=count.total(), reasons=reasons)
        text = f"{count.total()} request(s) over HTTP were not let in ({reasons})."
        if not await self._recorded(Door.BAD_SIGNATURE, text):
            self._turned_away += count

    async def _recorded(self, code: Door, text: str) -> bool:
        try:
            await self._desk.turn_away(Who(), code, text)
        except UserError:
            return True
        except DrError as error:
            log.warning("refusals_not_recorded", error=type(error).__name__)
        return False

    async def _post(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(READ_WITHIN):
                raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._away("too large", 413)
        except TimeoutError:
            return self._away("too slow", 408)
        if "X-Slack-Signature" not in request.headers and b"ssl_check=1" in raw.split(b"&"):
            return web.Response()  # Slack looks whether the certificate holds; it carries nothing else
        try:
            key = self._proven(request, raw)
        except NotSlackError as error:
            return self._away(str(error), 401)
        try:
            text, checked = _read(raw, request.content_type)
        except NotReadableError as error:
            return self._away(str(error), 400)
        return web.Response() if checked else await self._dispatched(request, text, key)

    def _away(self, reason: str, status: int) -> web.Response:
        self._turned_away[reason] += 1
        return web.Response(status=status)

    def _proven(self, request: web.Request, raw: bytes) -> str:
        """The signature of a request of Slack's. Raises NotSlackError."""
        stamps = request.headers.getall("X-Slack-Request-Timestamp", [])
        signatures = request.headers.getall("X-Slack-Signature", [])
        if len(stamps) != 1 or len(signatures) != 1:
            raise NotSlackError("unsigned")
        [stamp], [signature] = stamps, signatures
        # Patterns first: int() reads more than digits, and compare_digest raises for what is not ASCII.
        if _TIME.fullmatch(stamp) is None or _SIGNATURE.fullmatch(signature) is None:
            raise NotSlackError("garbled")
        age = self._now().timestamp() - int(stamp)
        if not -AHEAD <= age <= PAST:
            raise NotSlackError("old" if age > 0 else "ahead")
        wanted = hmac.new(self._secret, b"v0:" + stamp.encode() + b":" + raw, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(f"v0={wanted}", signature):
            raise NotSlackError("wrong signature")
        return f"http:{signature}"

    async def _dispatched(self, request: web.Request, text: str, key: str) -> web.Response:
        try:
            if await self._desk.replayed(key):
                log.info("request_replayed")
                self._replayed += 1
                return web.Response()
        except DrError as error:
            # The database is away. The handler will find out as well, and can tell the person.
            log.warning("replay_not_looked_up", error=type(error).__name__)
        headers: dict[str, str | Sequence[str]] = {name: [value] for name, value in request.headers.items()}
        answer = await self._app.async_dispatch(AsyncBoltRequest(body=text, query="", headers=headers))
        if answer.status < 500:
            try:
                await self._desk.finish(key)
            except DrError as error:
                log.warning("request_not_marked", error=type(error).__name__)
        return await to_aiohttp_response(answer)


def _read(raw: bytes, content_type: str) -> tuple[str, bool]:
    """The body as text, and whether it only checks the certificate. Raises NotReadableError."""
    try:
        text = raw.decode()
        if content_type == "application/json":
            _object(text)
            return text, False
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=100, errors="strict")
    except (ValueError, RecursionError) as error:
        raise NotReadableError("not readable") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise NotReadableError("a field twice")
    if fields.get("ssl_check") == "1":
        return text, True
    if "payload" in fields:
        try:
            _object(fields["payload"])
        except (ValueError, RecursionError) as error:
            raise NotReadableError("not readable") from error
    return text, False


def _object(text: str) -> None:
    """Raise ValueError for what is no JSON object, or says something twice: which of the two would count?"""
    if not isinstance(json.loads(text, object_pairs_hook=_once, parse_constant=_no_number), dict):
        raise ValueError("no object")  # noqa: TRY004 - the input is wrong, not its type


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _no_number(word: str) -> None:
    raise ValueError(word)
