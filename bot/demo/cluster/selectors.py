"""Label and field selectors. Pure."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from bot.demo.cluster.answers import RefusedError

Json = dict[str, Any]
Test = Callable[[Json], bool]

_SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*(?P<key>[^\s!=]+)\s*(?P<operator>==|!=|=)\s*(?P<value>[^\s]*)\s*$")
_EXISTS = re.compile(r"^\s*(?P<no>!?)\s*(?P<key>[^\s!=()]+)\s*$")


def label_test(text: str) -> Test:
    """A test for `a=b,c!=d,e in (f,g),h,!i`. Raises RefusedError (400) where it cannot be read."""
    tests = [_label_term(term) for term in re.split(r",(?![^(]*\))", text) if term.strip()]
    return lambda found: all(test(found["metadata"].get("labels") or {}) for test in tests)


def _label_term(term: str) -> Callable[[Mapping[str, str]], bool]:
    if match := _SET.match(term):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(term):
        key, value = match["key"], match["value"]
        if match["operator"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(term):
        key, wanted = match["key"], not match["no"]
        return lambda labels: (key in labels) is wanted
    raise RefusedError(400, f"unable to parse requirement: {term!r}")


def field_test(text: str) -> Test:
    """A test for `metadata.name=a,status.phase!=Running`: any dotted path of scalars."""
    tests = []
    for term in text.split(","):
        match = _EQUAL.match(term)
        if match is None:
            raise RefusedError(400, f"invalid field selector: {term!r}")
        tests.append((match["key"].split("."), match["value"], match["operator"] != "!="))
    return lambda found: all((str(_at(found, path)) == value) is equal for path, value, equal in tests)


def _at(found: Any, path: list[str]) -> Any:
    for word in path:
        found = found.get(word, "") if isinstance(found, Mapping) else ""
    return found


def matches(selector: Json, labels: Mapping[str, str]) -> bool:
    """A workload's `spec.selector` against the labels of a pod."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        value, values = labels.get(rule["key"]), rule.get("values") or []
        good = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[rule["operator"]]
        if not good:
            return False
    return True
