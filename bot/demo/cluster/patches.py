"""The three kinds of patch a Kubernetes API server takes. Pure: a new document comes back, the old one stays.

Strategic merge differs from a plain merge in its lists: those with a merge key are merged item by item, so that a
patch of one container leaves the sidecar beside it alone. The keys are those of the API's own types.
"""

import copy
from typing import Any

from bot.demo.cluster.answers import RefusedError

Json = dict[str, Any]

# Lists of objects by field name -> the key their items are told apart by.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "ownerReferences": "uid",
    "conditions": "type",
    "secrets": "name",
}
PRIMITIVE_LISTS = frozenset({"finalizers"})  # merged as sets; all other lists of scalars are replaced


def merge_key(field: str, items: list[Any]) -> str | None:
    """The key by which the items of a list are merged, or None when the list is replaced as a whole."""
    if field == "ports":  # of a container or of a Service
        return "containerPort" if any("containerPort" in item for item in items) else "port"
    return MERGE_KEYS.get(field)


def strategic(live: Json, patch: Json) -> Json:
    """Strategic merge patch, with `$patch: delete|replace`, `$deleteFromPrimitiveList` and `$retainKeys`."""
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    result = copy.deepcopy(live)
    if "$retainKeys" in patch:
        result = {key: value for key, value in result.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        directive, _, field = key.partition("/")
        if directive == "$deleteFromPrimitiveList":
            result[field] = [item for item in result.get(field) or [] if item not in value]
        elif not key.startswith("$"):  # `$patch: merge` is what happens anyway; `$setElementOrder` comes below
            _strategic_field(result, key, value)
    for key, order in patch.items():
        if key.startswith("$setElementOrder/"):
            _order(result, key.partition("/")[2], order)
    return result


def _strategic_field(result: Json, key: str, value: Any) -> None:
    before = result.get(key)
    if value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
        result.pop(key, None)
    elif isinstance(value, dict):
        result[key] = strategic(before if isinstance(before, dict) else {}, value)
    elif isinstance(value, list):
        result[key] = _strategic_list(key, before or [], value)
    else:
        result[key] = value


def _strategic_list(field: str, live: list[Any], patch: list[Any]) -> list[Any]:
    if field in PRIMITIVE_LISTS:
        return [*live, *(item for item in patch if item not in live)]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in copy.deepcopy(patch) if item.get("$patch") != "replace"]
    objects = [item for item in patch if isinstance(item, dict)]
    key = merge_key(field, [*objects, *(item for item in live if isinstance(item, dict))]) if objects else None
    if key is None:
        return copy.deepcopy(patch)
    result = copy.deepcopy(live)
    for item in patch:
        if key not in item:
            raise RefusedError(422, f"map: {item} does not contain declared merge key: {key}")
        place = next((n for n, found in enumerate(result) if found.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            result = [found for found in result if found.get(key) != item[key]]
        elif place is None:
            result.append(strategic({}, item))
        else:
            result[place] = strategic(result[place], item)
    return result


def _order(result: Json, field: str, order: list[Any]) -> None:
    items = result.get(field)
    objects = [item for item in items or [] if isinstance(item, dict)]
    key = merge_key(field, objects) if objects else None
    if not items or key is None:
        return
    wanted = {item.get(key): place for place, item in enumerate(order) if isinstance(item, dict)}
    items.sort(key=lambda item: wanted.get(item.get(key), len(wanted)))


def merge(live: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386): lists are replaced, null removes."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = copy.deepcopy(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def operations(live: Json, patch: list[Json]) -> Json:
    """JSON patch (RFC 6902). A test that fails or a path that is not there is refused with 422."""
    result: Any = copy.deepcopy(live)
    for step in patch:
        try:
            result = _operate(result, step)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise RefusedError(
                422, f"the server rejected our request due to an error in our request ({error})"
            ) from error
    return dict(result)


def _operate(document: Any, step: Json) -> Any:
    operation, path = step["op"], _words(step["path"])
    match operation:
        case "add":
            _put(document, path, copy.deepcopy(step["value"]), insert=True)
        case "replace":
            _find(document, path)
            _put(document, path, copy.deepcopy(step["value"]), insert=False)
        case "remove":
            _remove(document, path)
        case "test":
            if _find(document, path) != step.get("value"):
                raise ValueError(f"testing path {step['path']} failed")
        case "move" | "copy":
            source = _words(step["from"])
            value = copy.deepcopy(_find(document, source))
            if operation == "move":
                _remove(document, source)
            _put(document, path, value, insert=True)
        case _:
            raise ValueError(f"unknown operation {operation}")
    return document


def _words(path: str) -> list[str]:
    return [word.replace("~1", "/").replace("~0", "~") for word in path.split("/")[1:]]


def _find(document: Any, path: list[str]) -> Any:
    for word in path:
        document = document[int(word)] if isinstance(document, list) else document[word]
    return document


def _put(document: Any, path: list[str], value: Any, *, insert: bool) -> None:
    parent, last = _find(document, path[:-1]), path[-1]
    if not isinstance(parent, list):
        parent[last] = value
    elif last == "-":
        parent.append(value)
    elif insert:
        parent.insert(int(last), value)
    else:
        parent[int(last)] = value


def _remove(document: Any, path: list[str]) -> None:
    parent, last = _find(document, path[:-1]), path[-1]
    del parent[int(last) if isinstance(parent, list) else last]
