"""Slack as the bot uses it: a port in the bot's words, and its adapter over the Web API.

Calls raise TemporaryError, PermanentError or UserError; what a workspace may lack is optional, returns None and is
remembered in `lost`, for `doctor` to say what is missing because of it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.http_retry.builtin_async_handlers import (
    AsyncConnectionErrorRetryHandler,
    AsyncRateLimitErrorRetryHandler,
)
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse
from slack_sdk.webhook.async_client import AsyncWebhookClient

from actions.approval import Code, Refusal
from actions.errors import DrError, PermanentError, TemporaryError, UserError
from actions.site import Frozen
from bot.ports import ChannelWish
from bot.redaction import Mask
from bot.slack import channels, scopes
from bot.slack.views.blocks import Message, View

log = structlog.get_logger()

METADATA = "drbot_outbox"
"""The event type of the message metadata by which a message is found again."""

TIMEOUT_S = 10


class TokenRefusedError(PermanentError):
    """Slack takes none of our calls until an operator puts the token right."""


class MessageGoneError(PermanentError):
    """The message or the modal to change is not there any more."""


class Identity(Frozen):
    """Who the bot is in this workspace."""

    team: str
    user: str
    bot: str
    app: str = ""  # empty where Slack does not tell; then the app of a request is not compared
    enterprise: str | None = None
    url: str = ""


class Posted(Frozen):
    """A message somebody wrote."""

    text: str
    user: str
    author: str  # display name


class LostFeature(Frozen):
    """Something this workspace or token does not allow, and what the bot does without it."""

    method: str
    error: str
    without: str


class SlackGateway(Protocol):
    """All that the bot does in Slack."""

    async def identity(self) -> Identity:
        """Raises when the token is not taken. What the token was not granted is in `lost` afterwards."""

    async def app(self) -> str:
        """The id of the app the token belongs to, empty when Slack does not tell."""

    async def post(
        self, channel: str, message: Message, *, mark: Mapping[str, str | int], thread_ts: str | None = None
    ) -> str:
        """Post and return the ts. `mark` is kept as metadata, for `find`."""

    async def find(self, channel: str, mark: Mapping[str, str | int]) -> str | None:
        """The ts of one of the channel's last messages that carries one of these marks."""

    async def update(self, channel: str, ts: str, message: Message) -> None:
        """Raises MessageGoneError when it cannot be changed any more."""

    async def whisper(self, channel: str, user: str, message: Message, *, response_url: str | None = None) -> None:
        """Show a message to one person alone."""

    async def open_view(self, trigger: str, view: View) -> str:
        """Open a modal within three seconds of a click; return its id. Raises UserError when it was too late."""

    async def push_view(self, trigger: str, view: View) -> str:
        """As `open_view`, on top of the open modal."""

    async def update_view(self, view_id: str, view: View) -> None:
        """Raises MessageGoneError when the person has closed it."""

    async def message(self, channel: str, ts: str) -> Posted:
        """Read one message, also one in a thread."""

    async def permalink(self, channel: str, ts: str) -> str | None:
        """A link to a message."""

    async def account_problem(self, user: str, team: str) -> Refusal | None:
        """Why this account may not sign, None when nothing speaks against it. A failed look-up speaks against it."""

    async def channel_problem(self, channel: str, *, lately: float = 0.0) -> Refusal | None:
        """Why nothing may be asked, shown or signed in a channel, None when nothing speaks against it. A failed look-up
        speaks against it. An answer that is not older than `lately` seconds is not asked for again."""

    async def group_members(self, group: str) -> frozenset[str]:
        """The accounts of a user group; nobody when it is switched off or gone. Raises DrError when Slack does not
        tell."""

    async def make_channel(self, wish: ChannelWish) -> str | None:
        """Make a channel; None where the workspace does not allow it."""

    async def furnish(self, channel: str, wish: ChannelWish) -> None:
        """Set the topic of a channel that was made, and invite. Whoever cannot be invited is left out; nothing raises,
        since the channel is there and what belongs into it must get there."""

    async def pin(self, channel: str, ts: str) -> None:
        """Pin a message, where that is possible."""

    async def upload(self, channel: str, *, filename: str, title: str, content: str, comment: str) -> bool:
        """Upload a text file; False where the workspace does not allow it."""

    @property
    def lost(self) -> tuple[LostFeature, ...]:
        """What was missing so far."""


