"""Rules between parts of the plan: names that must exist, and names that must be single.

They work on plain data (dicts, lists, strings) and pass over what has another
shape, so that a file with a mistake in one place still hears about all others.
"""

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz, process, utils

from actions.backup.physical import SCRATCH
from actions.engine import Engine
from actions.engines import engines
from actions.site import DEFAULT_ENGINE
from bot.plan_file.values import label_of

Path = tuple[str | int, ...]
Found = tuple[Path, object]


@dataclass(frozen=True)
class Broken:
    """A rule that does not hold at `path`: what is wrong, and what would be right."""

    path: Path
    wrong: str
    right: str


_OURS = frozenset({"drbot", "schedule", "thescheduleoftheplan"})

_ALIKE = str.maketrans("аӏсԁеһорѕтьвгн" + "αβερτουι" + "015i", "alcdehopstbbrh" + "abeptoul" + "olsl")
"""Small letters of other alphabets, and digits, that look like those of these names."""

# (where a name is used, where it is defined, what it names, names that always exist)
_REFERENCES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("servers.*.standby_of", "servers.*.name", "server", ()),
    ("servers.*.workload.cluster", "clusters.*.name", "cluster", ()),
    ("databases.*.server", "servers.*.name", "server", ()),
    ("databases.*.spare_server", "servers.*.name", "server", ()),
    ("databases.*.application", "services.*.name", "service", ()),
    ("services.*.cluster", "clusters.*.name", "cluster", ()),
    ("jobs.cluster", "clusters.*.name", "cluster", ()),
    ("services.*.workloads.*.writes_to.*", "databases.*.name", "database", ()),
    ("backups.databases.*.database", "databases.*.name", "database", ()),
    ("backups.databases.*.dump.stores.*", "buckets.*.name", "bucket", ("local",)),
    ("backups.databases.*.base.stores.*", "buckets.*.name", "bucket", ()),
    ("backups.databases.*.incremental.stores.*", "buckets.*.name", "bucket", ()),
    ("backups.databases.*.wal.stores.*", "buckets.*.name", "bucket", ()),
    ("backups.databases.*.wal.open_store", "buckets.*.name", "bucket", ()),
    ("backups.applications.*.bucket", "buckets.*.name", "bucket", ()),
    ("backups.files.*.bucket", "buckets.*.name", "bucket", ()),
    ("backups.files.*.copy_to.bucket", "buckets.*.name", "bucket", ()),
    ("backups.recovery_points.bucket", "buckets.*.name", "bucket", ()),
    ("backups.escrow.bucket", "buckets.*.name", "bucket", ()),
    ("backups.manifests.*.bucket", "buckets.*.name", "bucket", ()),
    ("backups.manifests.*.cluster", "clusters.*.name", "cluster", ()),
    ("buckets.*.replicates_to", "buckets.*.name", "bucket", ()),
    ("evidence.bucket", "buckets.*.name", "bucket", ()),
    ("record.witnesses.*.bucket", "buckets.*.name", "bucket", ()),
    ("approval.rules.*.slots.*.role", "roster.*.roles.*", "role", ()),
    ("approval.rules.*.services.*", "services.*.name", "service", ()),
    ("rota.*.persons.*", "roster.*.id", "person", ()),
    ("runbooks.*.scenarios.*", "scenarios.*.name", "scenario", ()),
    ("contacts.*.person", "roster.*.id", "person", ()),
)

# (names that must differ, what they name)
_UNIQUE: tuple[tuple[str, str], ...] = (
    ("scenarios.*.name", "scenario"),
    ("servers.*.name", "server"),
    ("databases.*.name", "database"),
    ("clusters.*.name", "cluster"),
    ("services.*.name", "service"),
    ("buckets.*.name", "bucket"),
    ("backups.databases.*.database", "database"),
    ("backups.files.*.copy_to.name", "copy of files"),
    ("backups.manifests.*.name", "manifests repository"),
    ("roster.*.id", "person"),
    ("roster.*.slack_ids.*", "Slack account"),
    ("runbooks.*.name", "runbook"),
    ("drills.*.name", "drill"),
    ("record.witnesses.*.name", "witness"),
)


