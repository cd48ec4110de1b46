#!/usr/bin/env python3
"""Brings back what the bot has stored, without the bot: a dump, or a server as it was at a moment.

One file that needs Python 3.9 alone and nothing of the bot, so it is longer than others. It uses the programs `age`,
`zstd`, `tar` and those of PostgreSQL. RESTORE.md, which lies beside it, has the commands with every name filled in.

A PLACE is `s3://BUCKET/PREFIX?endpoint=URL&region=REGION&keys=NAME`, or a folder with a copy of what is under that
prefix. The keys of S3 are taken from NAME_ACCESS_KEY_ID, NAME_SECRET_ACCESS_KEY and NAME_SESSION_TOKEN (NAME is AWS
where it is left out), the identity that opens backups from the file that AGE_IDENTITY_FILE names. Whose signatures
count is told by --trust: never take that from the bucket, since whoever can write there can write there what he likes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime as dt
import glob
import hashlib
import hmac
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Tuple, TypeVar

UTC = dt.timezone.utc
BLOCK = 1 << 20
SEALED = ".sealed"
LARGE_OBJECTS = "large objects"  # among the tables whose rows a manifest counts
WAITS = (1, 4, 0)
"""Seconds after each try of a request before the next one; the last has none."""
PATIENCE = (5, 10, 20, 40, 80, 0)
"""The same for WAL in the middle of a recovery of hours, which must not end for a store that is away for a moment."""
STOP_RECOVERY = 200
"""An end of `restore_command` with a number over 125 ends the recovery; a smaller one says that there is no more."""


class Stop(Exception):  # noqa: N818 - what ends the program, said to people
    """Nothing can be built on what was found. The text says why and what to do."""


class Away(Stop):
    """A place does not answer, or there is none."""


class Broken(Stop):
    """A place does not give something that may be there, or not all of it."""


CUT = (OSError, http.client.HTTPException)
T = TypeVar("T")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- signatures: Ed25519 (RFC 8032) over RFC 8785 JSON

P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)

Point = Tuple[int, int, int, int]  # x, y, z and x * y / z, as in RFC 8032, 5.1.4


def _add(a: Point, b: Point) -> Point:
    first, second = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    third, fourth = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = second - first, fourth - third, fourth + third, second + first
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def _times(number: int, point: Point) -> Point:
    total: Point = (0, 1, 1, 0)
    while number:
        if number & 1:
            total = _add(total, point)
        point = _add(point, point)
        number >>= 1
    return total


def _point(raw: bytes) -> Point:
    """Raises ValueError when it is no point of the curve."""
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if len(raw) != 32 or y >= P or (x * x - square) % P or (x == 0 and sign):
        raise ValueError("no point of the curve")
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


BASE = _point(bytes([0x58]) + bytes([0x66]) * 31)


def holds(payload: bytes, signer: str, signature: str) -> bool:
    """Whether this is the signature of that key (both base64) over these bytes."""
    try:
        key, raw = base64.b64decode(signer, validate=True), base64.b64decode(signature, validate=True)
        of_key, of_signature, number = _point(key), _point(raw[:32]), int.from_bytes(raw[32:], "little")
    except ValueError:
        return False
    if len(raw) != 64 or number >= Q:
        return False
    asked = int.from_bytes(hashlib.sha512(raw[:32] + key + payload).digest(), "little") % Q
    left, right = _times(number, BASE), _add(of_signature, _times(asked, of_key))
    return all((left[axis] * right[2] - right[axis] * left[2]) % P == 0 for axis in (0, 1))


def canonical(value: Any) -> bytes:
    def ordered(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: ordered(part[key]) for key in sorted(part, key=lambda key: key.encode("utf-16-be"))}
        return [ordered(each) for each in part] if isinstance(part, list) else part

    return json.dumps(ordered(value), separators=(",", ":"), ensure_ascii=False).encode()


def trusted(what: str, text: bytes, field: str, kind: bytes, trust: list[str]) -> dict[str, Any]:
    """The signed part of a document. Raises Stop unless a key that counts has signed exactly this."""
    try:
        found = json.loads(text)
        part, signer, signature = found[field], str(found["signer"]), str(found["signature"])
    except (ValueError, KeyError, TypeError) as error:
        raise Stop(f"{what} cannot be read: it was changed or cut off.") from error
    if signer not in trust:
        raise Stop(f"{what} is signed by {signer}, which --trust does not name.")
    if field == "manifest" and not part.get("places"):
        part = {key: value for key, value in part.items() if key != "places"}  # older than they are
    if not holds(kind + canonical(part), signer, signature):
        raise Stop(f"{what} does not match its signature: it was changed or forged.")
    return dict(part)


# ---------------------------------------------------------------- where things are


class Folder:
    """A copy of what a bucket has under a prefix."""

    def __init__(self, text: str) -> None:
        self.text, self.root = text, Path(text).resolve()
        if not self.root.is_dir():
            raise Away(f"There is no folder {self.root}.")

    def names(self, prefix: str) -> list[str]:
        """`prefix` is a folder."""
        try:
            found = [path for path in (self.root / prefix).rglob("*") if path.is_file()]
        except OSError as error:
            raise Away(f"Folder {self.root} cannot be read: {error}.") from error
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def blocks(self, name: str) -> Iterator[bytes] | None:
        path = self.root / name
        return self._whole(path) if path.is_file() else None

    def _whole(self, path: Path) -> Iterator[bytes]:
        try:
            with path.open("rb") as found:
                while block := found.read(BLOCK):
                    yield block
        except OSError as error:
            raise Broken(f"{path} cannot be read: {error}.") from error


class S3:
    """What a bucket has under a prefix, asked for with signed requests (AWS Signature Version 4)."""

    def __init__(self, text: str) -> None:
        self.text, parts = text, urllib.parse.urlsplit(text)
        options = dict(urllib.parse.parse_qsl(parts.query))
        self.prefix, self.region = parts.path.lstrip("/"), options.get("region", "us-east-1")
        amazon = f"https://{parts.netloc}.s3.{self.region}.amazonaws.com"
        self.base = f"{options['endpoint'].rstrip('/')}/{parts.netloc}" if "endpoint" in options else amazon
        keys = options.get("keys", "AWS")
        try:
            self.access, self.secret = os.environ[f"{keys}_ACCESS_KEY_ID"], os.environ[f"{keys}_SECRET_ACCESS_KEY"]
        except KeyError as error:
            raise Away(f"Set {error.args[0]}: the keys that read {parts.netloc}.") from error
        self.token = os.environ.get(f"{keys}_SESSION_TOKEN", "")

    def names(self, prefix: str) -> list[str]:
        found: list[str] = []
        more: dict[str, str] | None = {}
        while more is not None:
            tree = self._asked("/", {"list-type": "2", "prefix": self.prefix + prefix, **more}, _tree)
            if tree is None:
                raise Away(f"There is no bucket at {self.base}.")
            told = {each.tag.rpartition("}")[2]: each.text or "" for each in tree}
            keys = [each.text or "" for each in tree.iter() if each.tag.endswith("}Key") or each.tag == "Key"]
            found += [key[len(self.prefix) :] for key in keys]
            again = told.get("IsTruncated") == "true"
            more = {"continuation-token": told["NextContinuationToken"]} if again else None
        return sorted(found)

    def blocks(self, name: str) -> Iterator[bytes] | None:
        path = "/" + urllib.parse.quote(self.prefix + name, safe="/-_.~")
        answer = self._asked(path, {}, _body)
        return None if answer is None else self._whole(path, answer)

    def _whole(self, path: str, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """Where the connection is cut another one goes on from there. Raises Broken when that is of no use."""
        done, waits = 0, iter(WAITS)
        while True:
            length = answer.headers["Content-Length"]
            total, why = None if length is None else done + int(length), ""
            try:
                with answer:
                    while block := answer.read(BLOCK):  # it ends like a whole one where the connection was closed
                        yield block
                        done, waits = done + len(block), iter(WAITS)
            except CUT as error:
                why = str(error)
            if done == total or (total is None and not why):
                return
            wait = next(waits)
            if wait:
                time.sleep(wait)
                again = self._asked(path, {}, _body, first=done)
                if again is not None and again.status == (206 if done else 200):
                    answer = again
                    continue
            raise Broken(f"{self.base}{path} breaks off after {done} of {total} bytes. {why}".strip())

    def _asked(
        self, path: str, query: dict[str, str], read: Callable[[http.client.HTTPResponse], T], first: int = 0
    ) -> T | None:
        """What `read` makes of the answer; None: there is no such thing. `first`: the byte that it begins with."""
        for wait in WAITS:
            try:
                return read(urllib.request.urlopen(self._signed(path, query, first), timeout=60))
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if (error.code < 500 and error.code != 429) or not wait:
                    said = ""
                    with contextlib.suppress(*CUT):
                        said = error.read().decode(errors="replace")[:300]
                    raise Broken(f"The store answers {error.code} for {self.base}{path}: {said}") from error
            except (*CUT, ET.ParseError) as error:
                if not wait:
                    raise Away(f"The store at {self.base} does not answer: {error}.") from error
            time.sleep(wait)
        return None

    def _signed(self, path: str, query: dict[str, str], first: int) -> urllib.request.Request:
        now = dt.datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        asked = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="-_.~")
        base = urllib.parse.urlsplit(self.base)
        headers = {"host": base.netloc, "x-amz-content-sha256": hashlib.sha256(b"").hexdigest(), "x-amz-date": now}
        if self.token:
            headers["x-amz-security-token"] = self.token
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = "\n".join(("GET", base.path + path, asked, lines, names, headers["x-amz-content-sha256"]))
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()))
        key = f"AWS4{self.secret}".encode()
        for word in (*scope.split("/"), text):
            key = hmac.new(key, word.encode(), hashlib.sha256).digest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        )
        if first:
            headers["range"] = f"bytes={first}-"
        url = f"{self.base}{path}" + (f"?{asked}" if asked else "")
        return urllib.request.Request(url, headers=headers)


def _tree(answer: http.client.HTTPResponse) -> ET.Element:
    with answer:
        return ET.fromstring(answer.read())


def _body(answer: http.client.HTTPResponse) -> http.client.HTTPResponse:
    return answer


def named(text: str) -> str:
    """As it is meant from every folder."""
    return text if not text or text.startswith("s3://") else str(Path(text).absolute())


class Places:
    """Where the same things may be, the best first. One that does not answer is told, and left out from then on."""

    def __init__(self, texts: list[str]) -> None:
        self.places: list[Folder | S3] = []
        self.told: list[str] = []  # what could not be read
        for text in texts:
            try:
                self.places.append(S3(text) if text.startswith("s3://") else Folder(text))
            except Stop as error:
                self._tell(error)
        if not self.places:
            raise Away("None of the places can be read.")

    def _tell(self, error: Stop, left_out: Folder | S3 | None = None) -> None:
        say(str(error))
        self.told.append(str(error))
        self.places = [each for each in self.places if each is not left_out]

    @property
    def texts(self) -> list[str]:
        """Those that have answered so far: whoever asks for one segment after another must not wait for the others."""
        return [place.text for place in self.places]

    def names(self, prefix: str) -> list[str]:
        found: set[str] = set()
        for place in list(self.places):
            try:
                found |= set(place.names(prefix))
            except Stop as error:
                self._tell(error, place)
        if not self.places:
            raise Away("None of the places answers.")
        return sorted(found)

    def each(self, name: str, take: Callable[[Iterator[bytes]], T]) -> Iterator[T]:
        """What `take` makes of its bytes, from every place that gives all of them. Raises Broken at the end where none
        did and not all could be asked: nobody knows whether it is there."""
        whole, told = False, len(self.told)
        for place in list(self.places):
            try:
                blocks = place.blocks(name)
                if blocks is None:
                    continue
                taken = take(blocks)
            except (Away, Broken) as error:
                self._tell(error, place if isinstance(error, Away) else None)
            else:
                whole = True
                yield taken
        if not whole and self.told[told:]:
            raise Broken(f"{name} cannot be read. {' '.join(self.told[told:])}")

    def bodies(self, name: str) -> Iterator[bytes]:
        return self.each(name, b"".join)


# ---------------------------------------------------------------- programs


def run(*argv: str, quiet: bool = False) -> str:
    """What a program has written. Raises Stop when it did not end well."""
    try:
        env = {**os.environ, "LC_ALL": "C"}  # what it says is read, and not only by people
        done = subprocess.run(argv, check=False, capture_output=True, text=True, errors="replace", env=env)
    except FileNotFoundError as error:
        raise Stop(f"The program {argv[0]} is not on the PATH.") from error
    if done.returncode and not quiet:
        raise Stop(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def pg_ctl(*argv: str) -> None:
    """Its output is left alone: the server that it starts would keep the pipe."""
    if subprocess.run(["pg_ctl", *argv], check=False, stdout=sys.stderr).returncode:
        raise Stop(f"pg_ctl {argv[0]} did not end well. Read the log beside the data directory.")


def identity() -> str:
    path = os.environ.get("AGE_IDENTITY_FILE", "")
    if not path or not Path(path).is_file():
        raise Stop("Set AGE_IDENTITY_FILE to the file with the identity that opens the backups.")
    return str(Path(path).absolute())


def opened(stored: Path, sink: Callable[[bytes], object], *, packed: bool = True) -> tuple[int, str]:
    """Send the plain bytes of a stored file into `sink`; their number and SHA-256."""
    hashed, total = hashlib.sha256(), 0
    try:
        with contextlib.ExitStack() as stack:
            age = stack.enter_context(
                subprocess.Popen(["age", "-d", "-i", identity(), str(stored)], stdout=subprocess.PIPE)
            )
            programs, plain = [age], age.stdout
            if packed:
                programs.append(
                    stack.enter_context(
                        subprocess.Popen(["zstd", "-qdc"], stdin=age.stdout, stdout=subprocess.PIPE),
                    )
                )
                if age.stdout is not None:
                    age.stdout.close()
                plain = programs[-1].stdout
            while plain is not None and (block := plain.read(BLOCK)):
                hashed.update(block)
                total += len(block)
                sink(block)
            codes = [program.wait() for program in programs]
    except FileNotFoundError as error:
        raise Stop(f"The program {error.filename} is not on the PATH.") from error
    if any(codes):
        raise Stop(f"{stored.name} cannot be opened: is {identity()} an identity of one of its recipients?")
    return total, hashed.hexdigest()


def fetched(places: Places, name: str, about: dict[str, Any], into: Path) -> None:
    """A stored object as a file, from the first place where it is what the signed manifest says."""

    def written(blocks: Iterator[bytes]) -> tuple[int, str]:
        hashed, total = hashlib.sha256(), 0
        with into.open("wb") as sink:
            for block in blocks:
                hashed.update(block)
                total += len(block)
                sink.write(block)
        return total, hashed.hexdigest()

    why = f"{name} is missing."
    for measured in places.each(name, written):
        if measured == (about["bytes"], about["sha256"]):
            return
        why = f"{name} is not what was stored: its bytes were changed or cut off."
        say(why)
    raise Stop(f"{why} Choose another backup.")


# ---------------------------------------------------------------- which backups there are


def manifests(places: Places, prefix: str, field: str, kind: bytes, trust: list[str]) -> Iterator[dict[str, Any]]:
    for name in places.names(prefix):
        backup, _, rest = name[len(prefix) :].partition("/")
        if rest != "manifest.json":
            continue
        with contextlib.suppress(Broken):  # told
            for body in places.bodies(name):
                try:
                    found = trusted(f"The manifest of {backup}", body, field, kind, trust)
                    if found["id"] != backup:
                        raise Stop(f"The manifest of {backup} belongs to {found['id']}: it was put there by somebody.")
                except Stop as error:
                    say(f"Left out: {error}")
                else:
                    yield found
                    break


def moment(text: str) -> dt.datetime:
    """Raises ValueError unless it is a time with its zone."""
    text = re.sub(r"[zZ]$", "+00:00", text.strip().replace(" UTC", "+00:00"))
    # As psql shows it: Python before 3.11 wants all digits.
    text = re.sub(r"([+-]\d\d)$", r"\1:00", text)
    text = re.sub(r"\.(\d+)", lambda found: "." + found[1][:6].ljust(6, "0"), text)
    found = dt.datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("a time needs its zone, as in 2026-11-23T10:29:58+00:00")
    return found


def folder_of(database: str) -> str:
    """Of its dumps."""
    part = urllib.parse.quote(database, safe="") if database.strip(".") else database.replace(".", "%2E")
    return f"{part}/"


def dumps(options: argparse.Namespace, places: Places) -> list[dict[str, Any]]:
    prefix = folder_of(options.database)
    found = manifests(places, prefix, "manifest", b"", options.trust)
    return sorted((each for each in found if each["database"] == options.database), key=_at("snapshot_at"))


def bases(options: argparse.Namespace, places: Places) -> list[dict[str, Any]]:
    prefix = f"base/{options.server}/"
    found = manifests(places, prefix, "document", b"PhysicalManifest\n", options.trust)
    return sorted((each for each in found if each["server"] == options.server), key=_at("finished_at"))


def _at(field: str) -> Callable[[dict[str, Any]], dt.datetime]:
    return lambda manifest: moment(str(manifest[field]))


def listed(options: argparse.Namespace) -> None:
    places = Places(options.source)
    if options.database:
        for each in dumps(options, places):
            print(f"{each['id']}  as of {each['snapshot_at']}  {each['stored']['bytes']} bytes")
    if options.server:
        for each in bases(options, places):
            rests = f" on {each['parent']}" if each["parent"] else ""
            reached = f"from {each['finished_at']} on"
            print(f"{each['id']}  {each['kind']}{rests}  {reached}  {each['stored']['bytes']} bytes")


# ---------------------------------------------------------------- a dump


def dump(options: argparse.Namespace) -> None:
    places = Places(options.source)
    found = [each for each in dumps(options, places) if options.backup in ("", each["id"])]
    if not found:
        raise Stop(f"There is no dump {options.backup} of {options.database} with a good signature.".replace("  ", " "))
    manifest, work = found[-1], Path(options.work)
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    stored, plain = work / "dump.age", work / "dump"
    say(f"{manifest['id']}, as of {manifest['snapshot_at']}: {manifest['stored']['bytes']} bytes")
    fetched(places, f"{folder_of(options.database)}{manifest['id']}/dump.age", manifest["stored"], stored)
    with plain.open("wb") as sink:
        measured = opened(stored, sink.write, packed=manifest["compression"] == "zstd")
    stored.unlink()
    if measured != (manifest["plain_bytes"], manifest["plain_sha256"]):
        raise Stop(f"{plain} is not what was dumped. Choose another backup.")
    if not options.new:
        say(f"{plain} is what was dumped. Give --new to load it into a new database.")
        return
    _load(manifest, options.new, plain, options.jobs)


def _load(manifest: dict[str, Any], name: str, plain: Path, jobs: int) -> None:
    about = manifest["globals"]
    for role in about["roles"]:
        exists = f"SELECT FROM pg_roles WHERE rolname = {_literal(role['name'])}"
        if not psql("postgres", f"SELECT EXISTS ({exists})").startswith("t"):
            psql("postgres", f"CREATE ROLE {_quoted(role['name'])} NOLOGIN")
            say(f"Role {role['name']} was missing: made without a login. Give it what it needs.")
    # It refuses a database that is there already.
    psql("postgres", f"CREATE DATABASE {_quoted(name)} TEMPLATE template0 {_locale(about)}")
    # Subscriptions would go on at the publisher that they were made for.
    left = ("--no-publications", "--no-subscriptions")
    run("pg_restore", "--exit-on-error", *left, f"--jobs={jobs}", "-d", _dbname(name), str(plain))
    psql(name, "ANALYZE")
    wrong = []
    for table, rows in manifest["fingerprint"]["rows"].items():
        counted = "pg_largeobject_metadata" if table == LARGE_OBJECTS else f"ONLY {_table(table)}"
        there = psql(name, f"SELECT count(*) FROM {counted}")
        wrong += [] if there == str(rows) else [f"{table} has {there} rows, the dump says {rows}"]
    for sequence, state in manifest["fingerprint"]["sequences"].items():
        there = psql(name, f"SELECT last_value, is_called FROM {_table(sequence)}")
        wanted = f"{state['last_value']}|{'t' if state['is_called'] else 'f'}"
        wrong += [] if there == wanted else [f"{sequence} stands at {there}, the dump says {wanted}"]
    if wrong:
        raise Stop(f"Do not use database {name}: " + "; ".join(wrong))
    tables = len(manifest["fingerprint"]["rows"])
    say(f"Database {name} holds what was dumped: {tables} tables with the rows they had. Nothing else was touched.")


def psql(database: str, statement: str) -> str:
    return run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", _dbname(database), "-c", statement)


def _dbname(name: str) -> str:
    """As libpq reads it, whatever is in it."""
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _table(name: str) -> str:
    """`schema.table`, whose parts are quoted where they are not plain."""
    parts = re.findall(r'"(?:[^"]|"")+"|[^".]+', name)
    return ".".join(part if part.startswith('"') else _quoted(part) for part in parts)


def _locale(about: dict[str, Any]) -> str:
    words = f"ENCODING {_literal(about['encoding'])} LC_COLLATE {_literal(about['collate'])} "
    words += f"LC_CTYPE {_literal(about['ctype'])}"
    if about["locale_provider"] == "b":
        words += f" LOCALE_PROVIDER builtin BUILTIN_LOCALE {_literal(about['locale'])}"
    elif about["locale_provider"] == "i":
        words += f" LOCALE_PROVIDER icu ICU_LOCALE {_literal(about['locale'])}"
    return words


# ---------------------------------------------------------------- the archive of WAL


def number_of(lsn: str) -> int:
    """Raises ValueError unless it is a place in the WAL."""
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def lsn_of(number: int) -> str:
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"


class Stretch(NamedTuple):
    """What was written on one timeline: from `begin` up to `end`, None while it is the last one."""

    timeline: int
    begin: int
    end: int | None


class Archive:
    """The WAL of one server, as `wal` of the settings says where it is."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.server, self.trust, self.size = settings["server"], settings["trust"], int(settings["segment_bytes"])
        self.system, self.stretches = settings["system_id"], [Stretch(*each) for each in settings["stretches"]]
        self.places = Places(settings["wal"])
        self.open = Places([settings["open"]]) if settings["open"] else None

    def sealed(self, name: str, kind: str) -> tuple[dict[str, Any], bytes] | None:
        """The header and the stored bytes, from the first place that has it whole; None where none has it."""
        key, problems = f"wal/{self.server}/{name}{SEALED}", []
        for body in self.places.bodies(key):
            try:
                return self.checked(key, body, name, kind)
            except Stop as error:
                problems.append(str(error))
                say(str(error))
        if problems:
            raise Stop(" ".join(problems))
        return None

    def checked(self, key: str, body: bytes, name: str, kind: str) -> tuple[dict[str, Any], bytes]:
        line, _, stored = body.partition(b"\n")
        header = trusted(key, line, "header", b"", self.trust)
        if (header["kind"], header["name"], header["system_id"]) != (kind, name, self.system):
            raise Stop(f"{key} holds {header['kind']} {header['name']} of server {header['system_id']}: it was moved.")
        if (len(stored), hashlib.sha256(stored).hexdigest()) != (header["stored_bytes"], header["stored_sha256"]):
            raise Stop(f"The bytes of {key} were changed or cut off.")
        return header, stored

    def segments(self) -> set[str]:
        prefix = f"wal/{self.server}/"
        names = {name[len(prefix) : -len(SEALED)] for name in self.places.names(prefix)}
        return {name for name in names if re.fullmatch(r"[0-9A-F]{24}|[0-9A-F]{8}\.history", name)}

    def ranges(self, segment: str) -> list[tuple[int, int, str]]:
        """Of an open segment: first byte, last byte, name; in order."""
        if self.open is None:
            return []
        prefix = f"open/{self.server}/{segment}/"
        listed = self.open.names(prefix)
        found = [(re.fullmatch(r"(\d+)-(\d+)\.sealed", name[len(prefix) :]), name) for name in listed]
        known = [(int(match[1]), int(match[2]), name) for match, name in found if match]
        return sorted(known, key=lambda each: (each[0], -each[1]))

    def choices(self, number: int) -> list[str]:
        """Every segment of this number that may be replayed, newest timeline first."""
        fit = [
            each
            for each in reversed(self.stretches)
            if each.begin // self.size <= number and (each.end is None or number <= each.end // self.size)
        ]
        return [segment_name(each.timeline, number, self.size) for each in fit]

    def write(self, name: str, path: Path) -> bool:
        """A segment or a history under the name that PostgreSQL wants; False where there is none."""
        if name.endswith(".history"):
            found = self.sealed(name, "history")
            if found is not None:
                path.write_text(found[0]["history"], encoding="utf-8")
            return found is not None
        found = self.sealed(name, "segment")
        plain = self._plain(name, *found, path) if found is not None else self.assembled(name, path)[0]
        if not plain:
            return False
        # What an old primary wrote after others went on without it must not be replayed.
        timeline, start = int(name[:8], 16), segment_number(name, self.size) * self.size
        ends = [each.end for each in self.stretches if each.timeline == timeline and each.end is not None]
        keep = max(0, min([self.size, *(end - start for end in ends)]))
        path.write_bytes((plain[:keep]).ljust(self.size, b"\0"))
        return True

    def _plain(self, name: str, header: dict[str, Any], stored: bytes, path: Path) -> bytes:
        part, plain = path.with_name(path.name + ".age"), bytearray()
        part.write_bytes(stored)
        try:
            measured = opened(part, plain.extend)
        finally:
            part.unlink()
        if measured != (header["plain_bytes"], header["plain_sha256"]):
            raise Stop(f"The plain bytes of {name} are not those of its header.")
        return bytes(plain)

    def pieces(self, number: int, path: Path) -> tuple[int, str]:
        """How many bytes follow in open segments from this one on, and when the archiver had them."""
        total, at, whole = 0, "", True
        while whole:  # one that is whole and not stored as closed yet is followed by another
            tried = (self.assembled(name, path) for name in self.choices(number))
            plain, had = next((each for each in tried if each[0]), (b"", at))
            total, at, whole, number = total + len(plain), had, len(plain) == self.size, number + 1
        return total, at

    def assembled(self, name: str, path: Path) -> tuple[bytes, str]:
        """The open segment as far as its ranges follow each other from its beginning, and when the archiver had that;
        no bytes where there is no beginning. Files for a moment are beside `path`."""
        plain, at = b"", ""
        for first, last, key in self.ranges(name):
            if not (first <= len(plain) < last) or self.open is None:
                continue
            body = next(self.open.bodies(key), None)
            if body is None:
                continue
            try:
                header, stored = self.checked(key, body, name, "range")
                if (header["first"], header["first"] + header["plain_bytes"]) != (first, last):
                    raise Stop(f"{key} holds other bytes than its name says.")
                plain, at = plain[:first] + self._plain(key, header, stored, path), header["closed_at"]
            except Stop as error:
                say(f"Left out: {error}")
        return plain, at


