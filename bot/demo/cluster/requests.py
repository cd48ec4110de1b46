"""A request's address taken apart: which kind, which object, which verb."""

from typing import NamedTuple

from aiohttp import web

from bot.demo.cluster.answers import RefusedError
from bot.demo.cluster.kinds import Kind, Kinds


class Target(NamedTuple):
    """What a request is about. `name` is empty for a whole list."""

    kind: Kind
    namespace: str
    name: str
    part: str
    verb: str


class Use(NamedTuple):
    """A request in the words of an RBAC rule."""

    verb: str
    group: str
    resource: str
    namespace: str


def target(kinds: Kinds, request: web.Request) -> Target:
    """Raises RefusedError (404) for a path that no kind answers to, 405 for a method that does not fit it."""
    words = request.path.strip("/").split("/")
    group, version, rest = ("", words[1], words[2:]) if words[0] == "api" else (words[1], words[2], words[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, part = (*rest, "", "")[:3]
    kind = kinds.by_path(group, version, plural)
    if kind is None or len(rest) > 3 or (part and part not in kind.parts):
        raise RefusedError(404, "the server could not find the requested resource")
    if kind.namespaced and not namespace and (name or request.method != "GET"):
        raise RefusedError(405, "the server does not allow this method on the requested resource")
    return Target(kind, namespace, name, part, _verb(request, named=bool(name)))


def _verb(request: web.Request, *, named: bool) -> str:
    if request.method == "GET":
        if request.query.get("watch") in ("true", "1"):
            return "watch"
        return "get" if named else "list"
    verbs = {("POST", False): "create", ("PUT", True): "update", ("PATCH", True): "patch"}
    verbs |= {("DELETE", True): "delete", ("DELETE", False): "deletecollection"}
    try:
        return verbs[request.method, named]
    except KeyError as error:
        raise RefusedError(405, "the server does not allow this method on the requested resource") from error


def dry(request: web.Request) -> bool:
    value = request.query.get("dryRun")
    if value not in (None, "", "All"):
        raise RefusedError(400, f'dryRun: Unsupported value: "{value}": supported values: "All"')
    return value == "All"


def manager(request: web.Request) -> str:
    """Who is said to own what this request writes."""
    agent = request.headers.get("User-Agent", "unknown").split("/", maxsplit=1)[0]
    return request.query.get("fieldManager") or agent
