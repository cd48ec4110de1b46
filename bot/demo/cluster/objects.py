"""The stand-in's memory: objects, their versions, and what happened to them.

All methods are synchronous and run on one event loop, so each is atomic. What comes out are copies.
"""

import asyncio
import marshal
import re
import secrets
import uuid
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from bot.demo.cluster import kinds as k
from bot.demo.cluster.answers import RefusedError, exists, invalid, missing, stale
from bot.demo.cluster.kinds import Kind, Kinds
from bot.demo.cluster.ownership import owners, record, updated
from bot.demo.cluster.validation import completed

T = TypeVar("T")
Json = dict[str, Any]
Key = tuple[str, str, str]  # group resource, namespace, name

EVENTS_KEPT = 2000
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.:]*[a-z0-9])?$")


def copied(value: T) -> T:
    """A copy of JSON that shares nothing with it; `copy.deepcopy`, which knows all types, takes many times as long."""
    data = marshal.dumps(cast("Any", value), 2)  # later versions keep what is shared shared
    return cast("T", marshal.loads(data))  # noqa: S302 - bytes of our own, never stored


def timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Change:
    """One entry of the watch log."""

    def __init__(self, version: int, word: str, kind: Kind, found: Json) -> None:
        self.version = version
        self.word = word  # ADDED, MODIFIED, DELETED
        self.kind = kind
        self.found = found


