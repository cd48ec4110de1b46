"""RESTORE.md, which lies beside the backups: what is there, what is needed, the commands with every name in them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlencode

from actions.backup.catalogue import database_prefix
from actions.backup.native_catalogue import server_prefix
from actions.backup.physical import BackupKind, PhysicalEntry, RecoveryTarget
from actions.backup.wal import wal_folder
from actions.engines import engine_of
from actions.site import BackupPolicy, PhysicalPolicy, Site
from actions.steps.base_choice import usable_bases
from actions.steps.phrases import moment

PROGRAM, PAGE = "restore.py", "RESTORE.md"
AWS = "AWS"

HEAD = """\
# The way back without the bot

This folder is written by the disaster-recovery bot. With it you bring back what the bot has stored while the bot, its
database and Slack are gone. `restore.py` does it: it checks every signature and every hash before anything is used,
and never writes over anything. The last part of this page does the same step by step, without Python.

## 1. See that this is what the bot has written

Whoever can write into this bucket could have changed this page. `kit.json` is signed. Take the key from your own copy
of the plan file (`trusted_signers` of `backups`), not from this page:

```
KEY=...   # base64, 44 characters
printf '302a300506032b6570032100%s' "$(echo "$KEY" | base64 -d | od -An -v -tx1 | tr -d ' \\n')" > key.hex
python3 -c 'open("key.der", "wb").write(bytes.fromhex(open("key.hex").read()))'
openssl pkey -pubin -inform DER -in key.der -out key.pem
{ echo RestoreKit; jq -cSj .document kit.json; } > message
jq -r .signature kit.json | base64 -d > signature
openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in message -sigfile signature
jq -r '.document.files | to_entries[] | .value + "  " + .key' kit.json | sha256sum -c
```

## 2. What you need

- A machine with Linux, Python 3.9 or newer, `age`, `zstd`, `tar` and PostgreSQL's programs on the `PATH`, of the major
  version that is named below (Debian: `apt install age zstd postgresql`; for part 1 `jq` and `openssl`, for part 5
  `awscli`). Nothing is installed from Python's index.
- An account that is not root, and room: for a server three times the size of its data.
- An age identity (`AGE-SECRET-KEY-1...`) that opens the backups, in a file of yours. It is never in the bucket. The
  custodians of the recipients below have one each.
- Keys that read the buckets.

```
export AGE_IDENTITY_FILE=/path/to/identity
@KEYS@
```

