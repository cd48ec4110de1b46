"""Who set which field (`metadata.managedFields`) and server-side apply on top of it. Pure.

Simplified: a field belongs to whoever wrote its value last, applying or not; status is not tracked, and atomic lists
count as one field.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.patches import merge_key

Json = dict[str, Any]
Path = tuple[str, ...]
Owners = dict[tuple[str, str], set[Path]]  # (manager, "Apply" | "Update") -> fields

TRACKED_METADATA = ("labels", "annotations")


def fields(document: Json) -> dict[Path, Any]:
    """Every tracked leaf by its path. Items of keyed lists are named `k:{"name":"api"}`, as the API does."""
    tracked = {key: value for key, value in document.items() if key not in ("apiVersion", "kind", "metadata", "status")}
    metadata = {key: document.get("metadata", {}).get(key) for key in TRACKED_METADATA}
    return dict(_leaves({**tracked, "metadata": {key: value for key, value in metadata.items() if value}}, ()))


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, f"f:{key}"))
    elif (key := _list_key(value, path)) is not None:
        for item in value:
            yield from _leaves(item, (*path, f"k:{json.dumps({key: item[key]}, separators=(',', ':'))}"))
    elif path and path != ("f:metadata",):
        yield path, value


def _list_key(value: Any, path: Path) -> str | None:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return None
    key = merge_key(path[-1].removeprefix("f:"), value) if path else None
    return key if key is not None and all(key in item for item in value) else None


def owners(document: Json) -> Owners:
    """What `metadata.managedFields` says."""
    return {
        (entry["manager"], entry["operation"]): set(_unfolded(entry["fieldsV1"], ()))
        for entry in document.get("metadata", {}).get("managedFields") or []
    }


def _unfolded(folded: Json, path: Path) -> Iterator[Path]:
    for key, inner in folded.items():
        if inner:
            yield from _unfolded(inner, (*path, key))
        else:
            yield (*path, key)


def record(document: Json, who: Owners, time: str) -> None:
    """Write the owners into `metadata.managedFields`."""
    entries = []
    for (manager, operation), paths in who.items():
        if not paths:
            continue
        folded: Json = {}
        for path in sorted(paths):
            inner = folded
            for word in path:
                inner = inner.setdefault(word, {})
        entries.append(
            {
                "manager": manager,
                "operation": operation,
                "apiVersion": document.get("apiVersion", ""),
                "time": time,
                "fieldsType": "FieldsV1",
                "fieldsV1": folded,
            }
        )
    document["metadata"]["managedFields"] = entries


def updated(before: Json | None, after: Json, manager: str) -> Owners:
    """Owners after a plain write: what `manager` changed is its own now and nobody else's."""
    old, new = fields(before) if before else {}, fields(after)
    who = owners(before) if before else {}
    changed = {path for path, value in new.items() if path not in old or old[path] != value}
    kept = {key: {path for path in paths - changed if path in new} for key, paths in who.items()}
    if changed:
        mine = (manager, "Update")
        kept[mine] = kept.get(mine, set()) | changed
    return kept


def applied(live: Json, config: Json, manager: str, *, force: bool) -> tuple[Json, Owners]:
    """Server-side apply of `config` to `live`. Raises RefusedError (409) on a conflict unless forced."""
    wanted, present, who = fields(config), fields(live), owners(live)
    mine = (manager, "Apply")
    conflicts = {
        other[0]: sorted(path for path in paths & wanted.keys() if present.get(path) != wanted[path])
        for other, paths in who.items()
        if other != mine
    }
    conflicts = {other: paths for other, paths in conflicts.items() if paths}
    if conflicts and not force:
        words = [
            f'conflict with "{other}": {", ".join(_shown(path) for path in paths)}'
            for other, paths in conflicts.items()
        ]
        count = sum(len(paths) for paths in conflicts.values())
        raise RefusedError(409, f"Apply failed with {count} conflict{'s' * (count > 1)}: {'; '.join(words)}")
    result = _merged("", live, config)
    held_by_others = {path for key, paths in who.items() if key != mine for path in paths}
    for path in who.get(mine, set()) - wanted.keys() - held_by_others:
        _drop(result, path)
    for key, paths in who.items():
        lost = {path for path in paths & wanted.keys() if present.get(path) != wanted[path]}
        who[key] = paths - lost
    who[mine] = set(wanted)
    return result, who


def _merged(field: str, live: Any, config: Any) -> Any:
    if isinstance(config, dict):
        result = copy.deepcopy(live) if isinstance(live, dict) else {}
        for key, value in config.items():
            result[key] = _merged(key, result.get(key), value)
        return result
    key = _list_key(config, (f"f:{field}",))
    if key is None or not isinstance(live, list):
        return copy.deepcopy(config)
    items = copy.deepcopy(live)
    for wanted in config:
        place = next((n for n, item in enumerate(items) if item.get(key) == wanted[key]), None)
        if place is None:
            items.append(copy.deepcopy(wanted))
        else:
            items[place] = _merged("", items[place], wanted)
    return items


def _drop(document: Any, path: Path) -> None:
    """Remove a field and the containers it leaves empty (a list item counts as empty with its key alone)."""
    word, rest = path[0], path[1:]
    if word.startswith("k:"):
        (key, value), *_ = json.loads(word[2:]).items()
        item = next((found for found in document if found.get(key) == value), None)
        if item is None:
            return
        if rest:
            _drop(item, rest)
        if not rest or not item or set(item) == {key} or rest == (f"f:{key}",):
            document.remove(item)
        return
    name = word[2:]
    if not isinstance(document, dict) or name not in document:
        return
    if rest:
        _drop(document[name], rest)
    if not rest or not document[name]:
        del document[name]


def _shown(path: Path) -> str:
    return "".join(f".{word[2:]}" if word.startswith("f:") else f"[{word[2:]}]" for word in path)
