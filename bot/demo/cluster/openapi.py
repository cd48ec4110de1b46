"""As much of OpenAPI v3 as makes kubectl leave the validation to the server. No schemas. Pure."""

from typing import Any

from bot.demo.cluster.kinds import Kind, Kinds

Json = dict[str, Any]


def index(kinds: Kinds) -> Json:
    """Where each group's document is."""
    paths = sorted({_place(kind) for kind in kinds})
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in paths}}


def document(kinds: Kinds, place: str) -> Json | None:
    """The document of one group and version, or None when nothing is served there."""
    here = [kind for kind in kinds if _place(kind) == place]
    if not here:
        return None
    shown = {"title": "Kubernetes stand-in", "version": "v1"}
    return {"openapi": "3.0.0", "info": shown, "paths": {_path(kind): {"patch": _patch(kind)} for kind in here}}


def _place(kind: Kind) -> str:
    return f"apis/{kind.api_version}" if kind.group else f"api/{kind.api_version}"


def _path(kind: Kind) -> str:
    return f"/{_place(kind)}{'/namespaces/{namespace}' if kind.namespaced else ''}/{kind.plural}/{{name}}"


def _patch(kind: Kind) -> Json:
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    return {
        "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.name},
    }