def find(data: object, pattern: str) -> list[Found]:
    """Every value that a dotted pattern such as `databases.*.server` reaches, with its path."""
    found: list[Found] = [((), data)]
    for key in pattern.split("."):
        found = [child for path, value in found for child in _children(path, value, key)]
    return found


def _children(path: Path, value: object, key: str) -> Iterator[Found]:
    if key == "*":
        if isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield (*path, index), item
    elif isinstance(value, Mapping) and value.get(key) is not None:
        yield (*path, key), value[key]


def strings(data: object, pattern: str) -> list[str]:
    """The values a pattern reaches that are strings."""
    return [value for _, value in find(data, pattern) if isinstance(value, str)]


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most like a mistyped word, or None when nothing is near."""
    match = process.extractOne(
        word, sorted(set(names)), scorer=fuzz.ratio, processor=utils.default_process, score_cutoff=60
    )
    return match[0] if match else None


def choose(kind: str, word: str, names: Sequence[str]) -> str:
    """The sentence that tells which name would be right."""
    near = nearest(word, names)
    if near is not None:
        return f"did you mean `{near}`?"
    if not names:
        return f"define a {kind} of that name first"
    return "use one of " + ", ".join(f"`{name}`" for name in sorted(set(names)))


def broken_rules(data: Mapping[str, object]) -> list[Broken]:
    """Every rule between parts of the plan that does not hold."""
    return [
        *_unknown_names(data),
        *_repeated_names(data),
        *_repeated_inside(data),
        *_repeated_rules(data),
        *_repeated_keys(data),
        *_unreachable_quorum(data),
        *_odd_pairs(data),
        *_lock_times(data),
        *_scratch_names(data),
        *_standbys(data),
        *_physical(data),
        *_file_copies(data),
        *_prover(data),
    ]


def new_rules(data: Mapping[str, object]) -> list[Broken]:
    """Rules of a file that is to come into force. A version in force that breaks one was activated before there was the
    rule: it must not keep the bot from starting, so what it lacks is refused when somebody asks for it."""
    return [*_unannounced_glass(data), *_names_of_the_bot(data), *_prover_of_dumps(data)]


def _unannounced_glass(data: Mapping[str, object]) -> Iterator[Broken]:
    for path, _ in find(data, "approval.break_glass"):
        if data.get("pager") is None:
            yield Broken(
                path,
                "break-glass must be announced outside Slack as well, and no `pager` is named",
                "add `pager` with a reference to an https webhook at the top of the file, or remove `break_glass`",
            )


def _names_of_the_bot(data: Mapping[str, object]) -> Iterator[Broken]:
    """In the record nobody could tell such a person's acts from those of the bot."""
    for path, word in (*find(data, "roster.*.id"), *find(data, "roster.*.name")):
        signs = unicodedata.normalize("NFKD", str(word).casefold()).casefold()
        if "".join(filter(str.isalnum, signs)).translate(_ALIKE) in _OURS:
            yield Broken(path, f"`{word}` is how the record names the bot itself", "use the person's own name")


def _unknown_names(data: Mapping[str, object]) -> Iterator[Broken]:
    for used, defined, kind, always in _REFERENCES:
        names = [*always, *strings(data, defined)]
        for path, word in find(data, used):
            if isinstance(word, str) and word not in names:
                yield Broken(path, f"there is no {kind} `{word}`", choose(kind, word, names))


def _repeated_names(data: Mapping[str, object]) -> Iterator[Broken]:
    for pattern, kind in _UNIQUE:
        yield from _repeated(find(data, pattern), kind)


def _repeated_inside(data: Mapping[str, object]) -> Iterator[Broken]:
    for path, database in find(data, "databases.*"):
        inside = [((*path, *deeper), name) for deeper, name in find(database, "invariants.*.name")]
        yield from _repeated(inside, "invariant")