class Objects:
    """Every object of the cluster. Raises RefusedError as the API server would."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.version = 1
        self._objects: dict[Key, Json] = {}
        self._log: deque[Change] = deque(maxlen=EVENTS_KEPT)
        self._watchers: set[asyncio.Queue[Change]] = set()
        self.changed = asyncio.Event()  # for the controllers

    def get(self, kind: Kind, namespace: str, name: str) -> Json:
        found = self._objects.get((kind.group_resource, namespace, name))
        if found is None:
            raise missing(kind.group_resource, name)
        return copied(found)

    def find(self, kind: Kind, namespace: str, name: str) -> Json | None:
        return copied(self._objects.get((kind.group_resource, namespace, name)))

    def all(self, kind: Kind, namespace: str | None = None) -> list[Json]:
        """In order of creation."""
        return [
            copied(found)
            for (resource, place, _), found in self._objects.items()
            if resource == kind.group_resource and namespace in (None, place)
        ]

    def owned(self, kind: Kind, owner: Json) -> list[Json]:
        """Objects whose controller is `owner`."""
        uid = owner["metadata"]["uid"]
        namespace = owner["metadata"].get("namespace", "")
        return [
            copied(found)
            for (resource, place, _), found in self._objects.items()
            if resource == kind.group_resource
            and place == namespace
            and any(ref["uid"] == uid for ref in found["metadata"].get("ownerReferences") or [])
        ]

    def create(self, kind: Kind, namespace: str, body: Json, *, manager: str, dry_run: bool = False) -> Json:
        found = copied(body)
        metadata = found.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        name = metadata.get("name") or ""
        if not _NAME.match(name) or len(name) > 253:
            raise invalid(kind.name, name, "metadata.name: Invalid value: a lowercase RFC 1123 subdomain is expected")
        key = self._key(kind, namespace, name)
        if kind.namespaced and (k.NAMESPACE.group_resource, "", namespace) not in self._objects:
            raise missing(k.NAMESPACE.group_resource, namespace)
        if key in self._objects:
            raise exists(kind.group_resource, name)
        found |= {"apiVersion": kind.api_version, "kind": kind.name}
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()} | (
            {"namespace": namespace} if kind.namespaced else {}
        )
        if "spec" in found:
            metadata["generation"] = 1
        found = completed(kind, found)
        if "managedFields" not in metadata:
            record(found, updated(None, found, manager), timestamp())
        return self._store(key, kind, found, "ADDED", dry_run=dry_run)

    def replace(
        self, kind: Kind, namespace: str, body: Json, *, manager: str, part: str = "", dry_run: bool = False
    ) -> Json:
        """Write an object that exists. With a `resourceVersion` that is not the current one: 409.

        `part="status"` writes the status alone, everything else writes all but the status.
        """
        found = copied(body)
        name = found["metadata"]["name"]
        key = self._key(kind, namespace, name)
        live = self._objects.get(key)
        if live is None:
            raise missing(kind.group_resource, name)
        if (
            found["metadata"].get("resourceVersion", live["metadata"]["resourceVersion"])
            != (live["metadata"]["resourceVersion"])
        ):
            raise stale(kind.group_resource, name)
        found = _only_status(live, found) if part == "status" else _all_but_status(kind, live, found)
        if part != "status":
            found = completed(kind, found)
            if found.get("spec") != live.get("spec"):
                found["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
            if found["metadata"].get("managedFields") == live["metadata"].get("managedFields"):
                record(found, updated(live, found, manager), timestamp())
            if owners(found) == owners(live):
                found["metadata"]["managedFields"] = live["metadata"].get("managedFields") or []
        if found == live:
            return copied(live)  # a write that changes nothing makes no new version
        if "deletionTimestamp" in live["metadata"] and not _held(kind, found):
            self._remove(key, kind, found)
            return found
        return self._store(key, kind, found, "MODIFIED", dry_run=dry_run)

    def edit(
        self, kind: Kind, found: Json, change: Callable[[Json], None], *, part: str = "", manager: str = ""
    ) -> Json:
        """For controllers: read again, change in place, write; nothing happens when the object is gone."""
        namespace, name = found["metadata"].get("namespace", ""), found["metadata"]["name"]
        fresh = self.find(kind, namespace, name)
        if fresh is None or fresh["metadata"]["uid"] != found["metadata"]["uid"]:
            return found
        change(fresh)
        if fresh == self._objects[self._key(kind, namespace, name)]:
            return fresh  # as mostly: controllers look five times a second
        return self.replace(kind, namespace, fresh, part=part, manager=manager or "controller")

    def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        grace: int | None = None,
        orphan: bool = False,
        dry_run: bool = False,
    ) -> Json:
        """Delete, dependents included. A pod first gets its grace period: the kubelet calls `finish`."""
        key = self._key(kind, namespace, name)
        live = self._objects.get(key)
        if live is None:
            raise missing(kind.group_resource, name)
        if dry_run:
            return copied(live)
        if orphan:
            self._orphan(live)
        if not _held(kind, live) or (kind is k.POD and grace == 0 and not live["metadata"].get("finalizers")):
            self._remove(key, kind, live)
            return copied(live)
        if "deletionTimestamp" not in live["metadata"]:
            ending = copied(live)
            ending["metadata"]["deletionTimestamp"] = timestamp()
            default = live.get("spec", {}).get("terminationGracePeriodSeconds", 30)
            ending["metadata"]["deletionGracePeriodSeconds"] = default if grace is None else grace
            self._store(key, kind, ending, "MODIFIED", dry_run=False)
        return copied(self._objects[key])

    def finish(self, pod: Json) -> None:
        """The kubelet's word that nothing of the pod is left."""
        key = self._key(k.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
        live = self._objects.get(key)
        if live is not None and live["metadata"]["uid"] == pod["metadata"]["uid"]:
            self._remove(key, k.POD, live)

    def since(self, version: int) -> list[Change]:
        """What happened after `version`. Raises RefusedError (410) when that is no longer known."""
        if self._log and version < self._log[0].version - 1 and len(self._log) == EVENTS_KEPT:
            raise RefusedError(410, f"too old resource version: {version} ({self._log[0].version})")
        return [change for change in self._log if change.version > version]

    def watch(self) -> "asyncio.Queue[Change]":
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self._watchers.add(queue)
        return queue

    def unwatch(self, queue: "asyncio.Queue[Change]") -> None:
        self._watchers.discard(queue)

    # ------------------------------------------------------------ inside

    def _key(self, kind: Kind, namespace: str, name: str) -> Key:
        return kind.group_resource, namespace if kind.namespaced else "", name

    def _store(self, key: Key, kind: Kind, found: Json, word: str, *, dry_run: bool) -> Json:
        if dry_run:
            return found
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        self._objects[key] = found
        if kind is k.CUSTOM_RESOURCE:
            self.kinds.define(found)
        self._tell(word, kind, found)
        return copied(found)

    def _remove(self, key: Key, kind: Kind, found: Json) -> None:
        del self._objects[key]
        self.version += 1
        last = copied(found)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._tell("DELETED", kind, last)
        if kind is k.CUSTOM_RESOURCE:
            withdrawn = {gone.group_resource for gone in self.kinds.withdraw(found)}
            self._sweep(lambda inner, _: inner[0] in withdrawn)
        if kind is k.NAMESPACE:
            self._sweep(lambda inner, _: inner[1] == key[2])
        uid = found["metadata"]["uid"]
        self._sweep(
            lambda _, dependent: any(ref["uid"] == uid for ref in dependent["metadata"].get("ownerReferences") or [])
        )

    def _sweep(self, chosen: Callable[[Key, Json], bool]) -> None:
        for key, found in [(key, found) for key, found in self._objects.items() if chosen(key, found)]:
            kind = self.kinds.by_name(found["apiVersion"], found["kind"])
            if kind is not None and key in self._objects:
                self.delete(kind, key[1], key[2])

    def _orphan(self, owner: Json) -> None:
        uid = owner["metadata"]["uid"]
        for found in list(self._objects.values()):
            refs = found["metadata"].get("ownerReferences") or []
            if any(ref["uid"] == uid for ref in refs):
                found["metadata"]["ownerReferences"] = [ref for ref in refs if ref["uid"] != uid]

    def _tell(self, word: str, kind: Kind, found: Json) -> None:
        change = Change(self.version, word, kind, copied(found))
        self._log.append(change)
        for queue in self._watchers:
            queue.put_nowait(change)
        self.changed.set()


def _held(kind: Kind, found: Json) -> bool:
    """Whether something must still happen before the object may go."""
    return kind is k.POD or bool(found["metadata"].get("finalizers"))


def _only_status(live: Json, body: Json) -> Json:
    found = copied(live)
    found["status"] = body.get("status", {})
    return found


def _all_but_status(kind: Kind, live: Json, body: Json) -> Json:
    found = {**body, "apiVersion": kind.api_version, "kind": kind.name}
    # Without a status subresource the status is a field like any other.
    if "status" in kind.parts:
        found.pop("status", None)
        if "status" in live:
            found["status"] = copied(live["status"])
    for key in ("uid", "creationTimestamp", "namespace", "generation", "deletionTimestamp", "resourceVersion"):
        found["metadata"].pop(key, None)
        if key in live["metadata"]:
            found["metadata"][key] = live["metadata"][key]
    found["metadata"].setdefault("managedFields", live["metadata"].get("managedFields") or [])
    return found
