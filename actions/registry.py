"""Every action and query, in the order help shows them. A new one is added here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from actions.catalog.application import Resume, Rollout, Scale
from actions.catalog.backup import Adopt, Dump, Upload, Verify
from actions.catalog.backup_status import Backups
from actions.catalog.base import Base, Check
from actions.catalog.buckets import BucketState
from actions.catalog.escrow import EscrowSecrets, EscrowState
from actions.catalog.files import ACTIONS as FILE_ACTIONS
from actions.catalog.files import FilesState
from actions.catalog.manifests import DriftState, MirrorManifests, MirrorsState
from actions.catalog.plan_file import Activate
from actions.catalog.point import FindMoment, RestorePoint
from actions.catalog.point_restore import RestoreRecoveryPoint
from actions.catalog.points import ImageState, PointState, Record
from actions.catalog.promote import Promote
from actions.catalog.proof import Prove
from actions.catalog.record_retention import ExpireEscrows, ExpirePoints, PinPoint, UnpinPoint
from actions.catalog.rescue import Rescue
from actions.catalog.restore import Restore
from actions.catalog.retention import Delete, Expire, Pin, Unpin
from actions.catalog.run import ACTIONS as RUN_ACTIONS
from actions.catalog.scratch import ScratchDiscard, ScratchList, ScratchStart
from actions.catalog.standby import Follow, Halt
from actions.catalog.status import Catalogue, ClusterState, Databases
from actions.catalog.swap import Swap
from actions.contract import Action, DrillOf, Kinds, Query
from actions.errors import UserError
from actions.site import Frozen

ACTIONS: tuple[type[Action[Any]], ...] = (
    Dump,
    Upload,
    Verify,
    Adopt,
    Base,
    Check,
    Prove,
    Expire,
    Delete,
    Pin,
    Unpin,
    Restore,
    RestorePoint,
    Rescue,
    Swap,
    Promote,
    RestoreRecoveryPoint,
    Follow,
    Halt,
    ScratchStart,
    ScratchDiscard,
    *FILE_ACTIONS,
    EscrowSecrets,
    ExpireEscrows,
    MirrorManifests,
    Record,
    ExpirePoints,
    PinPoint,
    UnpinPoint,
    Scale,
    Rollout,
    Resume,
    Activate,
    *RUN_ACTIONS,
)

QUERIES: tuple[type[Query[Any]], ...] = (
    Backups,
    Catalogue,
    Databases,
    ClusterState,
    BucketState,
    FilesState,
    EscrowState,
    MirrorsState,
    DriftState,
    ImageState,
    PointState,
    FindMoment,
    ScratchList,
)

FrozenT = TypeVar("FrozenT", bound=Frozen)


def action(name: str) -> Action[Any]:
    """The action of this name. Raises UserError naming those there are."""
    for kind in ACTIONS:
        if kind.name == name:
            return kind()
    known = ", ".join(f"`{kind.name}`" for kind in ACTIONS)
    raise UserError(f"There is no action `{name}`. There are: {known}.")


def names() -> Mapping[str, DrillOf | None]:
    """What a plan file may name as an action, and what the clock runs it for where it is a drill."""
    return {kind.name: kind.drillable for kind in ACTIONS} | {kind.name: None for kind in QUERIES}


def recoveries() -> frozenset[str]:
    """The actions that one person may start under break-glass."""
    return frozenset(kind.name for kind in ACTIONS if kind.recovery)


def query(name: str) -> Query[Any]:
    """The query of this name. Raises UserError naming those there are."""
    for kind in QUERIES:
        if kind.name == name:
            return kind()
    known = ", ".join(f"`{kind.name}`" for kind in QUERIES)
    raise UserError(f"There is no query `{name}`. There are: {known}.")


@cache
def kinds() -> Kinds:
    """Every step and precondition that a plan of this version can hold."""
    steps = [step for kind in ACTIONS for step in kind.steps]
    preconditions = [precondition for kind in ACTIONS for precondition in kind.preconditions]
    return Kinds(steps=_by_kind(steps), preconditions=_by_kind(preconditions))


def _by_kind(types: list[type[FrozenT]]) -> Mapping[str, type[FrozenT]]:
    table: dict[str, type[FrozenT]] = {}
    for kind in types:
        name = str(kind.model_fields["kind"].default)
        if table.setdefault(name, kind) is not kind:
            raise UserError(f"Two kinds of the registry are called `{name}`.")
    return table