def _repeated_rules(data: Mapping[str, object]) -> Iterator[Broken]:
    """Two rules with the same cover are a slip: the second was meant to replace the first, but both apply."""
    seen: set[tuple[object, ...]] = set()
    for path, rule in find(data, "approval.rules.*"):
        if not isinstance(rule, Mapping) or rule.get("risk") is None:
            continue
        names = [tuple(sorted(strings(rule, f"{key}.*"))) for key in ("actions", "targets", "services")]
        cover = (str(rule["risk"]), *names)
        if cover in seen:
            wrong = f"the risk `{rule['risk']}` is named twice with the same actions, targets and services"
            yield Broken((*path, "risk"), wrong, "give each risk once, and further rules a cover of their own")
        seen.add(cover)


def _repeated_keys(data: Mapping[str, object]) -> Iterator[Broken]:
    """One key is one person, whatever comment stands behind it."""
    blobs = [
        (path, next((word for word in line.split() if word.startswith("AAAA")), line))
        for path, line in find(data, "roster.*.keys.*")
        if isinstance(line, str)
    ]
    seen: set[str] = set()
    for path, blob in blobs:
        if blob in seen:
            yield Broken(path, "this key is given twice", "give every person keys of their own")
        seen.add(blob)


def _repeated(found: list[Found], kind: str) -> Iterator[Broken]:
    seen: set[str] = set()
    for path, name in found:
        if not isinstance(name, str):
            continue
        if name in seen:
            yield Broken(path, f"the {kind} `{name}` is named twice", f"give each {kind} once")
        seen.add(name)


def _unreachable_quorum(data: Mapping[str, object]) -> Iterator[Broken]:
    persons = len(find(data, "roster.*.id"))
    for path, others in find(data, "approval.rules.*.persons_besides_requester"):
        if isinstance(others, int) and others + 1 > persons:
            yield Broken(
                path,
                f"{others + 1} persons must sign, but the roster has {persons}",
                "add persons to `roster` or ask for fewer",
            )
    for path, slot in find(data, "approval.rules.*.slots.*"):
        if not isinstance(slot, Mapping):
            continue
        role, count = slot.get("role"), slot.get("count", 1)
        holders = sum(role in strings(person, "roles.*") for _, person in find(data, "roster.*"))
        if isinstance(count, int) and 0 < holders < count:
            yield Broken(
                path,
                f"{count} persons of `{role}` must sign, but the roster has {holders}",
                "give the role to more persons or ask for fewer",
            )


_KEYS = (("access_key", "secret_key"), ("prover_access_key", "prover_secret_key"))
_TOGETHER = (*_KEYS, *((second, first) for first, second in _KEYS))


def _odd_pairs(data: Mapping[str, object]) -> Iterator[Broken]:
    for path, spare in find(data, "databases.*.spare_server"):
        if ((*path[:-1], "server"), spare) in find(data, "databases.*.server"):
            yield Broken(path, "the spare server is the server itself", "name another server or leave the key out")
    for path, stores in find(data, "backups.databases.*.dump.stores"):
        if isinstance(stores, list) and stores and set(map(str, stores)) == {"local"}:
            yield Broken(path, "the dump is kept on this machine alone", "add the name of a bucket")
    witnesses = strings(data, "record.witnesses.*.bucket")
    for path, bucket in find(data, "buckets.*"):
        if isinstance(bucket, Mapping):
            if bucket.get("name") in witnesses and bucket.get("object_lock") != "compliance":
                wrong = f"`{bucket['name']}` is a witness, and what is in it could be deleted"
                yield Broken(path, wrong, "make it a bucket under Object Lock, and set `object_lock: compliance`")
            for has, lacks in _TOGETHER:
                if bucket.get(has) is not None and bucket.get(lacks) is None:
                    yield Broken((*path, has), f"`{has}` without `{lacks}`", f"add `{lacks}`, or leave both out")


def _lock_times(data: Mapping[str, object]) -> Iterator[Broken]:
    for path, bucket in find(data, "buckets.*"):
        if not isinstance(bucket, Mapping) or bucket.get("object_lock_for") is None:
            continue
        if bucket.get("object_lock", "off") in ("off", False):
            wrong = f"nothing is locked in `{bucket.get('name')}`, so not for so long either"
            yield Broken((*path, "object_lock_for"), wrong, "add `object_lock: governance`, or leave it out")