def segment_name(timeline: int, number: int, size: int) -> str:
    return f"{timeline:08X}{number // ((1 << 32) // size):08X}{number % ((1 << 32) // size):08X}"


def segment_number(name: str, size: int) -> int:
    return int(name[8:16], 16) * ((1 << 32) // size) + int(name[16:], 16)


def wal(options: argparse.Namespace) -> None:
    """What `restore_command` calls."""
    try:
        code = _given(options)
    except Exception as error:  # noqa: BLE001 - an end with 1 would say that the archive ends here
        say(str(error) if isinstance(error, Stop) else f"{type(error).__name__}: {error}")
        code = STOP_RECOVERY
    sys.exit(code)


def _given(options: argparse.Namespace) -> int:
    """What it ends with: 0 with the file, 1 where the archive ends. Raises Stop for what must not be replayed."""
    settings = json.loads(Path(options.settings).read_text())
    for wait in PATIENCE:
        try:
            archive = Archive(settings)
            if archive.write(options.name, Path(options.path).absolute()):
                return 0
            if not archive.places.told:
                return 1
        except Stop as error:
            if not settings["rests"] and not isinstance(error, (Away, Broken)):
                raise
            say(str(error))
        if settings["rests"]:
            return 1  # it has all that it was to have: nobody takes it away because a store is gone by now
        say(f"Nobody knows whether {options.name} is there." + (f" Asking again in {wait} s." if wait else ""))
        time.sleep(wait)
    return STOP_RECOVERY


def stretches_of(archive: Archive, timeline: int) -> list[Stretch]:
    """The way to a timeline, by its history."""
    try:
        found = archive.sealed(f"{timeline:08X}.history", "history")
    except Stop as error:
        raise Stop(
            f"{error} Without it the way to timeline id {timeline} is unknown: --timeline names another."
        ) from error
    if found is None:
        return [Stretch(timeline, 0, None)]
    ways, begin = [], 0
    for line in str(found[0]["history"]).splitlines():
        words = line.split(maxsplit=2)
        if words and not words[0].startswith("#"):
            end = number_of(words[1])
            ways.append(Stretch(int(words[0]), begin, end))
            begin = end
    return [*ways, Stretch(timeline, begin, None)]


# ---------------------------------------------------------------- a server


def server(options: argparse.Namespace) -> None:
    data = Path(options.data).absolute()
    _check_folder(data)
    os.environ["AGE_IDENTITY_FILE"] = identity()
    places = Places(options.source)
    known = {each["id"]: each for each in bases(options, places)}
    archive, base = _start(options, known)
    members = _members(known, base)
    if members is None:
        raise Stop(f"{base['id']} rests on a backup that is not there. Choose another with --backup.")
    _check_programs(base)
    last = _reaches(options, archive, base, data.with_name(f"{data.name}.piece"))
    folders = [data] if len(members) == 1 else [data.with_name(f"{data.name}.{n}") for n in range(len(members))]
    for member, folder in zip(members, folders):
        say(f"{member['kind']} backup {member['id']}: {member['stored']['bytes']} bytes")
        _unpacked(places, member, folder)
    if len(folders) > 1:
        run("pg_combinebackup", "--no-manifest", "--output", str(data), *map(str, folders))
        for folder in folders:
            shutil.rmtree(folder)
    settings = data.with_name(f"{data.name}.restore.json")
    _configured(options, data, archive, settings)
    log = data.with_name(f"{data.name}.log")
    begun = log.stat().st_size if log.exists() else 0  # what an earlier try has said does not count
    start = ("start", "-w", "-t", "3600", "-D", str(data), "-l", str(log))
    pg_ctl(*start)
    _rests(options, data, str(base["superuser"]), log, begun, last)
    pg_ctl("stop", "-w", "-D", str(data))
    pages = _pages(data)
    pg_ctl(*start)
    reached = _rests(options, data, str(base["superuser"]), log, begun, last)
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "rests": True}))
    say(
        f"{options.server} rests at {reached}, read only, {pages}. Look at it:\n"
        f"  psql -h {shlex.quote(str(data))} -U {base['superuser']} -d postgres\n"
        f"It becomes a server of its own, from which there is no way back: pg_ctl promote -D {shlex.quote(str(data))}\n"
        f"Before people use it set listen_addresses in postgresql.auto.conf, write its pg_hba.conf, and restart it."
    )


