"""How copies are made and kept: section 2 of the written plan."""

import base64
import binascii
import re
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, create_model, model_validator

from actions.engines import engines
from actions.site import DEFAULT_ENGINE
from bot.plan_file.values import (
    Bytes,
    Duration,
    Flag,
    Identifier,
    KubernetesName,
    Name,
    Part,
    Ports,
    Positive,
    Retention,
    Schedule,
    SecretRef,
    Shape,
    Text,
    TextRef,
    is_reference,
    label_of,
    misfit,
    parse_ports,
)

LOCAL = "local"
"""The store that is `backups.local_directory`; every other store is a bucket."""


def _recipient(text: str) -> str:
    if is_reference(text) or re.fullmatch(r"age1[02-9ac-hj-np-z]{58}", text):
        return text
    # Never repeat the text: people paste the identity (the secret half) here.
    raise misfit("this is not an age public key", "give age1... or a reference to it; the identity never belongs here")


def _signer(text: str) -> str:
    if is_reference(text):
        return text
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise misfit(
            "this is not an Ed25519 public key",
            "give 32 bytes in base64 (44 characters) or a reference to it",
        )
    return text


Recipient = Annotated[
    str,
    AfterValidator(_recipient),
    WithJsonSchema({"type": "string", "description": "An age public key (age1...) or a reference to one."}),
]
Signer = Annotated[
    str,
    AfterValidator(_signer),
    WithJsonSchema(
        {"type": "string", "description": "An Ed25519 public key, 32 bytes in base64, or a reference to one."}
    ),
]


Slot = Annotated[str, Shape(r"[a-z0-9_]{1,63}", "use lower case letters, digits and `_`")]


class DumpBackup(Part):
    """Full dump (logical copy)."""

    schedule: Schedule
    """When it starts."""
    retention: Duration
    """How long it is kept."""
    stores: tuple[Text, ...] = Field(min_length=1)
    """Where it is kept: `local`, and names of buckets."""


def _engine(name: str) -> str:
    if name in engines():
        return name
    raise misfit("this value is not one of those allowed", f"use {' or '.join(f'`{each}`' for each in engines())}")


EngineName = Annotated[
    str, AfterValidator(_engine), WithJsonSchema({"type": "string", "enum": list(engines()), "default": DEFAULT_ENGINE})
]


class BaseOfAnyEngine(Part):
    """Full physical backup of the whole server, the base that WAL is replayed on."""

    engine: EngineName = Field(
        default=DEFAULT_ENGINE,
        description=f"{' or '.join(f'{engine.name} ({engine.about})' for engine in engines().values())}.",
    )
    schedule: Schedule
    """When it starts."""
    retention: Duration
    """How long it is kept."""
    minimum: Positive = 2
    """Usable ones that are kept whatever their age."""
    stores: tuple[Text, ...] = Field(min_length=1, max_length=2)
    """The bucket it is kept in; a second one, in another region, gets a copy of each."""
    amcheck: bool = False
    """Compare indexes with tables (`pg_amcheck`) in restores and restore tests; needs the extension `amcheck`."""

    def own(self) -> Part:
        """The keys that its engine alone has."""
        keys = engines()[self.engine].keys
        return keys.model_construct(**{name: getattr(self, name) for name in keys.model_fields})


if TYPE_CHECKING:

    class BaseBackup(BaseOfAnyEngine):
        """As it stands in the file: with the keys that engines declare as their own."""

else:
    BaseBackup = create_model(
        "BaseBackup",
        __base__=(*dict.fromkeys(engine.keys for engine in engines().values()), BaseOfAnyEngine),
        __module__=__name__,
        __doc__=BaseOfAnyEngine.__doc__,
    )


class IncrementalBackup(Part):
    """The pages that changed since another backup. It shortens replay; what can be lost is up to the WAL."""

    every: Duration
    """Time between two."""
    retention: Duration
    """How long it is kept."""
    stores: tuple[Text, ...] = Field(min_length=1, max_length=2)
    """The buckets of the base backup, in the same order."""


class WalArchive(Part):
    """Write-ahead log, archived as it is written."""

    frequency: Literal["continuous"] = "continuous"
    """Segments leave the server as they are written."""
    retention: Duration
    """How long it is kept."""
    stores: tuple[Text, ...] = Field(min_length=1, max_length=2)
    """One bucket, or two in different regions."""
    open_store: Text | None = None
    """Bucket without Object Lock for what is written of the segment that is not full yet; empty: it waits."""
    slot: Slot = "drbot_wal"
    """Replication slot of the archiver."""
    synchronous: Flag = False
    """Whether commits wait until the archiver has them on its disk."""


