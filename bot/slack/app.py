"""The Bolt app, built from explicit arguments. Nothing exists before `build_app` is called."""

from __future__ import annotations

from slack_bolt.async_app import AsyncApp
from slack_bolt.authorization import AuthorizeResult
from slack_sdk.web.async_client import AsyncWebClient

from bot.slack import inspection
from bot.slack.commands import slash
from bot.slack.interactions import message, plan, restore, run_control
from bot.slack.middleware import Counter, bolt_logger


def build_app(counter: Counter, *, token: str, base_url: str, signing_secret: str | None) -> AsyncApp:
    """All handlers on one app. Without a signing secret it serves Socket Mode only.

    The identity is known already, so no request waits for a call of Slack before it is acknowledged.
    """
    identity = counter.identity

    async def authorize() -> AuthorizeResult:
        return AuthorizeResult(
            enterprise_id=identity.enterprise,
            team_id=identity.team,
            bot_user_id=identity.user,
            bot_id=identity.bot or None,
            bot_token=token,
        )

    app = AsyncApp(
        name="drbot",
        logger=bolt_logger(),
        client=AsyncWebClient(base_url=base_url),
        authorize=authorize,
        signing_secret=signing_secret or "",
        # Socket Mode is authenticated by its connection; Bolt skips the check there by itself.
        request_verification_enabled=True,
        # It answers before the signature is looked at; the door of HTTP mode knows better.
        ssl_check_enabled=False,
        raise_error_for_unhandled_request=True,
    )
    inspection.register(app, counter)
    for part in (slash, plan, run_control, restore, message):
        part.register(app, counter)
    return app
