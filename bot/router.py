"""From words to commands: one table for Slack, the command line and help.

`/dr-backup run superprismora`, `/dr backup run superprismora` and `drbot backup run superprismora` are the same row.
A wrong word ends in a UserError of one sentence and one example, never in anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError
from rapidfuzz import fuzz, process

from actions.errors import UserError
from actions.site import Frozen
from bot import router_params as params
from bot.words import Token, tokens

HUB = "dr"
SLASHES = (HUB, "dr-incident", "dr-backup", "dr-restore", "dr-drill", "dr-evidence")
"""The slash commands of Slack, without the slash; each but the hub is a noun of the table."""


BREAK_GLASS = "break-glass"
"""The word before a command that its requester wants to start alone."""


class CommandKind(StrEnum):
    """QUERY answers at once; PLAN asks for a plan and is its first signature; ORDER tells a run what to do, which one
    person may; INCIDENT writes the record; CUSTODY writes the chain of an item of evidence; SIGN is a further act on a
    plan; LOCAL is answered by whoever parsed it (help, the restore modal)."""

    QUERY = "query"
    PLAN = "plan"
    ORDER = "order"
    INCIDENT = "incident"
    CUSTODY = "custody"
    SIGN = "sign"
    LOCAL = "local"


class Command(Frozen):
    """One request, parsed. `typed` is the target's name as the requester typed it."""

    name: str
    params: Mapping[str, Any] = Field(default_factory=dict)
    reason: str = ""
    typed: str = ""
    break_glass: bool = False