LONGEST = 90
"""Bytes of a data directory's name: a socket's may have 107, with what PostgreSQL appends."""


def _check_folder(data: Path) -> None:
    """What would end it after hours is told at once."""
    if os.geteuid() == 0:
        raise Stop("PostgreSQL does not run as root: start this as another account.")
    if data.exists() or not data.parent.is_dir():
        raise Stop(f"{data} must be a folder that is not there yet, in one that is.")
    if left := sorted(str(path) for path in data.parent.glob(f"{glob.escape(data.name)}.[0-9]*")):
        raise Stop(f"An earlier try has left {' and '.join(left)}. Remove that, or choose another name.")
    if re.search(r"[',%\\\n]", str(data)) or len(os.fsencode(data)) > LONGEST:
        raise Stop(
            f"Choose another data directory than {data}. PostgreSQL's settings name it, a socket lies in it: at most "
            f"{LONGEST} bytes, without quotes, commas, backslashes and percent signs."
        )


def _check_programs(base: dict[str, Any]) -> None:
    wanted, told = int(base["server_version"]) // 10000, run("pg_ctl", "--version")
    found = re.search(r"\(PostgreSQL\) (\d+)", told)
    if found is not None and int(found[1]) != wanted:
        raise Stop(
            f"{base['id']} is of PostgreSQL {wanted}: put its programs first on the PATH, not those of {found[1]}."
        )
    programs = ["age", "zstd", "tar", "psql", "pg_verifybackup", "pg_controldata", "pg_checksums"]
    programs += ["pg_combinebackup"] if base["parent"] else []  # only PostgreSQL 17 and newer have it
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise Stop(f"The programs {', '.join(missing)} are not on the PATH.")