def _scratch_names(data: Mapping[str, object]) -> Iterator[Broken]:
    for path, name in find(data, "servers.*.name"):
        if isinstance(name, str) and name.startswith(SCRATCH):
            wrong = f"`{name}` looks like a scratch instance, which restores make and remove"
            yield Broken(path, wrong, f"choose a name that does not begin with `{SCRATCH}`")


def _standbys(data: Mapping[str, object]) -> Iterator[Broken]:
    """`standby_of` is for the archiver: where there is none it would be passed over in silence."""
    archived = _archived(data)
    known = {name for _, name in find(data, "servers.*.name")}
    for path, server in find(data, "servers.*"):
        if not isinstance(server, Mapping) or server.get("standby_of") is None:
            continue
        if server.get("role") != "standby":
            wrong = f"`{server.get('name')}` has a `standby_of` and is no standby"
            yield Broken((*path, "standby_of"), wrong, "set its role to `standby`, or leave `standby_of` out")
        elif server.get("standby_of") == server.get("name"):
            wrong = f"`{server.get('name')}` would stream from itself"
            yield Broken((*path, "standby_of"), wrong, "name the server that it streams from")
        elif (source := server.get("standby_of")) in known and source not in archived:
            wrong = f"`{source}` has no WAL that `drbot wal` archives"
            yield Broken((*path, "standby_of"), wrong, "name the server whose WAL it archives, or leave it out")


def _archived(data: Mapping[str, object]) -> set[object]:
    """The servers whose WAL `drbot wal` archives."""
    databases = [item for _, item in find(data, "databases.*") if isinstance(item, Mapping)]
    servers = {item.get("name"): item.get("server") for item in databases}
    found = set()
    for _, backup in find(data, "backups.databases.*"):
        if isinstance(backup, Mapping) and isinstance(backup.get("wal"), Mapping):
            base = backup.get("base")
            # Of an engine that nobody knows is told where it is named.
            if isinstance(base, Mapping) and ((engine := _named(base)) is None or engine.archived_by_us):
                found.add(servers.get(backup.get("database")))
    return found


def _physical(data: Mapping[str, object]) -> Iterator[Broken]:
    """Base backups and WAL are of a whole server, and everything rests on the base."""
    databases = [item for _, item in find(data, "databases.*") if isinstance(item, Mapping)]
    servers = {str(item.get("name")): item.get("server") for item in databases}
    carriers: dict[str, object] = {}
    for path, backup in find(data, "backups.databases.*"):
        if not isinstance(backup, Mapping):
            continue
        parts = [key for key in ("base", "incremental", "wal") if backup.get(key) is not None]
        if parts and "base" not in parts:
            wrong = f"`{parts[0]}` rests on a base backup, and there is none (a dump cannot be rolled forward)"
            yield Broken((*path, parts[0]), wrong, "add `base`")
        server = servers.get(str(backup.get("database")))
        if parts and server is not None:
            if server in carriers:
                wrong = f"`{carriers[server]}` has the base backup and the WAL of server `{server}` already"
                yield Broken((*path, parts[0]), wrong, "give them once for a server: they hold all of its databases")
            carriers.setdefault(server, backup.get("database"))
        yield from _stores(data, path, backup)
        yield from _engine(path, backup)


def _engine(path: Path, backup: Mapping[str, object]) -> Iterator[Broken]:
    """Keys of one engine that another would pass over in silence."""
    base, wal = backup.get("base"), backup.get("wal")
    engine = _named(base) if isinstance(base, Mapping) else None
    if not isinstance(base, Mapping) or engine is None:
        return
    for other in engines().values():
        for key in other.keys.model_fields:
            if other is not engine and base.get(key):
                right = f"set `engine: {other.name}`, or remove it"
                yield Broken((*path, "base", key), f"`{key}` is of {other.title}", right)
    if not engine.archived_by_us and isinstance(wal, Mapping):
        for key in ("open_store", "slot", "synchronous"):
            if wal.get(key):
                wrong = f"`{key}` is of `drbot wal`; {engine.title} archives by the server's `archive_command`"
                yield Broken((*path, "wal", key), wrong, "remove it; `archive_timeout` bounds what can be lost")