@dataclass(frozen=True)
class Entry:
    """One row: the words people type and the command they mean."""

    words: tuple[str, ...]
    name: str
    kind: CommandKind
    summary: str
    example: str  # without the slash: "dr-backup run superprismora"
    params: type[Frozen] = params.Nothing
    positional: tuple[str, ...] = ()
    rest: str = ""  # the parameter that takes all further words as a sentence
    aliases: Mapping[str, str] = field(default_factory=dict)  # option -> parameter
    usage: str = ""
    flags: tuple[str, ...] = ()  # options that need no value

    @property
    def noun(self) -> str:
        return self.words[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Every name that may stand after `--`."""
        own = [name.replace("_", "-") for name in self.params.model_fields if name != self.rest]
        signing = {CommandKind.PLAN: ["reason", "target"], CommandKind.ORDER: ["reason"]}.get(self.kind, [])
        return tuple(dict.fromkeys([*own, *self.aliases, *signing]))


_Q, _P, _I, _L = CommandKind.QUERY, CommandKind.PLAN, CommandKind.INCIDENT, CommandKind.LOCAL
_O, _C = CommandKind.ORDER, CommandKind.CUSTODY


def _order(word: str, summary: str) -> Entry:
    """Without a name it is the only run that is open."""
    example = f'dr run {word} k7m2n3p4q5 --reason "the vendor is on the phone"'
    return Entry(
        ("run", word), f"run.{word}", _O, summary, example, params.OptionalRun, ("run",), usage="[RUN] [--reason TEXT]"
    )


def _about_run(word: str, summary: str, takes: type[Frozen]) -> Entry:
    """A plan about another run."""
    example = f'dr run {word} k7m2n3p4q5 --reason "looked at it with psql" --target superprismora'
    name, step = f"run.{word.replace('-', '_')}", takes is params.Answer
    usage = f'[RUN] {"[STEP] " if step else ""}--reason "WHY" [--target NAME]'
    return Entry(("run", word), name, _P, summary, example, takes, ("run", "step") if step else ("run",), usage=usage)


TABLE: tuple[Entry, ...] = (
    Entry(("help",), "help", _L, "Show what the bot can do", "dr help backup", params.Help, ("topic",), usage="[NOUN]"),
    Entry(("status",), "status", _Q, "Show open incidents, what runs and how old the backups are", "dr status"),
    Entry(("doctor",), "doctor", _Q, "Check the bot itself: access, backups, Slack", "dr doctor"),
    Entry(
        ("size",),
        "status.databases",
        _Q,
        "Show the size of every database, or of one",
        "dr size superprismora",
        params.OptionalDatabase,
        ("database",),
        usage="[DATABASE]",
    ),
    Entry(
        ("pods",),
        "status.cluster",
        _Q,
        "Show the workloads and pods of every service, or of one",
        "dr pods superprismora",
        params.OptionalService,
        ("service",),
        usage="[SERVICE]",
    ),
    Entry(
        ("buckets",),
        "status.buckets",
        _Q,
        "Hold the settings of every bucket against the plan, or of one",
        "dr buckets superprismora-backups",
        params.OptionalBucket,
        ("bucket",),
        usage="[BUCKET]",
    ),
    Entry(
        ("incident", "open"),
        "incident.open",
        _I,
        "Open an incident and start its timeline and RTO clock",
        'dr-incident open "Orders table is gone" --severity SEV1',
        params.OpenIncident,
        rest="title",
        usage="TITLE [--severity SEV1] [--scenario NAME] [--impact 10:40] [--channel #CHANNEL|new]",
    ),
    Entry(
        ("incident", "close"),
        "incident.close",
        _I,
        "Close the channel's incident",
        'dr-incident close "Restored from the dump of 02:00"',
        params.CloseIncident,
        rest="summary",
        usage="[SUMMARY] [--incident NUMBER]",
    ),
    Entry(
        ("incident", "note"),
        "incident.note",
        _I,
        "Add a line to the timeline",
        'dr-incident note "Vendor says the disk is lost"',
        params.Note,
        rest="text",
        usage="TEXT [--at 10:42] [--incident NUMBER]",
    ),
    Entry(
        ("incident", "amend"),
        "incident.amend",
        _I,
        "Put a correction beside a line of the timeline, which itself stays as it is",
        'dr-incident amend 12 "It was the secondary, not the primary"',
        params.Amend,
        ("entry",),
        rest="text",
        usage="NUMBER TEXT [--incident NUMBER]",
    ),
    Entry(
        ("incident", "suspect-slack"),
        "incident.suspect_slack",
        _I,
        "Say that Slack itself may be in wrong hands: its buttons stop counting for this incident",
        'dr-incident suspect-slack "Sam did not write that"',
        params.SuspectSlack,
        rest="text",
        usage="[WHY] [--incident NUMBER]",
    ),
    Entry(
        ("incident", "clear-suspect-slack"),
        "incident.clear_suspect_slack",
        _I,
        "Trust Slack again, on the command line alone: two persons sign with their keys",
        'dr-incident clear-suspect-slack "Sessions revoked"',
        params.SuspectSlack,
        rest="text",
        usage="[WHY] [--incident NUMBER]",
    ),
    Entry(("incident", "list"), "incident.list", _Q, "List the incidents", "dr-incident list"),
    Entry(
        ("incident", "show"),
        "incident.show",
        _Q,
        "Show one incident with its RTO clock",
        "dr-incident show 7",
        params.Incident,
        ("incident",),
        usage="[NUMBER]",
    ),
    Entry(
        ("incident", "timeline"),
        "incident.timeline",
        _Q,
        "Show the timeline, or export it with its proofs as md, json, jsonl or html",
        "dr-incident timeline html",
        params.Timeline,
        ("format",),
        usage="[md|json|jsonl|html] [--incident NUMBER] [--page N]",
    ),
    Entry(
        ("backup", "status"),
        "status.backups",
        _Q,
        "Show what can be recovered, what would be lost now, and how the backups stand",
        "dr-backup status",
        params.OptionalDatabase,
        ("database",),
        usage="[DATABASE]",
    ),
    Entry(
        ("backup", "list"),
        "status.catalogue",
        _Q,
        "List the backups of the catalogue",
        "dr-backup list superprismora",
        params.OptionalDatabase,
        ("database",),
        usage="[DATABASE]",
    ),
    Entry(
        ("backup", "run"),
        "backup.dump",
        _P,
        "Dump one database to the bucket, encrypted",
        'dr-backup run superprismora --reason "before the migration"',
        params.Database,
        ("database",),
        usage="DATABASE [--reason TEXT]",
    ),
    Entry(
        ("backup", "upload"),
        "backup.upload",
        _P,
        "Bring a dump that is in the local copy alone into its bucket",
        "dr-backup upload superprismora",
        params.Verify,
        ("database", "backup"),
        usage="DATABASE [BACKUP] [--reason TEXT]",
    ),
    Entry(
        ("backup", "verify"),
        "backup.verify",
        _P,
        "Read a stored backup completely and check its signature and hashes",
        "dr-backup verify superprismora",
        params.Verify,
        ("database", "backup"),
        usage="DATABASE [BACKUP] [--reason TEXT]",
    ),
    Entry(
        ("backup", "adopt"),
        "backup.adopt",
        _P,
        "Take a dump found in the bucket into the catalogue, after a restore in scratch",
        "dr-backup adopt superprismora backups/backup_20260226.dump",
        params.Adopt,
        ("database", "source_key"),
        usage="DATABASE KEY [--reason TEXT]",
    ),
    Entry(
        ("backup", "base"),
        "backup.base",
        _P,
        "Make a base backup of a server now: all pages, or those that changed",
        'dr-backup base superprismora full --reason "before the upgrade"',
        params.Base,
        ("server", "kind"),
        usage="[SERVER|DATABASE] [full|incremental] [--reason TEXT]",
    ),
    Entry(
        ("backup", "check-base"),
        "backup.check_base",
        _P,
        "Read a stored base backup completely and check every file of it",
        "dr-backup check-base superprismora",
        params.CheckBase,
        ("server", "backup"),
        usage="[SERVER|DATABASE] [BACKUP] [--reason TEXT]",
    ),
    Entry(
        ("backup", "prove"),
        "backup.prove",
        _P,
        "Test that the backups of a server can be restored, and measure how long it takes",
        "dr-backup prove superprismora random",
        params.Prove,
        ("server", "moment"),
        usage="[SERVER|DATABASE] [latest|random] [--reason TEXT]",
    ),
    Entry(
        ("backup", "expire"),
        "backup.expire",
        _P,
        "Delete the backups and the WAL that the policy lets go; the plan names each before",
        "dr-backup expire superprismora",
        params.Expire,
        ("server",),
        usage="[SERVER|DATABASE] [--reason TEXT]",
    ),
    Entry(
        ("backup", "delete"),
        "backup.delete",
        _P,
        "Delete one dump or base backup by name, unless it is pinned or needed",
        'dr-backup delete primary primary-k7m2n3p4q5 --reason "damaged" --target primary-k7m2n3p4q5',
        params.Delete,
        ("server", "backup"),
        usage='SERVER|DATABASE BACKUP --reason "WHY" --target BACKUP',
    ),
    Entry(
        ("backup", "pin"),
        "backup.pin",
        _P,
        "Keep a dump or base backup whatever the policy says, with the reason (a legal hold)",
        'dr-backup pin primary primary-k7m2n3p4q5 "evidence of case 4711"',
        params.Pin,
        ("server", "backup"),
        rest="why",
        usage="SERVER|DATABASE BACKUP WHY",
    ),
    Entry(
        ("backup", "unpin"),
        "backup.unpin",
        _P,
        "Let a pinned dump or base backup go when the policy lets it go",
        'dr-backup unpin primary primary-k7m2n3p4q5 --reason "case closed" --target primary-k7m2n3p4q5',
        params.Unpin,
        ("server", "backup"),
        usage='SERVER|DATABASE BACKUP --reason "WHY" --target BACKUP',
    ),
    Entry(
        ("restore",),
        "restore.dump",
        _P,
        "Restore a database beside production and swap it in; without arguments a form opens",
        'dr-restore superprismora --reason "orders table dropped" --target superprismora',
        params.Restore,
        ("database",),
        aliases={"from": "backup", "suspect": "instance_suspect"},
        usage='DATABASE [--from BACKUP] [--before TIME] [--suspect] --reason "WHY" --target NAME',
        flags=("suspect", "instance-suspect"),
    ),
    Entry(("drill", "list"), "drill.list", _Q, "List the drills: last tested, next test", "dr-drill list"),
    Entry(("drill", "next"), "drill.next", _Q, "Show the drill that is due next, and what to do", "dr-drill next"),
    Entry(
        ("drill", "done"),
        "drill.done",
        _I,
        "Record that a drill was held",
        'dr-drill done failover "switched over and back in 4 min"',
        params.DrillDone,
        ("drill",),
        rest="note",
        usage="DRILL [NOTE]",
    ),
    Entry(
        ("drill", "postpone"),
        "drill.postpone",
        _I,
        "Put a drill off to another day, with the reason",
        'dr-drill postpone failover 2026-12-20 "release week"',
        params.DrillPostpone,
        ("drill", "date"),
        rest="why",
        usage="DRILL YYYY-MM-DD REASON",
    ),
    Entry(
        ("evidence", "list"),
        "evidence.list",
        _Q,
        "List the evidence of an incident: what, who holds it, where",
        "dr-evidence list",
        params.ListEvidence,
        usage="[--incident NUMBER]",
    ),
    Entry(
        ("evidence", "show"),
        "evidence.show",
        _Q,
        "Show one item of evidence with its chain of custody",
        "dr-evidence show E-3",
        params.ShowEvidence,
        ("item",),
        usage="ITEM",
    ),
    Entry(
        ("evidence", "add"),
        "evidence.add",
        _C,
        "Take something up as evidence: what is held elsewhere, or, on the command line, a file",
        'dr-evidence add "Disk of web-1" --where "safe in room 12" --source "host web-1"',
        params.AddEvidence,
        rest="title",
        aliases={"class": "classification"},
        usage="TITLE [--where TEXT] [--source TEXT] [--class normal|restricted|secret-bearing] [--sha256 HEX] "
        "[--file FILE] [--incident NUMBER]",
    ),
    Entry(
        ("evidence", "hand"),
        "evidence.hand",
        _C,
        "Record that an item of evidence was handed to somebody",
        'dr-evidence hand E-3 "Notary Meier" "sealed, against receipt"',
        params.HandEvidence,
        ("item", "person"),
        rest="why",
        usage="ITEM PERSON WHY",
    ),
    Entry(
        ("evidence", "record"),
        "evidence.record",
        _C,
        "Record what was done with an item: viewed, copied, exported, sealed",
        'dr-evidence record E-3 sealed "bag 4711" --where "safe in room 12"',
        params.RecordEvidence,
        ("item", "action"),
        rest="why",
        usage="ITEM viewed|copied|exported|sealed [WHY] [--where TEXT] [--sha256 HEX]",
    ),
    Entry(
        ("evidence", "verify"),
        "evidence.verify",
        _C,
        "Read the stored evidence again, on the command line alone: ok, altered, missing or unverifiable",
        "dr-evidence verify --incident 7",
        params.VerifyEvidence,
        usage="[--incident NUMBER]",
    ),
    Entry(
        ("restore", "point"),
        "restore.point",
        _P,
        "Restore a server to a moment in a scratch instance and compare; production is not touched",
        "dr-restore superprismora --before-drop orders",
        params.Point,
        ("database",),
        aliases={"from": "backup"},
        usage="DATABASE --at TIME|--lsn LSN|--xid N|--name NAME|--latest|--before-drop|-delete|-truncate|-update TABLE "
        "[--from BACKUP] [--keep HOURS] [--amcheck]",
        flags=("latest", "amcheck"),
    ),
    Entry(
        ("restore", "find"),
        "restore.find",
        _Q,
        "Find when a table was dropped, truncated or deleted from, in the archived WAL",
        "dr-restore find superprismora orders",
        params.Find,
        ("database", "table"),
        usage="DATABASE TABLE [--change drop|truncate|delete|update] [--since TIME]",
    ),
    Entry(
        ("restore", "rescue"),
        "restore.rescue",
        _P,
        "Bring one table, or its missing rows, out of a scratch instance into production",
        'dr-restore rescue k7m2n3p4q5 orders --reason "dropped by the migration" --target superprismora',
        params.Rescue,
        ("scratch", "table"),
        aliases={"as": "as_name"},
        usage='SCRATCH TABLE [--missing-rows|--as NAME] --reason "WHY" --target NAME',
        flags=("missing-rows",),
    ),
    Entry(
        ("restore", "swap"),
        "restore.swap",
        _P,
        "Give one database back as a scratch instance has it; the present one is kept in quarantine",
        'dr-restore swap k7m2n3p4q5 --reason "too much is gone" --target superprismora',
        params.Swap,
        ("scratch",),
        usage='SCRATCH [--database NAME] --reason "WHY" --target NAME',
    ),
    Entry(
        ("restore", "promote"),
        "restore.promote",
        _P,
        "Make a scratch instance the new primary, close the old one, point applications there",
        'dr-restore promote k7m2n3p4q5 --reason "the server is lost" --target superprismora',
        params.Promote,
        ("scratch",),
        usage='SCRATCH [--database NAME] [--old-primary-is-dead] --reason "WHY" --target NAME',
        flags=("old-primary-is-dead",),
    ),
    Entry(
        ("restore", "recovery-point"),
        "restore.recovery_point",
        _P,
        "Bring a recovery point back as one: databases, files and images of the same moment",
        'dr-restore recovery-point point-k7m2n3p4q5 --reason "bad release" --target point-k7m2n3p4q5',
        params.RecoveryPoint,
        ("point",),
        usage='POINT [--scratch NAME] --reason "WHY" --target POINT',
    ),
    Entry(
        ("restore", "follow"),
        "restore.follow",
        _P,
        "Keep a restored server ready that replays the archive, optionally hours behind",
        "dr-restore follow superprismora --delay 4h",
        params.Follow,
        ("database",),
        usage="DATABASE [--delay 4h] [--instead-of SCRATCH]",
    ),
    Entry(
        ("restore", "halt"),
        "restore.halt",
        _P,
        "Stop an instance that follows at a moment, so that it becomes the restore to it",
        "dr-restore halt k7m2n3p4q5 --before-drop orders",
        params.Halt,
        ("scratch",),
        usage="SCRATCH --at TIME|--lsn LSN|--name NAME|--latest|--before-drop|-delete|-truncate|-update TABLE "
        "[--xid N] [--database NAME]",
        flags=("latest",),
    ),
    Entry(("restore", "scratch"), "scratch.list", _Q, "List the scratch instances", "dr-restore scratch"),
    Entry(
        ("restore", "wake"),
        "scratch.start",
        _P,
        "Start a scratch instance that is stopped",
        "dr-restore wake k7m2n3p4q5",
        params.Scratch,
        ("scratch",),
        usage="SCRATCH",
    ),
    Entry(
        ("restore", "discard"),
        "scratch.discard",
        _P,
        "Remove a scratch instance before its time",
        "dr-restore discard k7m2n3p4q5",
        params.Scratch,
        ("scratch",),
        usage="SCRATCH",
    ),
    Entry(
        ("files", "status"),
        "status.files",
        _Q,
        "List the copies of files, with what their comparison found",
        "dr files status minio-data",
        params.OptionalFiles,
        ("name",),
        usage="[NAME]",
    ),
    Entry(
        ("files", "copy"),
        "files.copy",
        _P,
        "Copy files into their other region now, and compare both",
        'dr files copy minio-data --reason "before the upgrade"',
        params.Files,
        ("name",),
        usage="NAME [--reason TEXT]",
    ),
    Entry(
        ("files", "restore"),
        "files.restore",
        _P,
        "Bring back what is missing out of a copy; with `--replace` also what changed",
        'dr files restore minio-data photos/ --reason "bucket lost" --target superprismora-files',
        params.RestoreFiles,
        ("name", "prefix"),
        aliases={"from": "copy_id"},
        usage='NAME [PREFIX] [--from COPY] [--into BUCKET] [--replace] --reason "WHY" --target BUCKET',
        flags=("replace",),
    ),
    Entry(
        ("files", "undelete"),
        "files.undelete",
        _P,
        "Bring deleted files back as of a moment, out of the versions of their bucket",
        'dr files undelete minio-data 10:25 photos/ --reason "deleted by a script" --target superprismora-files',
        params.UndeleteFiles,
        ("name", "at", "prefix"),
        usage='NAME MOMENT [PREFIX] [--replace] --reason "WHY" --target BUCKET',
        flags=("replace",),
    ),
    Entry(
        ("secrets", "status"),
        "status.escrow",
        _Q,
        "Show which sealing keys are in escrow, and how a new cluster gets them",
        "dr secrets status",
    ),
    Entry(
        ("secrets", "escrow"),
        "secrets.escrow",
        _P,
        "Put the sealing keys of a cluster into escrow, encrypted to the recipients",
        "dr secrets escrow production",
        params.OptionalCluster,
        ("cluster",),
        usage="[CLUSTER] [--reason TEXT]",
    ),
    Entry(
        ("secrets", "expire"),
        "secrets.expire",
        _P,
        "Delete the escrows that the policy lets go and that nothing needs",
        "dr secrets expire production",
        params.OptionalCluster,
        ("cluster",),
        usage="[CLUSTER] [--reason TEXT]",
    ),
    Entry(
        ("manifests", "status"),
        "status.manifests",
        _Q,
        "Show the mirrors of the manifests repositories, and how one is brought back",
        "dr manifests status",
    ),
    Entry(
        ("manifests", "mirror"),
        "manifests.mirror",
        _P,
        "Mirror a manifests repository now; each new commit becomes a signed bundle",
        "dr manifests mirror production",
        params.OptionalManifests,
        ("name",),
        usage="[NAME] [--reason TEXT]",
    ),
    Entry(
        ("drift",),
        "status.drift",
        _Q,
        "List the drift between the mirrored manifests and their cluster",
        "dr drift production",
        params.OptionalManifests,
        ("name",),
        usage="[NAME]",
    ),
    Entry(
        ("images",),
        "status.images",
        _Q,
        "Look for every image that runs or that manifests name in the registry of the recovery region",
        "dr images",
    ),
    Entry(
        ("point", "list"),
        "status.points",
        _Q,
        "List the recovery points, or show the commands that bring one back",
        "dr point list point-k7m2n3p4q5",
        params.OptionalPoint,
        ("point",),
        usage="[POINT]",
    ),
    Entry(
        ("point", "record"),
        "point.record",
        _P,
        "Record what belongs together now: databases, files, images, commit, escrow",
        'dr point record --reason "before the migration"',
        usage="[--reason TEXT]",
    ),
    Entry(
        ("point", "expire"),
        "point.expire",
        _P,
        "Delete the recovery points that the policy lets go; the plan names them first",
        "dr point expire",
        usage="[--reason TEXT]",
    ),
    Entry(
        ("point", "pin"),
        "point.pin",
        _P,
        "Keep a recovery point, its dumps, escrow and images whatever the policy says (a legal hold)",
        'dr point pin point-k7m2n3p4q5 "evidence of case 4711"',
        params.PinPoint,
        ("point",),
        rest="why",
        usage="POINT WHY",
    ),
    Entry(
        ("point", "unpin"),
        "point.unpin",
        _P,
        "Let a pinned recovery point, and the dumps pinned with it, go when the policy does",
        "dr point unpin point-k7m2n3p4q5",
        params.UnpinPoint,
        ("point",),
        usage="POINT",
    ),
    Entry(
        (BREAK_GLASS,),
        BREAK_GLASS,
        _L,
        "Start a recovery alone, after a delay in which others may veto; two others review it afterwards",
        'dr break-glass restore superprismora --reason "nobody answers" --target superprismora',
        usage='RESTORE ... --reason "WHY" --target NAME',
    ),
    Entry(
        ("review",),
        "review",
        CommandKind.SIGN,
        "Record that you have looked at a run that was started under break-glass",
        'dr review k7m2n3p4q5 "right backup, right hour"',
        params.Review,
        ("plan",),
        rest="text",
        usage="PLAN WORDS",
    ),
    Entry(
        ("app", "scale"),
        "application.scale",
        _P,
        "Set the replica count of a service's workloads",
        'dr app scale web 3 --reason "load of the recovery" --target web',
        params.Scale,
        ("service", "replicas"),
        usage='SERVICE N --reason "WHY" [--target NAME]',
    ),
    Entry(
        ("app", "rollout"),
        "application.rollout",
        _P,
        "Restart the workloads of a service and wait for them",
        'dr app rollout web --reason "new credentials" --target web',
        params.Service,
        ("service",),
        usage='SERVICE --reason "WHY" [--target NAME]',
    ),
    Entry(
        ("app", "resume"),
        "application.resume",
        _P,
        "Resume the GitOps controllers of a service that plans left suspended",
        'dr app resume web --reason "the repository says 3 replicas now" --target web',
        params.Service,
        ("service",),
        usage='SERVICE --reason "WHY" [--target NAME]',
    ),
    _order("pause", "Pause a run once its present step is done"),
    _order("resume", "Let a paused run go on"),
    _order("abort", "End a run once its present step is done, and put back what it changed"),
    _order("stop", "End the present step of a run at once; the run then asks"),
    _order("again", "Have a run that asks look at its unclear step again"),
    _about_run("happened", "Answer a run that asks: it has happened, go on", params.Answer),
    _about_run("repeat", "Answer a run that asks: it has not happened, do it again", params.Answer),
    _about_run("undo", "Answer a run that asks: abort, and undo what was done", params.Answer),
    _about_run("skip", "Answer a run that asks: leave out its optional step", params.Answer),
    _about_run("leave", "Answer a run that asks: end here, leave everything as it stands", params.Answer),
    _about_run("retry", "Try a failed run again after its cause was repaired", params.OptionalRun),
    _about_run("undo-finished", "Undo the finished steps of a run that is over", params.OptionalRun),
)

RESTORE_FORM = "restore.form"
"""The name of the local command that opens the restore modal."""


class Router:
    """Parses by a table; `TABLE` unless a test brings its own."""

    def __init__(self, table: Sequence[Entry] = TABLE) -> None:
        self.table = tuple(table)

    def parse_slash(self, slash: str, text: str) -> Command:
        """Parse what Slack sends: `/dr-backup` and `list`. Raises UserError."""
        noun = slash.removeprefix("/").removeprefix(HUB).removeprefix("-")
        return self.parse([*tokens(noun), *tokens(text)])

    def parse_argv(self, argv: Sequence[str]) -> Command:
        """Parse the words of a shell, which has taken its quotes away already. Raises UserError."""
        return self.parse([_shell_token(word) for word in argv])

    def parse(self, words: Sequence[Token]) -> Command:
        """Raises UserError for everything it does not understand."""
        if not words:
            return Command(name="help", params={})
        if words[0].value.casefold() == BREAK_GLASS:
            return self._alone(words[1:])
        if len(words) == 2 and words[1].value.casefold() == "help" and self.entries(words[0].value.casefold()):
            return Command(name="help", params={"topic": words[0].value.casefold()})
        entry = self._entry(words)
        if entry is None:
            return self._without_verb(words)
        rest = words[len(entry.words) :]
        if entry.name == "restore.dump" and (point := self.entry("restore.point")) and _names_a_moment(rest):
            entry = point
        return _Arguments(entry, rest).command()

    def _alone(self, words: Sequence[Token]) -> Command:
        """The command behind `break-glass`."""
        command = self.parse(words)
        entry = self.entry(command.name)
        if entry is None or entry.kind is not CommandKind.PLAN or command.break_glass:
            example = next(item.example for item in self.table if item.name == BREAK_GLASS)
            what = f"`{shown(words[0].value)}` is nothing to start alone" if words else "Say what you start alone"
            raise UserError(f"{what}. Example: `/{example}`")
        return command.model_copy(update={"break_glass": True})

    def nouns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.noun for entry in self.table))

    def entries(self, noun: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.table if entry.noun == noun)

    def usage(self, noun: str) -> str:
        """The help of a noun for the command line."""
        return "\n".join(f"drbot {' '.join(entry.words)} {entry.usage}".rstrip() for entry in self.entries(noun))

    def entry(self, name: str) -> Entry | None:
        """The row of a command's name."""
        return next((entry for entry in self.table if entry.name == name), None)

    def _entry(self, words: Sequence[Token]) -> Entry | None:
        spoken = [word.value.casefold() for word in words[:3]]
        fits = [entry for entry in self.table if list(entry.words) == spoken[: len(entry.words)]]
        return max(fits, key=lambda entry: len(entry.words), default=None)

    def _without_verb(self, words: Sequence[Token]) -> Command:
        noun = words[0].value.casefold()
        entries = self.entries(noun)
        if entries and len(words) == 1:
            return Command(name="help", params={"topic": noun})
        if entries:
            verb = words[1].value
            verbs = [entry.words[1] for entry in entries if len(entry.words) > 1]
            near = _nearest(verb, verbs)
            example = next((entry.example for entry in entries if near in entry.words), entries[0].example)
            raise UserError(f"There is no `{shown(noun)} {shown(verb)}`{_meant(near)}. Example: `/{example}`")
        near = _nearest(noun, [*self.nouns(), *(entry.words[-1] for entry in self.table)])
        example = next((entry.example for entry in self.table if near in entry.words), "dr help")
        raise UserError(f"There is no `{shown(words[0].value)}`{_meant(near)}. Example: `/{example}`")


class _Arguments:
    """The words after a command, sorted into parameters."""

    def __init__(self, entry: Entry, words: Sequence[Token]) -> None:
        self.entry = entry
        self.words = list(words)
        self.given: dict[str, str] = {}
        self.spoken: list[str] = []

    def command(self) -> Command:
        if self.entry.name == "restore.dump" and not self.words:
            return Command(name=RESTORE_FORM)
        self._sort()
        signing = self.entry.kind in (CommandKind.PLAN, CommandKind.ORDER)
        reason = self.given.pop("reason", "") if signing else ""
        typed = self.given.pop("target", "") if signing else ""
        if self.entry.rest and self.spoken:
            self.given.setdefault(self.entry.rest, " ".join(self.spoken))
        try:
            checked = self.entry.params.model_validate(self.given)
        except ValidationError as error:
            raise self._wrong(_sentence(error)) from error
        except ValueError as error:  # int() of absurdly long digits
            raise self._wrong("A value cannot be read") from error
        return Command(name=self.entry.name, params=checked.model_dump(mode="json"), reason=reason, typed=typed)

    def _sort(self) -> None:
        free = list(self.entry.positional)
        while self.words:
            word = self.words.pop(0)
            if word.option and self._option(word):
                continue
            if free and not word.option:
                self.given[free.pop(0)] = word.value
            elif self.entry.rest:
                self.spoken.append(word.readable)
            else:
                raise self._wrong(f"`{shown(word.readable)}` is one word too many")

    def _option(self, word: Token) -> bool:
        """Take `--name value` or `--name=value`; False when it is no option but part of a sentence."""
        name, equals, value = word.value.partition("=")
        name = name.casefold().replace("_", "-")
        if name not in self.entry.options:
            if self.entry.rest and word.dashed != "--":
                return False  # a dash of a sentence
            raise self._wrong(f"There is no `--{shown(name)}`{_meant(_nearest(name, self.entry.options), '--')}")
        parameter = self.entry.aliases.get(name, name.replace("-", "_"))
        if parameter in self.given:
            raise self._wrong(f"`{shown(parameter)}` is given twice")
        if not equals and name in self.entry.flags:
            value = "yes"
        elif not equals:
            if not self.words:
                raise self._wrong(f"`--{name}` needs a value")
            following = self.words.pop(0)
            value = following.readable if name == "reason" else following.value
            if name in ("at", "before", "since"):
                value = " ".join([value, *self._rest_of_a_moment()])
        self.given[parameter] = value
        return True

    def _rest_of_a_moment(self) -> Iterator[str]:
        """`2026-02-26 10:30:00 UTC` is three words, which nobody under stress puts into quotes."""
        while self.words and re.fullmatch(r"\d{1,2}:\d{2}[\d:.]*|UTC|Z|ago|[+-]\d{2}:?\d{2}", self.words[0].value):
            yield self.words.pop(0).value

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{what}. Example: `/{self.entry.example}`")


def shown(text: str, limit: int = 60) -> str:
    """People's own words inside a code span of an answer: printable, short, unable to close the span."""
    clean = "".join(sign for sign in text if sign.isprintable()).replace("`", "'")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _names_a_moment(words: Sequence[Token]) -> bool:
    """Whether a restore is asked for by a moment rather than by a dump."""
    named = {word.value.partition("=")[0].casefold().replace("_", "-") for word in words if word.option}
    return bool(named & {name.replace("_", "-") for name in params.MOMENTS})


def _shell_token(word: str) -> Token:
    """A word of a shell is what it says: only a leading `--` has a meaning."""
    dashed = "--" if word.startswith("--") and len(word) > 2 else ""
    return Token(word[len(dashed) :], word, dashed)


def _nearest(word: str, names: Iterable[str]) -> str:
    found = process.extractOne(word, list(names), scorer=fuzz.WRatio, score_cutoff=55)
    return str(found[0]) if found else ""


def _meant(name: str, prefix: str = "") -> str:
    return f"; did you mean `{prefix}{name}`" if name else ""


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "value"
    if first["type"] == "missing":
        return f"`{name}` is missing"
    why = first["msg"].removeprefix("Value error, ")
    return f"`{name}` is not right: {shown(why[:1].lower() + why[1:], 160)}"
