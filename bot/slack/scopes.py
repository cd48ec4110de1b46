"""The scopes that the calls of the bot need, and what it does without each of them."""

from __future__ import annotations

from collections.abc import Mapping

METHOD_SCOPES: dict[str, tuple[str, ...]] = {
    "auth.test": (),
    "apps.connections.open": (),  # connections:write of the app-level token, which no manifest holds
    "chat.postMessage": ("chat:write", "chat:write.public"),
    "chat.update": ("chat:write",),
    "chat.postEphemeral": ("chat:write",),
    "chat.getPermalink": (),
    "views.open": (),
    "views.push": (),
    "views.update": (),
    "users.info": ("users:read",),
    "bots.info": ("users:read",),
    "usergroups.users.list": ("usergroups:read",),  # only where a slot of the plan file names a group
    "conversations.info": ("channels:read", "groups:read"),
    "conversations.history": ("channels:history", "groups:history"),
    "conversations.replies": ("channels:history", "groups:history"),
    "conversations.create": ("channels:manage",),
    "conversations.setTopic": ("channels:manage",),
    "conversations.invite": ("channels:manage",),
    "pins.add": ("pins:write",),
    "files.upload_v2": ("files:write",),
}
"""Every method the gateway calls and the bot scopes it needs (docs.slack.dev/reference/methods)."""

EVENT_SCOPES: dict[str, tuple[str, ...]] = {"reaction_added": ("reactions:read",)}
"""Every event a handler is registered for and its scopes."""


WITHOUT: dict[str, str] = {
    "channels:history": "what was said in public channels gets onto no timeline, and a lost post can come twice",
    "channels:manage": "incidents stay in the channel they are opened in",
    "channels:read": "nothing can be asked or signed in public channels",
    "chat:write": "the bot says nothing in Slack",
    "chat:write.public": "the bot speaks only in channels it was invited to",
    "commands": "no slash command and no shortcut is there",
    "files:write": "exports are shown in the channel, cut",
    "groups:history": "what was said in private channels gets onto no timeline, and a lost post can come twice",
    "groups:read": "nothing can be asked or signed in private channels",
    "pins:write": "incident cards are not pinned",
    "reactions:read": "a :pushpin: puts nothing on the timeline; the shortcut does",
    "usergroups:read": "nobody can sign for a slot that names a group",
    "users:read": "nobody can sign in Slack; `drbot sign` stays",
}
"""What is lost where a workspace does not grant a scope."""

HEADER = "x-oauth-scopes"
"""With every answer Slack tells what the token may do (docs.slack.dev/authentication/installing-with-oauth)."""


def needed() -> list[str]:
    """The bot scopes of all calls, events, commands and shortcuts."""
    found = {"commands"}  # slash commands and shortcuts
    for names in (*METHOD_SCOPES.values(), *EVENT_SCOPES.values()):
        found |= set(names)
    return sorted(found)


def missing(headers: Mapping[str, str]) -> dict[str, str]:
    """The scopes that an answer's headers do not grant, with what is lost by each; none where Slack does not tell."""
    told = next((value for name, value in headers.items() if name.lower() == HEADER), None)
    if told is None:
        return {}
    granted = {scope.strip() for scope in told.split(",")}
    return {scope: WITHOUT[scope] for scope in needed() if scope not in granted}