def _named(base: Mapping[str, object]) -> Engine | None:
    return engines().get(str(base.get("engine", DEFAULT_ENGINE)))


def _stores(data: Mapping[str, object], path: Path, backup: Mapping[str, object]) -> Iterator[Broken]:
    base, incremental = strings(backup, "base.stores.*"), strings(backup, "incremental.stores.*")
    if base and incremental and base != incremental:
        wrong = "an incremental is useless without its base, and this is another bucket"
        if len(base) + len(incremental) > 2:
            wrong = "an incremental is useless without its base, and these are not the same buckets in the same order"
        yield Broken((*path, "incremental", "stores"), wrong, f"name {' and '.join(f'`{name}`' for name in base)}")
    yield from _two_stores(data, path, backup, base)
    wal = strings(backup, "wal.stores.*")
    if len(wal) == 2 and wal[0] == wal[1]:
        yield Broken((*path, "wal", "stores"), f"`{wal[0]}` is named twice", "name a bucket in another region")
    for _, name in find(backup, "wal.open_store"):
        locked = [
            bucket
            for _, bucket in find(data, "buckets.*")
            if isinstance(bucket, Mapping)
            and bucket.get("name") == name
            and bucket.get("object_lock", "off") not in ("off", False)
        ]
        if locked:
            wrong = f"`{name}` is under Object Lock, and pieces of a segment come every few seconds and go again"
            yield Broken((*path, "wal", "open_store"), wrong, "name a bucket without Object Lock")


def _two_stores(
    data: Mapping[str, object], path: Path, backup: Mapping[str, object], stores: list[str]
) -> Iterator[Broken]:
    """A second bucket for base backups is there for the loss of the first one's region."""
    if len(stores) != 2:
        return
    here = (*path, "base", "stores")
    if stores[0] == stores[1]:
        yield Broken(here, f"`{stores[0]}` is named twice", "name a bucket in another region")
    else:
        first, second = (_bucket_named(data, name) for name in stores)
        if first is not None and second is not None:
            if _place(first) == _place(second):
                wrong = f"`{stores[0]}` and `{stores[1]}` are in one region of one store, so both are lost together"
                yield Broken(here, wrong, "name a bucket in another region")
            if first.get("prefix", "") != second.get("prefix", ""):
                wrong = f"`{stores[0]}` and `{stores[1]}` have different prefixes, and base backups lie under one"
                yield Broken(here, wrong, "give both the same `prefix`: once one is lost, the other is named alone")
    base = backup.get("base")
    engine = _named(base) if isinstance(base, Mapping) else None
    if engine is not None and engine.one_bucket:
        yield Broken(here, f"{engine.title} keeps its copies itself", engine.one_bucket)


def _bucket_named(data: Mapping[str, object], name: str) -> Mapping[str, object] | None:
    found = [bucket for _, bucket in find(data, "buckets.*") if isinstance(bucket, Mapping)]
    return next((bucket for bucket in found if bucket.get("name") == name), None)


def _place(bucket: Mapping[str, object]) -> tuple[object, object]:
    """What is lost together: as it is written, since references are not looked up here."""
    return bucket.get("region"), bucket.get("endpoint")


def _file_copies(data: Mapping[str, object]) -> Iterator[Broken]:
    for path, item in find(data, "backups.files.*"):
        if not isinstance(item, Mapping):
            continue
        copied = item.get("copy_to")
        if (isinstance(copied, Mapping) or item.get("versions")) and item.get("bucket") is None:
            yield Broken(path, "nobody knows where these files are", "add `bucket`")
        yield from _file_names(data, path, item)
        if not isinstance(copied, Mapping):
            continue
        if copied.get("bucket") == item.get("bucket"):
            wrong = f"`{item.get('bucket')}` would be copied into itself"
            yield Broken((*path, "copy_to", "bucket"), wrong, "name a bucket in another region")
        if item.get("retention") == "forever":
            wrong = "a whole copy a day for ever fills any bucket"
            yield Broken((*path, "retention"), wrong, "give the time a copy is kept, such as 30d")


