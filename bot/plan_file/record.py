"""The sealed record: who signs its checkpoints, and which witnesses keep them. And where evidence is kept."""

from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from bot.plan_file.protection import Signer
from bot.plan_file.values import Duration, Flag, Name, Part, SecretRef, Text, TextRef, misfit


class WitnessPlace(Part):
    """A place that keeps checkpoints: a bucket or a file."""

    name: Name
    """Name of the witness in this plan."""
    bucket: Text | None = None
    """A bucket of this plan under Object Lock in mode compliance, with credentials of its own."""
    file: TextRef | None = None
    """An absolute path, or a reference to one, that outlives the bot's database."""

    @model_validator(mode="after")
    def one_place(self) -> Self:
        """Refuse a witness that is nowhere or in two places."""
        if (self.bucket is None) == (self.file is None):
            raise misfit("a witness is one place", "give either `bucket` or `file`")
        return self


class Record(Part):
    """The record as a log that nobody can rewrite unseen."""

    signing_key: SecretRef
    """Reference to the Ed25519 private key (PEM) that signs checkpoints; only the clock role reads it."""
    public_keys: tuple[Signer, ...] = Field(min_length=1)
    """Ed25519 public keys whose checkpoints count: the present one, and former ones."""
    max_age: Duration = timedelta(minutes=10)
    """How old the newest checkpoint at a witness may be when a destructive step begins."""
    keep: Duration = timedelta(days=400)
    """How long a bucket refuses to delete a checkpoint; nobody can shorten it."""
    heads: Flag = True
    """Whether the audit channel is told the head of the log now and then, and that of an incident each half hour."""
    witnesses: tuple[WitnessPlace, ...] = Field(min_length=1)
    """Where checkpoints are kept; a destructive step needs any one of them."""


class EvidenceStore(Part):
    """Where files that people add as evidence are kept, encrypted to the recipients of the backups."""

    bucket: Text
    """A bucket of this plan, best under Object Lock."""