def _start(options: argparse.Namespace, known: dict[str, dict[str, Any]]) -> tuple[Archive, dict[str, Any]]:
    """The base to start from: the newest that ends before the target on the way to the newest timeline."""
    settings = {
        "server": options.server,
        "trust": options.trust,
        "wal": options.wal or options.source,
        "open": "",
        "segment_bytes": 1 << 24,
        "system_id": "",
        "stretches": [],
    }
    if not known:
        raise Stop(f"There is no base backup of {options.server} with a good signature.")
    newest = max(known.values(), key=_at("finished_at"))
    settings.update(system_id=newest["system_id"], segment_bytes=newest["segment_bytes"])
    archive = Archive(settings)
    if options.open:
        with _perhaps(archive):
            archive.open = Places([options.open])
    timelines = [int(name[:8], 16) for name in archive.segments() if name.endswith(".history")]
    timeline = options.timeline or max([newest["timeline_id"], *timelines])
    archive.stretches = stretches_of(archive, timeline)
    fit = [
        each
        for each in known.values()
        if each["system_id"] == newest["system_id"]
        and any(
            way.timeline == each["timeline_id"] and (way.end is None or number_of(each["stop_lsn"]) <= way.end)
            for way in archive.stretches
        )
        and (options.backup == each["id"] if options.backup else _members(known, each) is not None)
        and (options.until is None or moment(str(each["finished_at"])) <= options.until)
        and (not options.lsn or number_of(each["stop_lsn"]) <= number_of(options.lsn))
    ]
    if not fit:
        raise Stop(f"No base backup of {options.server} ends before that on timeline id {timeline}. See `list`.")
    return archive, max(fit, key=_at("finished_at"))


