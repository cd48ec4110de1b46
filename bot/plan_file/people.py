"""The channels of the bot and the roster of persons."""

from typing import Annotated

from pydantic import AfterValidator, Field

from bot.openssh import OpenSshError, allowed_key
from bot.plan_file.values import Name, Part, Shape, Text, misfit

SlackId = Annotated[
    str,
    Shape(r"[UW][A-Z0-9]{2,}", "give a Slack member id such as U0123ABCD (profile, three dots, Copy member ID)"),
]
WorkspaceId = Annotated[str, Shape(r"[TE][A-Z0-9]{2,}", "give a Slack workspace id such as T0123ABCD")]
ChannelRef = Annotated[
    str,
    Shape(
        r"[CG][A-Z0-9]{2,}|#?[^\sA-Z#,.]{1,80}",
        'give a channel as an id (C0123ABCD) or a name ("#dr-oncall", in quotes)',
    ),
]
"""A channel's id (C0123ABCD) or name (#dr-oncall)."""


SharedChannel = Annotated[str, Shape(r"[CG][A-Z0-9]{2,}", "give the channel's id, such as C0123ABCD")]


def _key_line(text: str) -> str:
    right = "paste the .pub file of an Ed25519 key (`ssh-keygen -t ed25519`): ssh-ed25519 AAAA... name"
    if "PRIVATE KEY" in text:
        raise misfit("this is the private half of a key", f"make a new key, and {right}")
    try:
        allowed_key(text)
    except OpenSshError as error:
        raise misfit(f"no key to sign with: {error}", right) from error
    return text


KeyLine = Annotated[str, AfterValidator(_key_line)]


class Channels(Part):
    """Where the bot speaks."""

    on_call: ChannelRef
    """Channel of reminders and warnings."""
    incident_prefix: Annotated[
        str, Shape(r"[a-z0-9][a-z0-9_-]{0,30}", "use lower case letters, digits, `_` and `-`, at most 31")
    ] = "dr-inc-"
    """Beginning of the names of channels made for incidents."""
    audit: ChannelRef
    """Channel every signature and refusal is copied to."""
    shared: tuple[SharedChannel, ...] = ()
    """Channels shared with other organisations or workspaces in which plans may be asked for, shown and signed."""


class Person(Part):
    """A person of the roster. Signatures count persons, not Slack accounts."""

    id: Name
    """Short name, used in the record."""
    name: Text
    """Name, or TBD."""
    roles: tuple[Name, ...] = Field(min_length=1)
    """on_call, dba, security, incident_commander, operator or roles of your own."""
    slack_ids: tuple[SlackId, ...] = ()
    """Every Slack account of the person; without one the person cannot sign in Slack."""
    keys: tuple[KeyLine, ...] = ()
    """Public Ed25519 keys of OpenSSH (`drbot sign`), as in a .pub file; `valid-before="20270101"` may lead."""
    phone: Text | None = None
    """Phone number in quotes, or TBD."""
    email: Text | None = None
    """Address."""
