"""What clusters are made of: manifests and images."""

from __future__ import annotations

from bot.router import params
from bot.router.entry import CommandKind, Entry

ROWS: tuple[Entry, ...] = (
    Entry(
        ("manifests", "status"),
        "status.manifests",
        CommandKind.QUERY,
        "Show the mirrors of the manifests repositories, and how one is brought back",
        "dr manifests status",
    ),
    Entry(
        ("manifests", "mirror"),
        "manifests.mirror",
        CommandKind.PLAN,
        "Mirror a manifests repository now; each new commit becomes a signed bundle",
        "dr manifests mirror production",
        params.OptionalManifests,
        ("name",),
        usage="[NAME] [--reason TEXT]",
    ),
    Entry(
        ("drift",),
        "status.drift",
        CommandKind.QUERY,
        "List the drift between the mirrored manifests and their cluster",
        "dr drift production",
        params.OptionalManifests,
        ("name",),
        usage="[NAME]",
    ),
    Entry(
        ("images",),
        "status.images",
        CommandKind.QUERY,
        "Look for every image that runs or that manifests name in the registry of the recovery region",
        "dr images",
    ),
)
