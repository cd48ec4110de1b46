"""The keys of the plan file that are pgBackRest's own."""

from typing import Annotated

from actions.plan_values import Part, SecretRef, Shape, Text
from actions.site import PhysicalPolicy


class StanzaSecret(Part):
    """A secret of a pgBackRest repository that its configuration file leaves out."""

    option: Annotated[
        str,
        Shape(r"repo[1-9][0-9]*-[a-z0-9-]+", "name an option of pgBackRest such as `repo1-cipher-pass`", repeat=False),
    ]
    """Option of pgBackRest: repo1-cipher-pass, repo1-s3-key, repo1-s3-key-secret."""
    value: SecretRef
    """Reference to its value; pgBackRest gets it in its environment."""


class PgBackRestKeys(Part):
    """Where pgBackRest keeps the backups of a server."""

    stanza: Text | None = None
    """Stanza of pgBackRest; empty: the name of the server."""
    stanza_config: Text | None = None
    """Path of pgBackRest's configuration file on the worker's machine; empty: pgBackRest's own default."""
    stanza_secrets: tuple[StanzaSecret, ...] = ()
    """Secrets of the repository that the configuration file leaves out."""


def keys_of(policy: PhysicalPolicy) -> PgBackRestKeys:
    """What the plan file says for this server."""
    return policy.own if isinstance(policy.own, PgBackRestKeys) else PgBackRestKeys()


def stanza_name(policy: PhysicalPolicy) -> str:
    """What pgBackRest calls the server."""
    return keys_of(policy).stanza or policy.server