def _members(known: dict[str, dict[str, Any]], base: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The full backup first; None where one of them is not there."""
    found = [base]
    while found[0]["kind"] == "incremental":
        parent = known.get(str(found[0]["parent"]))
        if parent is None or parent in found or found[0]["checksums"] != parent["checksums"]:
            return None
        found.insert(0, parent)
    return found


@contextlib.contextmanager
def _perhaps(archive: Archive) -> Iterator[None]:
    """Where the pieces of the open segment are not to be had, it goes on without: they are seconds, not everything."""
    try:
        yield
    except (Away, Broken) as error:
        say(f"The last seconds may be missing, without the pieces of the open segment: {error}")
        archive.open = None


def _reaches(options: argparse.Namespace, archive: Archive, base: dict[str, Any], scratch: Path) -> int:
    """Where the last closed segment begins that can be replayed. Raises Stop when the archive ends before the target:
    told now, not after hours."""
    there, number = archive.segments(), number_of(base["start_lsn"]) // archive.size
    numbers = {name: segment_number(name, archive.size) for name in there if len(name) == 24}
    # What was archived of a timeline that the server has left is no part of the way.
    newest = max([each for name, each in numbers.items() if name in archive.choices(each)], default=-1)
    last = ""
    while found := [name for name in archive.choices(number) if name in there][:1]:
        last, number = found[0], number + 1
    closed = archive.sealed(last, "segment") if last else None
    if closed is None or number * archive.size < number_of(base["stop_lsn"]):
        raise Stop(f"The WAL that {base['id']} needs to become consistent is missing. Choose another with --backup.")
    begin, end, at = (number - 1) * archive.size, number * archive.size, str(closed[0]["closed_at"])
    more, had = 0, ""
    with _perhaps(archive):
        more, had = archive.pieces(number, scratch)
    end, at, number = end + more, had or at, number + more // archive.size
    if number <= newest:
        gap = archive.choices(number)[0]
        told = f"WAL segment {gap} is missing, and later ones are there: {base['id']} leads up to it alone."
        if options.until is None and not options.lsn:
            raise Stop(f"{told} Take a later base backup with --backup, or an earlier moment with --until.")
        say(told)
    if options.lsn and number_of(options.lsn) > end:
        raise Stop(f"The archive ends at {lsn_of(end)}, before {options.lsn}. Leave --lsn out to go to its end.")
    if options.until is not None and moment(at) < options.until:
        raise Stop(f"The archive ends at {at}, before that moment. Leave --until out to go to its end.")
    return begin


def _unpacked(places: Places, member: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    stored = folder.with_name(f"{folder.name}.age")
    fetched(places, f"base/{member['server']}/{member['id']}/base.age", member["stored"], stored)
    with subprocess.Popen(["tar", "-x", "-C", str(folder)], stdin=subprocess.PIPE) as tar:
        if tar.stdin is None:
            raise Stop("tar takes nothing.")
        measured = opened(stored, tar.stdin.write)
        tar.stdin.close()
    stored.unlink()
    if tar.returncode or measured != (member["plain_bytes"], member["plain_sha256"]):
        raise Stop(f"{member['id']} is not what was backed up. Choose another with --backup.")
    run("pg_verifybackup", "--no-parse-wal", str(folder))


def _configured(options: argparse.Namespace, data: Path, archive: Archive, settings: Path) -> None:
    """Ours alone: production's own files name folders, libraries and archives that are not to be touched."""
    kept = {
        "server": archive.server,
        "trust": archive.trust,
        "wal": archive.places.texts,
        "open": next(iter(archive.open.texts), "") if archive.open is not None else "",
        "segment_bytes": archive.size,
        "system_id": archive.system,
        "stretches": archive.stretches,
        "rests": False,
    }
    settings.write_text(json.dumps(kept))
    command = [sys.executable, "-I", str(Path(__file__).absolute()), "wal", str(settings)]
    lines = {
        "unix_socket_directories": str(data),
        "restore_command": f'{shlex.join(command)} %f "%p"',
        "recovery_target_timeline": str(archive.stretches[-1].timeline),
        "lc_messages": "C",
        "wal_retrieve_retry_interval": "30s",  # the wait is what is left of it once `restore_command` has ended
        **_floors(data),
        **ALONE,
    }
    if options.until is not None:
        lines["recovery_target_time"] = options.until.isoformat()
    if options.lsn:
        lines["recovery_target_lsn"] = options.lsn
    if options.until is not None or options.lsn:
        lines |= {"recovery_target_inclusive": "on", "recovery_target_action": "pause"}
    for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf"):
        if (data / name).exists():
            (data / name).rename(data / f"{name}.production")
    (data / "postgresql.conf").touch()
    (data / "postgresql.auto.conf").write_text(_lines(lines))
    (data / "pg_hba.conf").write_text("local all all trust\n")  # through a folder that nobody else can enter
    # A recovery ends with the WAL: without a target by a promotion, else by an error, although it may just be that
    # nobody has committed anything between the last commit and the target. A standby waits there, and goes no further
    # than the target when more comes.
    (data / "standby.signal").touch()


def _lines(settings: dict[str, str]) -> str:
    return "".join(f"{name} = {_literal(value)}\n" for name, value in settings.items())


def _floors(data: Path) -> dict[str, str]:
    """Recovery needs them as high as production had them where it has come to."""
    names = {
        "max_connections": "max_connections",
        "max_worker_processes": "max_worker_processes",
        "max_wal_senders": "max_wal_senders",
        "max_prepared_transactions": "max_prepared_xacts",
        "max_locks_per_transaction": "max_locks_per_xact",
        "track_commit_timestamp": "track_commit_timestamp",
    }
    told = _control(data)
    return {name: told[f"{shown} setting"] for name, shown in names.items()}


def _control(data: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in run("pg_controldata", str(data)).splitlines())
    return {name: value.strip() for name, _, value in lines}


def _pages(data: Path) -> str:
    """What is known of the pages of a server that is stopped. Raises Stop when one is damaged."""
    if _control(data)["Data page checksum version"] == "0":
        return "pages not checked: the server has no page checksums"
    try:
        run("pg_checksums", "--check", "-D", str(data))
    except Stop as error:
        raise Stop(
            f"Pages of the restored server are damaged, it is stopped. Choose another backup. {error}"
        ) from error
    return "every page checked"


WAITS_FOR_WAL = "RecoveryRetrieveRetryInterval"
STUCK = 20
"""Seconds after which a server is given up that does not answer, or waits for WAL that was there. Less than a wait."""
ALONE = {
    "archive_mode": "off",
    "listen_addresses": "",
    "ssl": "off",
    "shared_preload_libraries": "",
    "primary_conninfo": "",
}
"""What keeps it from production's archive, from its primary and from everybody else."""


def _rests(options: argparse.Namespace, data: Path, superuser: str, log: Path, begun: int, last: int) -> str:
    """Where it has come to rest. A server that merely answers has reached nothing yet."""
    asked = """SELECT pg_get_wal_replay_pause_state(), pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp(),
        (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')"""
    raised: dict[str, str] = {}
    before, same = "", 0
    while True:
        time.sleep(1)
        told = run("psql", "-XAtq", "-h", str(data), "-U", superuser, "-d", "postgres", "-c", asked, quiet=True)
        same, before = same + 1 if told == before else 0, told
        said = log.read_bytes()[begun:].decode(errors="replace")
        found = re.findall(r"(?:FATAL|PANIC):  ([^\n]+)", said)
        why = f"{found[-1] if found else 'it does not say why'}. Read {log}."
        if not (data / "postmaster.pid").exists():
            raise Stop(f"It has ended before its target: {why}")
        if told.startswith("paused") and not _stopped(said) and (floors := _floors(data)) != raised:
            # Production has raised some after the base backup, and replay waits until they are as high here.
            raised = floors
            with (data / "postgresql.auto.conf").open("a") as sink:
                sink.write(_lines(raised))
            pg_ctl("restart", "-w", "-t", "3600", "-D", str(data), "-l", str(log))
        elif told and same and (place := _arrived(options, told, said, last)):
            return place
        if same > STUCK and (not told or told.endswith(WAITS_FOR_WAL)):
            raise Stop(f"It gets no further ({told or 'no answer'}): {why}")


def _stopped(said: str) -> bool:
    """Whether it stopped where it was told to."""
    return "recovery stopping " in said


def _arrived(options: argparse.Namespace, told: str, said: str, last: int) -> str:
    """Where, once it is at its target, or in what follows `last` at the end of the archive: PostgreSQL has asked for
    more, and waits."""
    state, lsn, at, waits = told.split("|")
    place = f"{lsn}, last commit {at or 'none'}"
    if state == "paused":
        if _stopped(said):
            return place
        raise Stop(f"It waits at {place}, and not at its target. Its log says why.")
    if waits != WAITS_FOR_WAL or number_of(lsn) <= last:
        return ""
    if options.lsn and number_of(lsn) < number_of(options.lsn):
        raise Stop(f"The WAL ends at {place}, before {options.lsn}. Leave --lsn out to go to its end.")
    return place


# ---------------------------------------------------------------- the command line


def lsn(text: str) -> str:
    number_of(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="list|dump|server")
    common = argparse.ArgumentParser(add_help=False)
    where = "where backups are; again for every other place"
    common.add_argument(
        "--from", dest="source", type=named, action="append", required=True, metavar="PLACE", help=where
    )
    common.add_argument("--trust", action="append", required=True, metavar="KEY", help="whose signatures count")
    common.add_argument("--backup", default="", metavar="ID", help="this one, not the newest that fits")

    one = commands.add_parser("list", parents=[common], help="what there is")
    one.add_argument("--database", default="")
    one.add_argument("--server", default="")
    one.set_defaults(run=listed)

    one = commands.add_parser("dump", parents=[common], help="one database from a dump; PGHOST and so on say where to")
    one.add_argument("--database", required=True, help="whose dump")
    one.add_argument("--new", default="", metavar="NAME", help="the new database")
    one.add_argument("--work", default="restore-work", metavar="FOLDER", help="takes the dump")
    one.add_argument("--jobs", type=int, default=2)
    one.set_defaults(run=dump)

    one = commands.add_parser("server", parents=[common], help="a whole server as it was at a moment")
    one.add_argument("--server", required=True)
    one.add_argument("--wal", type=named, action="append", default=[], metavar="PLACE", help="where WAL is, best first")
    one.add_argument("--open", type=named, default="", metavar="PLACE", help="where pieces of the open segment are")
    one.add_argument("--data", required=True, metavar="FOLDER", help="the data directory that is to be")
    target = one.add_mutually_exclusive_group()
    target.add_argument("--until", type=moment, default=None, metavar="TIME", help="as in 2026-11-23T10:29:58+00:00")
    target.add_argument(
        "--lsn", type=lsn, default=None, help="as in 16/B374D848; without either: the end of the archive"
    )
    one.add_argument("--timeline", type=int, default=0, help="the newest, when none is named")
    one.set_defaults(run=server)

    one = commands.add_parser("wal")
    for name in ("settings", "name", "path"):
        one.add_argument(name)
    one.set_defaults(run=wal)

    options = parser.parse_args()
    os.umask(0o077)
    try:
        options.run(options)
    except (Stop, *CUT) as error:
        say(f"Stopped: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