class DatabaseBackup(Part):
    """The copies of one database."""

    database: Identifier
    """The database."""
    dump: DumpBackup
    """Full dump."""
    base: BaseBackup | None = None
    """Full physical backup of its server."""
    incremental: IncrementalBackup | None = None
    """Incremental backup."""
    wal: WalArchive | None = None
    """Archive of the write-ahead log."""


class SecretsEscrow(Part):
    """Where the keys that open SealedSecrets are kept for a cluster that is to replace theirs."""

    bucket: Text
    """The bucket, outside of the clusters."""
    schedule: Schedule = "04:00 UTC"
    """When it is made."""
    retention: Duration | None = None
    """How long one is kept that nothing needs; empty: as long as the longest copy that it may belong to."""
    minimum: Positive = 3
    """Usable ones of each cluster that are kept whatever their age."""
    identity: SecretRef | None = None
    """Reference to an age identity by which the bot gives back what is in it; empty: custodians alone do."""
    secrets: bool = False
    """Whether a recovery point seals the Secrets of the services that neither Git nor a vault brings back."""


class ManifestsRepository(Part):
    """The repository that holds the manifests of a cluster. The bot mirrors it, and lists how the cluster differs."""

    name: Name
    """What commands call it."""
    url: Annotated[
        str,
        Shape(
            r"https://[^\s/@]+/[^\s@]+|http://(?:127\.0\.0\.1|localhost)(?::\d+)?/[^\s@]+|file:///[^\s]+",
            "give https://host/path, without user or token",
        ),
    ]
    """Its address: https, or file for a repository on the worker's machine."""
    branch: Annotated[
        str, Shape(r"(?!.*(?:\.\.|//|@\{))[A-Za-z0-9_][A-Za-z0-9_./-]*", "write the name of a branch")
    ] = "main"
    """The branch that is applied; all others are mirrored too."""
    path: str = ""
    """Folder of the manifests; empty: all of the repository."""
    cluster: Name | None = None
    """The cluster they describe; empty: one that is made in the recovery region on that day, so there is no drift."""
    namespace: KubernetesName = "default"
    """Namespace of objects that name none."""
    username: SecretRef | None = None
    """Reference to the user of the token; empty: git."""
    password: SecretRef | None = None
    """Reference to a token that may read; empty: nobody logs in."""
    push: SecretRef | None = None
    """Reference to a token of the same user that may push to the branch; empty: the bot never pushes."""
    bucket: Text
    """The bucket of the bundles, outside of the clusters."""
    every: Duration = timedelta(minutes=15)
    """Time between two looks; what is in no bundle yet gets one then."""


class ImageMirror(Part):
    """Where images of one origin are in the registry of the recovery region."""

    beginning: Text
    """Beginning of an image's name, host included, such as registry.example/team/."""
    becomes: str = ""
    """What stands for it there; empty: nothing, the rest is the repository."""


class ImageRegistry(Part):
    """The registry that a cluster in the recovery region pulls from."""

    url: Annotated[str, Shape(r"https://[^\s/]+|http://(?:127\.0\.0\.1|localhost)(?::\d+)?", "give https://host")]
    """Its address."""
    username: SecretRef | None = None
    """Reference to the user that may pull; empty: nobody logs in."""
    password: SecretRef | None = None
    """Reference to that user's password or token."""
    mirrors: tuple[ImageMirror, ...] = ()
    """Where images are in it; empty: in repositories of the same names."""
    retention: Duration = timedelta(days=90)
    """How long the registry keeps an image that is not on the bot's list."""


class RecoveryPoints(Part):
    """Where the tuples of what belongs together are recorded."""

    bucket: Text
    """The bucket, outside of the region."""
    every: Duration = timedelta(hours=1)
    """Time between two."""
    retention: Duration | None = None
    """How long one is kept; empty: as long as the longest copy of a database or of files."""
    minimum: Positive = 24
    """Usable ones that are kept whatever their age."""


class ScratchLimits(Part):
    """What restores into scratch instances may take on the worker's machine."""

    disk: Bytes = "200Gi"
    """Disk of all of them together."""
    instances: Positive = 3
    """How many there may be at a time."""
    lifetime: Duration = timedelta(hours=12)
    """Time until one is stopped and removed."""
    advertised_host: Text | None = None
    """Host that applications reach the worker's machine by, for a scratch instance that becomes the primary."""
    ports: Ports | None = None
    """Ports they listen on, each on one of its own for as long as it is there; without it on any that is free."""

    @model_validator(mode="after")
    def a_port_for_each(self) -> Self:
        """Refuse a range with fewer ports than instances."""
        if self.ports is not None:
            first, last = parse_ports(self.ports)
            if (count := last - first + 1) < self.instances:
                wrong = f"`{self.ports}` are {count} ports for {self.instances} instances"
                raise misfit(wrong, "name a range with a port for each, or allow fewer `instances`")
        return self