def _file_names(data: Mapping[str, object], path: Path, item: Mapping[str, object]) -> Iterator[Broken]:
    """Files that are kept by their versions alone are called by a name of their own."""
    if isinstance(item.get("copy_to"), Mapping) or not item.get("versions"):
        if item.get("name") is not None:
            yield Broken((*path, "name"), "nothing reads this name", "leave it out; `copy_to` has a `name` of its own")
        return
    called = [(place, _called(other)) for place, other in find(data, "backups.files.*") if isinstance(other, Mapping)]
    mine = _called(item)
    if not mine:
        yield Broken(path, "nobody can call these files by a name", "add a `name` of lower case letters")
    elif any(place != path and name == mine for place, name in called):
        yield Broken(path, f"files `{mine}` are named twice", "add another `name`")


def _called(item: Mapping[str, object]) -> str:
    """As commands call these files; empty where none can."""
    copied = item.get("copy_to")
    if isinstance(copied, Mapping):
        return str(copied.get("name"))
    return str(item.get("name") or label_of(str(item.get("component", "")))) if item.get("versions") else ""


def _prover(data: Mapping[str, object]) -> Iterator[Broken]:
    """A prover apart has everything of its own, or it is not apart."""
    signers = strings(data, "backups.proof_signers.*")
    for path, _ in find(data, "backups.proof_signing_key"):
        if not signers:
            yield Broken(path, "nobody trusts this key", "add `proof_signers`")
    for each in sorted(set(signers) & set(strings(data, "backups.signers.*"))):
        wrong = f"`{each}` is among `signers` too, so it is trusted for more than results of restore tests"
        yield Broken(("backups", "proof_signers"), wrong, "give restore tests a key of their own")
    if strings(data, "backups.prover") != ["apart"]:
        return
    for own, other in (("prover_identity", "identity"), ("proof_signing_key", "signing_key")):
        given = strings(data, f"backups.{own}")
        if not given:
            yield Broken(("backups", "prover"), f"a prover apart needs `{own}`", f"add `backups.{own}`")
        elif given == strings(data, f"backups.{other}"):
            wrong = f"`{own}` and `{other}` are the same secret, so the prover would not be apart"
            yield Broken(("backups", own), wrong, "give restore tests a secret of their own")
    yield from _prover_keys(data, _read_by(data, _BASES))


_BASES = ("base.stores.*", "incremental.stores.*", "wal.stores.*", "wal.open_store")


def _prover_of_dumps(data: Mapping[str, object]) -> Iterator[Broken]:
    """Restore tests read dumps as well since they load them."""
    if strings(data, "backups.prover") == ["apart"]:
        known = _read_by(data, _BASES)
        yield from _prover_keys(data, {name for name in _read_by(data, ("dump.stores.*",)) if name not in known})


def _read_by(data: Mapping[str, object], parts: Iterable[str]) -> set[str]:
    return {name for part in parts for name in strings(data, f"backups.databases.*.{part}")}


def _prover_keys(data: Mapping[str, object], read: Collection[str]) -> Iterator[Broken]:
    for path, bucket in find(data, "buckets.*"):
        if not isinstance(bucket, Mapping) or bucket.get("name") not in read:
            continue
        if bucket.get("prover_access_key") is None:
            wrong = f"a prover apart has no key for `{bucket['name']}`, which restore tests read"
            yield Broken(path, wrong, "add `prover_access_key` and `prover_secret_key`")
        elif bucket.get("prover_access_key") == bucket.get("access_key"):
            wrong = "this is the key of the workers, so the prover would not be apart"
            yield Broken((*path, "prover_access_key"), wrong, "give restore tests a key that only reads")
