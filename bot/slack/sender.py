"""Delivers the outbox: a queue for each channel, paced, and one effect for each row.

Execution never waits for this. A row that Slack refuses for now is given back with the time Slack named; one whose
answer was lost is looked for in the channel by its metadata before it is posted again. Cards are rendered from the
database at the moment they are sent, so of several waiting rows of one card one is enough.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from actions.approval import Code
from actions.errors import DrError, PermanentError, TemporaryError
from bot.ports import ChannelWish, Kind, OutboxSource, Outgoing
from bot.services.cards import IncidentCard
from bot.slack.channels import SharedChannelError
from bot.slack.gateway import MessageGoneError, SlackGateway, TokenRefusedError
from bot.slack.rendering import answer_message, card_message, file_message, view_of
from bot.slack.views.blocks import Message

log = structlog.get_logger()

POST_EVERY = 1.05
"""Seconds between two posts to one channel: Slack allows one a second."""

UPDATE_EVERY = 1.3
"""Seconds between two updates in one channel: chat.update allows some fifty a minute."""

CHANNEL_KNOWN_FOR = 60.0
"""Seconds for which a channel that was looked at is not looked at again before a post: the look-ups are needed for
signatures, and Slack allows some fifty a minute."""

TAKEN_AT_ONCE = 20
QUEUED_AT_MOST = 30
"""Rows of one channel in memory. They must be sent within the minute for which the outbox lends them."""

POLL = 5.0
TOKEN_PAUSE = timedelta(seconds=60)
LONGEST_PAUSE = timedelta(minutes=5)
GIVEN_BACK_AFTER = timedelta(seconds=15)
"""A pause longer than this is waited for in the database, not in memory."""


class OutboxSender:
    """One sender is enough; a second one shares the rows, not the pace."""

    def __init__(
        self,
        source: OutboxSource,
        gateway: SlackGateway,
        *,
        now: Callable[[], datetime],
        post_every: float = POST_EVERY,
        update_every: float = UPDATE_EVERY,
    ) -> None:
        self._source = source
        self._gateway = gateway
        self._now = now
        self._post_every = post_every
        self._update_every = update_every
        self._queues: dict[str, list[Outgoing]] = {}
        self._not_before: dict[str, float] = {}
        self._doubtful: set[tuple[Kind, str, str]] = set()  # cards whose first post had no answer
        self._channels: dict[int, str] = {}  # row -> channel made for it

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._take(tasks)
                await self._source.wait(POLL)

    async def drain(self) -> None:
        """Deliver what is due now, and return when every row of it is settled."""
        async with asyncio.TaskGroup() as tasks:
            await self._take(tasks)

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        try:
            while rows := await self._source.due(TAKEN_AT_ONCE):
                for row in rows:
                    await self._enqueue(row, tasks)
                if len(rows) < TAKEN_AT_ONCE:
                    return
        except (DrError, OSError) as error:
            log.warning("outbox_not_readable", error=str(error))

    async def _enqueue(self, row: Outgoing, tasks: asyncio.TaskGroup) -> None:
        name = _queue_of(row)
        queue = self._queues.get(name)
        if queue is None:
            self._queues[name] = [row]
            tasks.create_task(self._work(name))
        elif len(queue) < QUEUED_AT_MOST:
            queue.append(row)
        else:
            await self._source.failed(row.id, "the channel's queue is full", timedelta(seconds=QUEUED_AT_MOST))

    async def _work(self, name: str) -> None:
        """Send one queue until it is empty."""
        queue = self._queues[name]
        try:
            while queue:
                await asyncio.sleep(max(0.0, self._not_before.get(name, 0.0) - time.monotonic()))
                rows = _together(queue)
                pause = await self._settle(name, rows)
                if pause > GIVEN_BACK_AFTER:
                    await self._give_back(queue, pause)
        except (DrError, OSError) as error:
            # The outbox itself is away: nothing can be settled, and the rows are lent again when it is back.
            log.warning("outbox_not_writable", error=str(error))
        finally:
            del self._queues[name]

    async def _give_back(self, queue: list[Outgoing], pause: timedelta) -> None:
        while queue:
            await self._source.failed(queue.pop(0).id, "Slack limits this channel", pause)

    async def _settle(self, name: str, rows: Sequence[Outgoing]) -> timedelta:
        """Deliver rows that have one effect together, and report each; how long the queue must rest after it."""
        first = rows[0]
        try:
            ts, channel = await self._deliver(name, rows)
        except TokenRefusedError as error:
            return await self._failed(name, rows, error, TOKEN_PAUSE)
        except TemporaryError as error:
            if first.kind in (Kind.PLAN, Kind.INCIDENT):
                self._doubtful.add((first.kind, first.ref, first.channel))
            grown = timedelta(seconds=2 ** min(first.attempts, 10))
            return await self._failed(name, rows, error, max(error.retry_after, min(grown, LONGEST_PAUSE)))
        except SharedChannelError as error:
            for row in rows:
                await self._source.refused(row, error.refusal)
            return timedelta()
        except DrError as error:
            # PermanentError, and UserError of a card that is not there: an operator sees it in `doctor`.
            log.warning("outbox_row_refused", rows=[row.id for row in rows], kind=first.kind, error=str(error))
            for row in rows:
                await self._source.failed(row.id, str(error), None)
            return timedelta()
        for row in rows:
            await self._source.sent(row.id, ts, channel=channel)
        self._channels.pop(first.id, None)
        return timedelta()

    async def _failed(self, name: str, rows: Sequence[Outgoing], error: DrError, pause: timedelta) -> timedelta:
        log.info("outbox_row_delayed", rows=[row.id for row in rows], seconds=pause.total_seconds(), error=str(error))
        self._rest(name, pause.total_seconds())
        for row in rows:
            await self._source.failed(row.id, str(error), pause)
        return pause

    def _rest(self, name: str, seconds: float) -> None:
        self._not_before[name] = max(self._not_before.get(name, 0.0), time.monotonic() + seconds)

    async def _deliver(self, name: str, rows: Sequence[Outgoing]) -> tuple[str | None, str | None]:
        """The ts of the message and the channel it went to, where they are known."""
        row = rows[-1]
        match row.kind:
            case Kind.PLAN | Kind.INCIDENT:
                return await self._card(name, rows)
            case Kind.VIEW:
                await self._fill(row)
                return None, None
            case Kind.FILE:
                return await self._file(name, row), None
            case _:
                return await self._answer(name, row), None

    async def _card(self, name: str, rows: Sequence[Outgoing]) -> tuple[str, str]:
        row = rows[0]
        card = await self._source.card(row.kind, row.ref)
        message = card_message(card, now=self._now())
        channel = await self._channel(row)
        again = bool(row.payload.get("again"))
        ts = None if again else await self._source.message_ts(row.kind, row.ref, channel)
        if ts is not None:
            try:
                await self._gateway.update(channel, ts, message)
            except MessageGoneError:
                log.info("card_posted_anew", kind=row.kind, ref=row.ref)
            else:
                self._rest(name, self._update_every)
                return ts, channel
        mark: dict[str, str | int] = {"row": row.id}
        if not again:  # any message of this card is the card
            mark["card"] = f"{row.kind}:{row.ref}"
        doubt = (row.kind, row.ref, row.channel)
        ts = await self._post(name, row, message, mark, channel=channel, doubtful=doubt in self._doubtful)
        self._doubtful.discard(doubt)
        if isinstance(card, IncidentCard) and not again:
            await self._pin(channel, ts)
        return ts, channel

    async def _channel(self, row: Outgoing) -> str:
        """The row's channel, or the one that was wished for it. Made once while this process lives."""
        if "create" not in row.payload:
            return row.channel
        if row.id not in self._channels:
            wish = ChannelWish.model_validate(row.payload["create"])
            made = await self._gateway.make_channel(wish)
            # Remembered before anything else can fail: a second try must not make a second channel.
            self._channels[row.id] = made or row.channel
            if made is not None:
                await self._gateway.furnish(made, wish)
        return self._channels[row.id]

    async def _refuse_shared(self, channel: str) -> None:
        """Raise SharedChannelError where others read along. A channel that Slack tells nothing of is not known to be
        shared; if Slack is away, the post fails as well."""
        shared = await self._gateway.channel_problem(channel, lately=CHANNEL_KNOWN_FOR)
        if shared is not None and shared.code is Code.SHARED_CHANNEL:
            raise SharedChannelError(shared)

    async def _pin(self, channel: str, ts: str) -> None:
        try:
            await self._gateway.pin(channel, ts)
        except DrError as error:  # the card is posted; that it is not pinned must not post it again
            log.info("card_not_pinned", error=str(error))

    async def _post(
        self,
        name: str,
        row: Outgoing,
        message: Message,
        mark: dict[str, str | int],
        *,
        channel: str,
        doubtful: bool = False,
    ) -> str:
        await self._refuse_shared(channel)
        self._rest(name, self._post_every)
        if row.attempts or doubtful:
            found = await self._gateway.find(channel, mark)
            if found is not None:
                return found
        thread = row.payload.get("thread_ts")
        return await self._gateway.post(channel, message, mark=mark, thread_ts=str(thread) if thread else None)

    async def _answer(self, name: str, row: Outgoing) -> str | None:
        message = answer_message(row)
        user = row.payload.get("user")
        if row.kind is Kind.TEXT or not user:
            return await self._post(name, row, message, {"row": row.id}, channel=row.channel)
        url = row.payload.get("response_url")
        await self._gateway.whisper(row.channel, str(user), message, response_url=str(url) if url else None)
        return None

    async def _fill(self, row: Outgoing) -> None:
        try:
            await self._gateway.update_view(row.ref, view_of(row))
        except MessageGoneError:
            log.info("modal_closed_before_its_answer", row=row.id)

    async def _file(self, name: str, row: Outgoing) -> str | None:
        payload = row.payload
        filename = str(payload.get("filename") or "export.txt")
        content = payload.get("content")
        if not isinstance(content, str):
            raise PermanentError(f"Outbox row {row.id} is a file without content.")
        await self._refuse_shared(row.channel)
        self._rest(name, self._post_every)
        taken = await self._gateway.upload(
            row.channel,
            filename=filename,
            title=str(payload.get("title") or filename),
            content=content,
            comment=str(payload.get("comment") or ""),
        )
        if taken:
            return None
        return await self._post(name, row, file_message(row), {"row": row.id}, channel=row.channel)


def _queue_of(row: Outgoing) -> str:
    """Posts wait for their channel; what one person sees does not wait for posts."""
    if row.kind is Kind.VIEW:
        return f"view:{row.ref}"
    if row.payload.get("user") and row.kind in (Kind.EPHEMERAL, Kind.REPORT):
        return f"user:{row.payload['user']}"
    return f"channel:{row.channel}"


def _together(queue: list[Outgoing]) -> list[Outgoing]:
    """Take the next row out of the queue, and with it all that it makes superfluous."""
    first = queue.pop(0)
    if first.kind not in (Kind.PLAN, Kind.INCIDENT) or first.payload:
        return [first]
    same = [row for row in queue if (row.kind, row.ref) == (first.kind, first.ref) and not row.payload]
    queue[:] = [row for row in queue if row not in same]
    return [first, *same]