Without such keys, or where only another program reaches the store, copy what is under a prefix into a folder and name
the folder in the place of `s3://...`.
"""


def page(site: Site, catalogues: Mapping[str, Sequence[PhysicalEntry]]) -> str:
    """The same for every bucket, and the same again until the plan file or the newest full backup is another."""
    parts = [HEAD.replace("@KEYS@", _keys(site)), "\n## 3. A database from a dump\n"]
    parts += [line for name in sorted(site.backups) for line in _dump(site, site.backups[name])]
    parts.append("\n## 4. A whole server, as it was at a moment\n")
    parts += [line for name in sorted(site.physical) for line in _server(site, name, catalogues.get(name, ()))]
    if not site.physical:
        parts.append("\nThe plan has no base backups.\n")
    parts.append("\n## 5. The newest full backup step by step, without Python\n")
    if site.physical:
        parts.append("\n`aws` takes its keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.\n")
    parts += [line for name in sorted(site.physical) for line in _steps(site, name, catalogues.get(name, ()))]
    return "".join(parts)


def _dump(site: Site, policy: BackupPolicy) -> Iterator[str]:
    database = policy.database
    yield f"\n### Database `{database}`\n\n"
    yield f"Dumps are in `s3://{policy.bucket}/{database_prefix(policy)}`"
    if policy.local_directory:
        yield f", and in `{policy.local_directory}` of the bot's machine (`--from` takes a folder too)"
    yield ".\n"
    yield _opened(policy)
    yield "The newest one, into a new database of the server that `PGHOST`, `PGUSER` and so on name:\n\n"
    begin = ["--from", place(site, policy.bucket, policy.prefix), *_trust(policy), "--database", database]
    yield _commands(
        ["list", *begin],
        ["dump", *begin, "--new", f"{database}_restored"],
    )
    yield "Roles that are missing are made without a login. An older dump: `--backup ID`, as `list` shows it.\n"


def _server(site: Site, server: str, entries: Sequence[PhysicalEntry]) -> Iterator[str]:
    policy = site.physical_of(server)
    yield f"\n### Server `{server}`\n\n"
    fit = usable_bases(entries)
    if fit:
        yield f"PostgreSQL {fit[0].manifest.server_version // 10000}, superuser `{fit[0].manifest.superuser}`. "
    if not (engine := engine_of(policy)).read_by_kit:
        label = engine.label(policy)
        yield f"It is backed up by {engine.title}{f', as `{label}`' if label else ''}: see part 5.\n"
        return
    wal = ", ".join(f"`s3://{bucket}/{wal_folder(policy)}`" for bucket in policy.wal_buckets)
    bases = ", ".join(f"`s3://{bucket}/{server_prefix(policy)}`" for bucket in policy.base_buckets)
    yield f"Base backups are in {bases}, WAL in {wal}.\n"
    yield _opened(policy)
    yield "To the end of the archive; to a moment; to a place in the WAL:\n\n"
    begin = [word for bucket in policy.base_buckets for word in ("--from", place(site, bucket, policy.prefix))]
    begin += [*_trust(policy), "--server", server]
    whole = [*begin]
    # The last one named is the one in the other region, so it is asked first.
    for bucket in reversed(policy.wal_buckets):
        whole += ["--wal", place(site, bucket, policy.prefix)]
    if policy.open_bucket:
        whole += ["--open", place(site, policy.open_bucket, policy.prefix)]
    whole += ["--data", "restored"]
    yield _commands(
        ["list", *begin],
        ["server", *whole],
        ["server", *whole, "--until", "2026-11-23T10:29:58+00:00"],
        ["server", *whole, "--lsn", "16/B374D848"],
    )
    yield (
        "It ends with a server that rests at the target, read only and reached through its data directory alone. How "
        "it is promoted, it says at its end.\n"
    )


def _steps(site: Site, server: str, entries: Sequence[PhysicalEntry]) -> Iterator[str]:
    engine = engine_of(site.physical_of(server))
    fulls = usable_bases(entries, kind=BackupKind.FULL)
    yield f"\n### Server `{server}`\n\n"
    if not fulls:
        yield "When this page was written there was no usable full backup.\n"
        return
    newest = fulls[0].manifest
    lines = engine.restore_by_hand(engine.stored(site, server, entries, fulls[0]), RecoveryTarget(latest=True))
    yield f"`{newest.id}`, which ended {moment(newest.finished_at)}, and all WAL after it:\n\n"
    yield "```\n" + "\n".join(lines) + "\n```\n"


def _opened(policy: BackupPolicy | PhysicalPolicy) -> str:
    recipients = "".join(f"\n- `{recipient}`" for recipient in policy.recipients)
    return (
        f"The bot has its identity as `{policy.identity}`. They are opened by an identity of one of:\n{recipients}\n\n"
    )


def place(site: Site, bucket: str, prefix: str) -> str:
    """As `restore.py` takes it."""
    known = site.buckets.get(bucket)
    options = {} if known is None or known.endpoint is None else {"endpoint": known.endpoint}
    if known is not None:
        options["region"] = known.region
        if (keys := keys_of(site)[known.access_key]) != AWS:
            options["keys"] = keys
    return f"s3://{bucket}/{prefix}" + (f"?{urlencode(options, safe=':/')}" if options else "")


def keys_of(site: Site) -> Mapping[str, str]:
    """What the variables with the keys of each bucket are called, by the reference that the bot has: one name for all
    where the plan file has one pair of keys."""
    references = sorted({bucket.access_key for bucket in site.buckets.values()})
    if len(references) == 1:
        return {references[0]: AWS}
    return {reference: f"KEYS_{number}" for number, reference in enumerate(references, start=1)}


def _keys(site: Site) -> str:
    """The exports of part 2."""
    lines = [
        f"export {name}_ACCESS_KEY_ID=... {name}_SECRET_ACCESS_KEY=...  # the bot has them as {reference or 'its role'}"
        for reference, name in keys_of(site).items()
    ]
    return "\n".join(lines)


def _trust(policy: BackupPolicy | PhysicalPolicy) -> list[str]:
    return [word for signer in policy.trusted_signers for word in ("--trust", signer)]


def _commands(*lines: Sequence[str]) -> str:
    return "```\n" + "\n".join(f"python3 {PROGRAM} {shlex.join(line)}" for line in lines) + "\n```\n\n"
