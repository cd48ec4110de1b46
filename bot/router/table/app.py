"""Services of the application."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("app", "scale"),
        "application.scale",
        CommandKind.PLAN,
        "Set the replica count of a service's workloads",
        'dr app scale web 3 --reason "load of the recovery" --target web',
        params.Scale,
        ("service", "replicas"),
        usage='SERVICE N --reason "WHY" [--target NAME]',
    ),
    Entry(
        ("app", "rollout"),
        "application.rollout",
        CommandKind.PLAN,
        "Restart the workloads of a service and wait for them",
        'dr app rollout web --reason "new credentials" --target web',
        params.Service,
        ("service",),
        usage='SERVICE --reason "WHY" [--target NAME]',
    ),
    Entry(
        ("app", "resume"),
        "application.resume",
        CommandKind.PLAN,
        "Resume the GitOps controllers of a service that plans left suspended",
        'dr app resume web --reason "the repository says 3 replicas now" --target web',
        params.Service,
        ("service",),
        usage='SERVICE --reason "WHY" [--target NAME]',
    ),
)