class ComponentBackup(Part):
    """Copies that another system makes and the plan relies on."""

    component: Text
    """What is copied."""
    method: Text
    """By what means."""
    frequency: Text
    """How often, in words."""
    retention: Retention
    """How long copies are kept."""
    bucket: Text | None = None
    """The bucket it concerns."""


class FilesCopy(Part):
    """The bot's own copy of files in a bucket of another region."""

    name: Name
    """What commands call it."""
    bucket: Text
    """The bucket the copies go into, in another region than the files."""
    schedule: Schedule = "03:00 UTC"
    """When it starts."""


class FileBackup(ComponentBackup):
    """Files in a bucket."""

    name: Name | None = None
    """What commands call files that have no `copy_to`; empty: the component in lower case."""
    prefix: str = ""
    """Which of the bucket's objects; empty: all."""
    copy_to: FilesCopy | None = None
    """The copy that the bot makes; `retention` says how long each is kept."""
    versions: Flag = False
    """Whether old versions in the bucket itself are the backup; they must then stay for `retention`."""

    @property
    def called(self) -> str:
        """What commands call them."""
        return self.name or label_of(self.component) if self.copy_to is None else self.copy_to.name


class ProvenBy(StrEnum):
    """Who carries out restore tests."""

    WORKER = "worker"
    APART = "apart"


class Backups(Part):
    """Everything about copies, and the keys that protect them."""

    local_directory: TextRef
    """Directory of the local copies: an absolute path, or a reference to one."""
    recipients: tuple[Recipient, ...] = Field(min_length=1)
    """age public keys every copy is encrypted to."""
    identity: SecretRef | None = None
    """Reference to the age identity (private half) used by restores; empty where nothing is restored."""
    prover_identity: SecretRef | None = None
    """Reference to the age identity of restore tests, one of `recipients`; empty: they use `identity`."""
    prover: ProvenBy = ProvenBy.WORKER
    """Who carries out restore tests: worker, or apart (`drbot run --role prover`, with no key but its own)."""
    proof_signing_key: SecretRef | None = None
    """Reference to the Ed25519 private key that signs the results of restore tests; empty: `signing_key` does."""
    proof_signers: tuple[Signer, ...] = ()
    """Ed25519 public keys that are trusted for results of restore tests and for nothing else, besides `signers`."""
    signing_key: SecretRef
    """Reference to the Ed25519 private key that signs manifests."""
    signers: tuple[Signer, ...] = Field(min_length=1)
    """Ed25519 public keys whose manifests are trusted."""
    databases: tuple[DatabaseBackup, ...] = Field(min_length=1)
    """Section 2.1: databases."""
    escrow: SecretsEscrow | None = None
    """Escrow of the sealing keys; without it a new cluster cannot open SealedSecrets."""
    manifests: tuple[ManifestsRepository, ...] = ()
    """Repositories of manifests that the bot mirrors."""
    images: ImageRegistry | None = None
    """Registry of the recovery region; without it nobody knows whether a cluster there could start."""
    recovery_points: RecoveryPoints | None = None
    """Records of what belongs together."""
    scratch: ScratchLimits = ScratchLimits()
    """Limits of physical restores beside production."""
    applications: tuple[ComponentBackup, ...] = ()
    """Section 2.2: applications."""
    files: tuple[FileBackup, ...] = ()
    """Section 2.3: files."""

    @property
    def brought_back(self) -> tuple[FileBackup, ...]:
        """The files that the bot can bring back: out of a copy, or out of their own versions. Versions in a bucket that
        is copied are reached under the name of the copy."""
        copied = [item for item in self.files if item.copy_to is not None]

        def reached(item: FileBackup) -> bool:
            return any(each.bucket == item.bucket and item.prefix.startswith(each.prefix) for each in copied)

        alone = [item for item in self.files if item.copy_to is None and item.versions and not reached(item)]
        return (*copied, *alone)

    @property
    def longest(self) -> timedelta:
        """How long something can be brought back at most: by a copy of a database, a copy of files, or their
        versions."""
        kept = [
            part.retention
            for item in self.databases
            for part in (item.dump, item.base, item.incremental, item.wal)
            if part is not None
        ]
        files = [item.retention for item in self.files if item.versions or item.copy_to is not None]
        return max([*kept, *(each for each in files if each != "forever")])