_TEMPORARY = {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org"}
_TOKEN = {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "org_login_required"}
_GONE = {"message_not_found", "cant_update_message", "edit_window_closed", "not_found", "view_not_found"}
_LATE = {"expired_trigger_id", "trigger_expired", "exchanged_trigger_id", "trigger_exchanged", "invalid_trigger_id"}
_MISSING = {
    "unknown_method",
    "missing_scope",
    "not_allowed_token_type",
    "method_deprecated",
    "method_not_supported_for_channel_type",
    "feature_not_enabled",
    "paid_only",
    "paid_teams_only",
    "plan_upgrade_required",
    "restricted_action",
    "restricted_action_read_only_channel",
    "restricted_action_non_threadable_channel",
    "no_permission",
    "not_in_channel",
    "cant_invite_self",
    "already_in_channel",
    "already_pinned",
    "file_uploads_disabled",
    "file_uploads_except_images_disabled",
}
_HARMLESS = {"already_in_channel", "already_pinned", "cant_invite_self"}


class WebGateway:
    """`SlackGateway` over slack-sdk. `client` answers clicks and never sleeps; `patient` waits out a rate limit.
    Everything said goes through `mask`."""

    def __init__(self, *, token: str, base_url: str, mask: Mask | None = None, shared: Collection[str] = ()) -> None:
        """`shared` are channels in which people of other organisations may read along."""
        self._shared = frozenset(shared)
        self._channels: dict[str, tuple[float, Refusal | None]] = {}  # when Slack told of it last, and what
        self._mask = mask or Mask()
        self._origins = {"https://hooks.slack.com", _origin(base_url)}
        self._client = AsyncWebClient(
            token, base_url=base_url, timeout=TIMEOUT_S, retry_handlers=[AsyncConnectionErrorRetryHandler()]
        )
        # Only reading waits inside the call. Posts are paced by the outbox, which must know of every refusal; and a
        # post is never repeated below it, since the answer alone may have been lost.
        self._patient = AsyncWebClient(
            token,
            base_url=base_url,
            timeout=TIMEOUT_S,
            retry_handlers=[
                AsyncConnectionErrorRetryHandler(max_retry_count=2),
                AsyncRateLimitErrorRetryHandler(max_retry_count=2),
            ],
        )
        self._poster = AsyncWebClient(token, base_url=base_url, timeout=TIMEOUT_S, retry_handlers=[])
        self._lost: dict[str, LostFeature] = {}
        self._not_granted: dict[str, LostFeature] = {}

    @property
    def lost(self) -> tuple[LostFeature, ...]:
        found = self._lost | self._not_granted
        return tuple(found[name] for name in sorted(found))

    async def identity(self) -> Identity:
        answer = await _call("auth.test", self._client.auth_test)
        lacks = {
            scope: LostFeature(method=scope, error="scope not granted", without=without)
            for scope, without in scopes.missing(answer.headers).items()
        }
        for scope in lacks.keys() - self._not_granted.keys():
            log.warning("slack_scope_missing", scope=scope, without=lacks[scope].without)
        self._not_granted = lacks
        return Identity(
            team=str(answer["team_id"]),
            user=str(answer["user_id"]),
            bot=str(answer.get("bot_id") or ""),
            enterprise=answer.get("enterprise_id"),
            url=str(answer.get("url") or ""),
        )

    async def app(self) -> str:
        try:
            bot = (await _call("auth.test", self._client.auth_test)).get("bot_id") or ""
            answer = await _call("bots.info", lambda: self._client.bots_info(bot=bot))
        except (TemporaryError, PermanentError, UserError) as error:
            log.warning("app_not_known", error=str(error))
            return ""
        return str((answer.get("bot") or {}).get("app_id") or "")

    async def post(
        self, channel: str, message: Message, *, mark: Mapping[str, str | int], thread_ts: str | None = None
    ) -> str:
        message = self._mask.tree(message)
        answer = await _call(
            "chat.postMessage",
            lambda: self._poster.chat_postMessage(
                channel=channel,
                text=message["text"],
                blocks=message["blocks"],
                metadata={"event_type": METADATA, "event_payload": dict(mark)},
                thread_ts=thread_ts,
                unfurl_links=False,
                unfurl_media=False,
            ),
        )
        return str(answer["ts"])

    async def find(self, channel: str, mark: Mapping[str, str | int]) -> str | None:
        answer = await _call(
            "conversations.history",
            lambda: self._patient.conversations_history(channel=channel, limit=50, include_all_metadata=True),
        )
        for item in answer.get("messages") or []:
            metadata = item.get("metadata") or {}
            if metadata.get("event_type") != METADATA:
                continue
            held = metadata.get("event_payload") or {}
            if any(held.get(name) == value for name, value in mark.items()):
                return str(item["ts"])
        return None

    async def update(self, channel: str, ts: str, message: Message) -> None:
        message = self._mask.tree(message)
        await _call(
            "chat.update",
            lambda: self._client.chat_update(channel=channel, ts=ts, text=message["text"], blocks=message["blocks"]),
        )

    async def whisper(self, channel: str, user: str, message: Message, *, response_url: str | None = None) -> None:
        message = self._mask.tree(message)
        # The address came with the request. We answer Slack, not whoever may have written it.
        ours = response_url is not None and _origin(response_url) in self._origins
        if ours and response_url is not None and await _respond(response_url, message):
            return
        await _call(
            "chat.postEphemeral",
            lambda: self._poster.chat_postEphemeral(
                channel=channel, user=user, text=message["text"], blocks=message["blocks"]
            ),
        )

    async def open_view(self, trigger: str, view: View) -> str:
        answer = await _call(
            "views.open", lambda: self._client.views_open(trigger_id=trigger, view=self._mask.tree(view))
        )
        return str(answer["view"]["id"])

    async def push_view(self, trigger: str, view: View) -> str:
        answer = await _call(
            "views.push", lambda: self._client.views_push(trigger_id=trigger, view=self._mask.tree(view))
        )
        return str(answer["view"]["id"])

    async def update_view(self, view_id: str, view: View) -> None:
        await _call("views.update", lambda: self._client.views_update(view_id=view_id, view=self._mask.tree(view)))

    async def message(self, channel: str, ts: str) -> Posted:
        answer = await _call(
            "conversations.history",
            lambda: self._patient.conversations_history(channel=channel, latest=ts, inclusive=True, limit=1),
        )
        found = _with_ts(answer, ts)
        if found is None:  # a reply stands in its thread only
            answer = await _call(
                "conversations.replies",
                lambda: self._patient.conversations_replies(channel=channel, ts=ts, latest=ts, inclusive=True, limit=1),
            )
            found = _with_ts(answer, ts)
        if found is None:
            raise UserError("That message cannot be read; invite the bot to the channel and try again.")
        user = str(found.get("user") or "")
        author = str(found.get("username") or found.get("bot_id") or user)
        return Posted(text=str(found.get("text") or ""), user=user, author=await self._name(user) or author)

    async def permalink(self, channel: str, ts: str) -> str | None:
        answer = await self._optional(
            "chat.getPermalink",
            "timeline entries have no link",
            lambda: self._patient.chat_getPermalink(channel=channel, message_ts=ts),
        )
        return None if answer is None else str(answer["permalink"])

    async def account_problem(self, user: str, team: str) -> Refusal | None:
        try:
            answer = await _call("users.info", lambda: self._patient.users_info(user=user))
        except (TemporaryError, PermanentError, UserError) as error:
            log.warning("account_not_readable", user=user, error=str(error))
            return LOOKUP_FAILED
        return problem_of(answer.get("user") or {}, team)

    async def channel_problem(self, channel: str, *, lately: float = 0.0) -> Refusal | None:
        if channel in self._shared or not channels.looked_up(channel):
            return None
        at, known = self._channels.get(channel, (0.0, None))
        if lately and time.monotonic() - at < lately:
            return known
        without = "nothing can be asked or signed in channels"
        try:
            answer = await self._optional(
                "conversations.info", without, lambda: self._patient.conversations_info(channel=channel)
            )
        except DrError as error:
            log.warning("channel_not_readable", channel=channel, error=str(error))
            answer = None
        if answer is None:
            return channels.UNKNOWN_CHANNEL
        self._lost.pop("conversations.info", None)
        found = channels.problem_of(answer.get("channel") or {}, channel)
        self._channels[channel] = time.monotonic(), found
        return found

    async def group_members(self, group: str) -> frozenset[str]:
        try:
            answer = await _call("usergroups.users.list", lambda: self._patient.usergroups_users_list(usergroup=group))
        except PermanentError as error:
            if "no_such_subteam" in str(error):
                return frozenset()
            code = error.code if isinstance(error, MissingError) else "refused"
            self._lose("usergroups.users.list", code, scopes.WITHOUT["usergroups:read"])
            raise
        self._lost.pop("usergroups.users.list", None)
        return frozenset(str(user) for user in answer.get("users") or ())

    async def make_channel(self, wish: ChannelWish) -> str | None:
        for name in (wish.name, f"{wish.name}-2", f"{wish.name}-3"):
            try:
                answer = await self._optional(
                    "conversations.create",
                    "incidents stay in the channel they are opened in",
                    lambda name=name: self._patient.conversations_create(name=name[:80]),  # type: ignore[misc]
                )
            except NameTakenError:
                continue
            if answer is None:
                return None
            return str(answer["channel"]["id"])
        return None

    async def furnish(self, channel: str, wish: ChannelWish) -> None:
        if wish.topic:
            await self._tried(
                "conversations.setTopic",
                "incident channels have no topic",
                lambda: self._patient.conversations_setTopic(channel=channel, topic=self._mask(wish.topic)[:250]),
            )
        # One by one: of several, Slack refuses all for one account that is gone.
        for user in wish.invite:
            await self._tried(
                "conversations.invite",
                "people join incident channels by themselves",
                lambda user=user: self._patient.conversations_invite(channel=channel, users=[user]),  # type: ignore[misc]
            )

    async def _tried(self, method: str, without: str, call: Callable[[], Awaitable[AsyncSlackResponse]]) -> None:
        """As `_optional`, where no failure of any kind may stop what comes next."""
        try:
            await self._optional(method, without, call)
        except DrError as error:
            log.warning("channel_not_furnished", method=method, error=str(error))

    async def pin(self, channel: str, ts: str) -> None:
        await self._optional(
            "pins.add",
            "incident cards are not pinned",
            lambda: self._patient.pins_add(channel=channel, timestamp=ts),
        )

    async def upload(self, channel: str, *, filename: str, title: str, content: str, comment: str) -> bool:
        title, content, comment = self._mask(title), self._mask(content), self._mask(comment)
        answer = await self._optional(
            "files.upload",
            "exports are shown in the channel, cut",
            lambda: self._poster.files_upload_v2(
                channel=channel, filename=filename, title=title, content=content, initial_comment=comment or None
            ),
        )
        return answer is not None

    async def _name(self, user: str) -> str:
        if not user:
            return ""
        try:
            answer = await _call("users.info", lambda: self._patient.users_info(user=user))
        except (TemporaryError, PermanentError, UserError):
            return user
        found = answer.get("user") or {}
        profile = found.get("profile") or {}
        return str(profile.get("display_name") or found.get("real_name") or found.get("name") or user)

    async def _optional(
        self, method: str, without: str, call: Callable[[], Awaitable[AsyncSlackResponse]]
    ) -> AsyncSlackResponse | None:
        try:
            return await _call(method, call)
        except MissingError as error:
            if error.code not in _HARMLESS:
                self._lose(method, error.code, without)
            return None

    def _lose(self, method: str, code: str, without: str) -> None:
        self._lost[method] = LostFeature(method=method, error=code, without=without)
        log.warning("slack_feature_missing", method=method, error=code, without=without)


class MissingError(PermanentError):
    """The workspace, the plan or the token does not allow this method."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class NameTakenError(PermanentError):
    """A channel of this name exists."""


LOOKUP_FAILED = Refusal(
    code=Code.LOOKUP_FAILED,
    text="Slack does not tell who this account is, so it cannot sign now. Try again in a minute, or use `drbot sign`.",
)


def problem_of(user: Mapping[str, Any], team: str) -> Refusal | None:
    """Why an account of users.info may not sign. `team` is the workspace the bot belongs to."""
    checks = (
        (not user.get("id"), Code.FOREIGN, "This account is not known to the workspace"),
        (user.get("deleted"), Code.DEACTIVATED, "This account is deactivated"),
        (any(user.get(kind) for kind in _BOTS), Code.BOT, "This account is a bot"),
        (user.get("is_restricted") or user.get("is_ultra_restricted"), Code.GUEST, "This account is a guest"),
        (user.get("is_stranger"), Code.FOREIGN, "This account belongs to another organisation"),
        (user.get("team_id") not in (team, None), Code.FOREIGN, "This account belongs to another workspace"),
        (user.get("is_invited_user"), Code.DEACTIVATED, "This account has not been confirmed yet"),
    )
    for applies, code, why in checks:
        if applies:
            text = f"{why}, so its signature does not count. Ask a full member who is on the roster."
            return Refusal(code=code, text=text)
    return None


_BOTS = ("is_bot", "is_workflow_bot", "is_connector_bot")


async def _call(method: str, call: Callable[[], Awaitable[AsyncSlackResponse]]) -> AsyncSlackResponse:
    try:
        return await call()
    except SlackApiError as error:
        raise translated(method, error) from error
    except (SlackClientError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise TemporaryError(f"Slack did not answer {method} ({type(error).__name__}).") from error


def translated(method: str, error: SlackApiError) -> Exception:
    """An answer of Slack as an error of ours."""
    response = error.response
    status = int(getattr(response, "status_code", 200) or 200)
    code = _code(response)
    if status == 429 or code in ("ratelimited", "rate_limited"):
        wait = timedelta(seconds=_retry_after(getattr(response, "headers", {}) or {}))
        return TemporaryError(f"Slack limits {method}.", retry_after=wait)
    if status >= 500 or code in _TEMPORARY:
        return TemporaryError(f"Slack cannot answer {method} now ({code or status}).")
    if code in _LATE:
        return UserError("The click came too late for a window; click again.")
    kinds: tuple[tuple[set[str], type[PermanentError]], ...] = (
        (_TOKEN, TokenRefusedError),
        (_GONE, MessageGoneError),
        ({"name_taken"}, NameTakenError),
    )
    for codes, kind in kinds:
        if code in codes:
            return kind(f"Slack refused {method}: {code}.")
    if code in _MISSING:
        return MissingError(f"Slack does not allow {method} here: {code}.", code)
    return PermanentError(f"Slack refused {method}: {code or status}.")


def _code(response: Any) -> str:
    data = getattr(response, "data", response)
    return str(data.get("error") or "") if isinstance(data, Mapping) else ""


def _retry_after(headers: Mapping[str, str]) -> float:
    for name, value in headers.items():
        if name.casefold() == "retry-after":
            try:
                return max(1.0, min(float(value), 3600.0))
            except ValueError:
                break
    return 30.0


def _with_ts(answer: AsyncSlackResponse, ts: str) -> Mapping[str, Any] | None:
    found: list[Mapping[str, Any]] = answer.get("messages") or []
    return next((item for item in found if item.get("ts") == ts), None)


def _origin(url: str) -> str:
    """Scheme, host and port; empty for what is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}"


async def _respond(url: str, message: Message) -> bool:
    """Answer through the response URL, which lives 30 minutes and five uses; False when it does not take it."""
    client = AsyncWebhookClient(url, timeout=TIMEOUT_S)
    try:
        answer = await client.send(text=message["text"], blocks=message["blocks"], response_type="ephemeral")
    except (SlackClientError, aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("response_url_failed", error=type(error).__name__)
        return False
    return answer.status_code == 200
