"""The HTTP side: a Kubernetes API on the objects. No claim about RBAC: one token may do everything."""

import asyncio
import contextlib
import hmac
import json
import platform
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bot.demo.cluster import kinds as k
from bot.demo.cluster import openapi, ownership, patches
from bot.demo.cluster.answers import RefusedError, missing
from bot.demo.cluster.faults import DroppedError, Fault, Faults
from bot.demo.cluster.following import followed
from bot.demo.cluster.kinds import Kinds
from bot.demo.cluster.kubelet import Kubelet
from bot.demo.cluster.objects import Change, Objects, timestamp
from bot.demo.cluster.requests import Target, Use, dry, manager, target
from bot.demo.cluster.scale import read_scale, write_scale
from bot.demo.cluster.selectors import Test, field_test, label_test
from bot.demo.cluster.tables import table

Json = dict[str, Any]
CREATED = web.RequestKey("created", bool)  # an apply that made the object
MINOR = "36"  # the version whose behaviour is copied


class Api:
    """Handlers. `seen` is filled with what clients ask for."""

    def __init__(
        self, objects: Objects, kinds: Kinds, faults: Faults, *, token: str, kubelet: Kubelet, seen: set[Use]
    ) -> None:
        self._objects = objects
        self._kinds = kinds
        self._faults = faults
        self._token = token
        self._kubelet = kubelet
        self._seen = seen

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=8 * 1024**2)
        for path in ("/healthz", "/readyz", "/livez"):
            application.router.add_get(path, self._healthy)
        discovery = {
            "/version": self._version,
            "/api": self._core,
            "/apis": self._groups,
            "/apis/{group}": self._group,
            "/api/{version}": self._resources,
            "/apis/{group}/{version}": self._resources,
        }
        for path, handler in discovery.items():
            application.router.add_get(path, handler)
            application.router.add_get(f"{path}/", handler)  # the typed classes of the official client ask so
        application.router.add_get("/openapi/v3", self._openapi_index)
        application.router.add_get("/openapi/v3/{place:.+}", self._openapi)
        application.router.add_route("*", "/_control/faults", self._control)
        application.router.add_post("/_control/pods/{namespace}/{name}/{reason}", self._strike)
        application.router.add_route("*", "/api/{version}/{rest:.+}", self._resource)
        application.router.add_route("*", "/apis/{group}/{version}/{rest:.+}", self._resource)
        return application

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise RefusedError(401, "Unauthorized")
            return await handler(request)
        except RefusedError as error:
            headers = {"Retry-After": "1"} if error.code == 429 else {}
            return web.json_response(error.status, status=error.code, headers=headers)
        except DroppedError:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=503)
        except web.HTTPNotFound:
            unknown = RefusedError(404, "the server could not find the requested resource")
            return web.json_response(unknown.status, status=404)

    # ------------------------------------------------------------ discovery

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _version(self, _: web.Request) -> web.Response:
        found = {"major": "1", "minor": MINOR, "gitVersion": f"v1.{MINOR}.0+stand-in", "gitCommit": "0" * 40}
        found |= {"gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "none"}
        return web.json_response(found | {"platform": f"linux/{platform.machine()}"})

    async def _core(self, _: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})

    async def _groups(self, _: web.Request) -> web.Response:
        groups = [_group(name, versions) for name, versions in self._kinds.groups().items()]
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})

    async def _group(self, request: web.Request) -> web.Response:
        name = request.match_info["group"]
        versions = self._kinds.groups().get(name)
        if versions is None:
            raise RefusedError(404, "the server could not find the requested resource")
        return web.json_response({"kind": "APIGroup", "apiVersion": "v1"} | _group(name, versions))

    async def _resources(self, request: web.Request) -> web.Response:
        group, version = request.match_info.get("group", ""), request.match_info["version"]
        entries = [
            entry
            for kind in self._kinds
            if (kind.group, kind.version) == (group, version)
            for entry in kind.discovered()
        ]
        if not entries:
            raise RefusedError(404, "the server could not find the requested resource")
        name = f"{group}/{version}" if group else version
        found = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": entries}
        return web.json_response(found)

    async def _openapi_index(self, _: web.Request) -> web.Response:
        return web.json_response(openapi.index(self._kinds))

    async def _openapi(self, request: web.Request) -> web.Response:
        found = openapi.document(self._kinds, request.match_info["place"])
        if found is None:
            raise RefusedError(404, "the server could not find the requested resource")
        return web.json_response(found)

    async def _control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            try:
                self._faults.add(Fault.model_validate_json(await request.read()))
            except ValidationError as error:
                raise RefusedError(400, str(error)) from error
        elif request.method == "DELETE":
            self._faults.clear()
        return web.json_response([fault.model_dump() for fault in self._faults.active])

    async def _strike(self, request: web.Request) -> web.Response:
        words = request.match_info
        if words["reason"] not in ("OOMKilled", "Evicted"):
            raise RefusedError(400, "a pod can be struck by OOMKilled or Evicted")
        self._kubelet.strike(self._objects.get(k.POD, words["namespace"], words["name"]), words["reason"])
        return web.json_response({})

    # ------------------------------------------------------------ objects

    async def _resource(self, request: web.Request) -> web.StreamResponse:
        what = target(self._kinds, request)
        resource = f"{what.kind.plural}/{what.part}" if what.part else what.kind.plural
        self._seen.add(Use(what.verb, what.kind.group, resource, what.namespace))
        await self._faults.strike(what.verb, resource, what.kind.group, what.namespace)
        if what.verb == "watch":
            return await self._watch(request, what)
        if what.part == "log":
            return await self._log(request, what)
        body = await _body(request) if request.can_read_body else {}
        answers: dict[str, Callable[[web.Request, Target, Any], Json]] = {
            "list": self._list,
            "get": self._get,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_all,
        }
        found = answers[what.verb](request, what, body)
        code = 201 if what.verb == "create" or request.get(CREATED) else 200
        if what.verb in ("list", "get") and "as=Table" in request.headers.get("Accept", ""):
            found = table(what.kind, found)
        return web.json_response(found, status=code)

    def _list(self, request: web.Request, what: Target, _: Any) -> Json:
        chosen = _chosen(request)
        items = [found for found in self._objects.all(what.kind, what.namespace or None) if chosen(found)]
        metadata = {"resourceVersion": str(self._objects.version)}
        name = f"{what.kind.name}List"
        return {"apiVersion": what.kind.api_version, "kind": name, "metadata": metadata, "items": items}

    def _get(self, _: web.Request, what: Target, __: Any) -> Json:
        found = self._objects.get(what.kind, what.namespace, what.name)
        return read_scale(found) if what.part == "scale" else found

    def _create(self, request: web.Request, what: Target, body: Any) -> Json:
        if "status" in what.kind.parts:
            body = {key: value for key, value in body.items() if key != "status"}
        return self._objects.create(what.kind, what.namespace, body, manager=manager(request), dry_run=dry(request))

    def _update(self, request: web.Request, what: Target, body: Any) -> Json:
        named = (body.get("metadata") or {}).get("name")
        if named != what.name:
            raise RefusedError(
                400, f"the name of the object ({named}) does not match the name on the URL ({what.name})"
            )
        if what.part == "scale":
            return self._write_scale(request, what, body)
        return self._write(request, what, body)

    def _write(self, request: web.Request, what: Target, body: Json) -> Json:
        return self._objects.replace(
            what.kind, what.namespace, body, manager=manager(request), part=what.part, dry_run=dry(request)
        )

    def _write_scale(self, request: web.Request, what: Target, scale: Json) -> Json:
        live = self._objects.get(what.kind, what.namespace, what.name)
        return read_scale(self._write(request, what._replace(part=""), write_scale(live, scale)))

    def _patch(self, request: web.Request, what: Target, body: Any) -> Json:
        how = request.content_type
        if how in ("application/apply-patch+yaml", "application/apply-patch+cbor"):
            return self._apply(request, what, body)
        live = self._get(request, what, None)
        if how == "application/json-patch+json":
            found = patches.operations(live, body)
        elif how == "application/merge-patch+json":
            found = patches.merge(live, body)
        elif how == "application/strategic-merge-patch+json" and not what.kind.custom:
            found = patches.strategic(live, body)
        else:
            raise RefusedError(415, f"the body of the request was in an unknown format - {how} is not accepted here")
        found["metadata"].setdefault("name", what.name)
        if what.part == "scale":
            return self._write_scale(request, what, found)
        return self._write(request, what, found)

    def _apply(self, request: web.Request, what: Target, body: Json) -> Json:
        if not request.query.get("fieldManager"):
            raise RefusedError(
                422, "PatchOptions is invalid: fieldManager: Required value: is required for apply patch"
            )
        who, force = manager(request), request.query.get("force") in ("true", "1")
        given = (body.get("metadata") or {}).get("name", what.name)
        if given != what.name:
            raise RefusedError(
                400, f"the name of the object ({given}) does not match the name on the URL ({what.name})"
            )
        if what.part:
            raise RefusedError(415, "the stand-in applies whole objects only")
        found, created = apply(self._objects, what, body, who, force=force, dry_run=dry(request))
        request[CREATED] = created
        return found

    def _delete(self, request: web.Request, what: Target, body: Any) -> Json:
        options = body if isinstance(body, dict) else {}
        wanted = (options.get("preconditions") or {}).get("uid")
        live = self._objects.get(what.kind, what.namespace, what.name)
        if wanted and wanted != live["metadata"]["uid"]:
            raise RefusedError(409, f"the UID in the precondition ({wanted}) does not match the UID in record")
        grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        policy = options.get("propagationPolicy", request.query.get("propagationPolicy"))
        return self._objects.delete(
            what.kind,
            what.namespace,
            what.name,
            grace=None if grace is None else int(grace),
            orphan=policy == "Orphan",
            dry_run=dry(request),
        )

    def _delete_all(self, request: web.Request, what: Target, body: Any) -> Json:
        found = self._list(request, what, None)
        for item in found["items"]:
            self._delete(request, what._replace(name=item["metadata"]["name"]), body)
        return found

    async def _log(self, request: web.Request, what: Target) -> web.StreamResponse:
        pod = self._objects.get(k.POD, what.namespace, what.name)
        names = [found["name"] for found in pod["spec"]["containers"]]
        container = request.query.get("container") or names[0]
        if container not in names:
            raise RefusedError(400, f"container {container} is not valid for pod {what.name}")
        path = self._kubelet.log_of(pod, container)
        if path is None:
            raise RefusedError(400, f'container "{container}" in pod "{what.name}" is waiting to start')
        text = path.read_bytes() if path.exists() else b""
        place = len(text)
        if "tailLines" in request.query:
            lines = text.splitlines(keepends=True)
            text = b"".join(lines[max(0, len(lines) - int(request.query["tailLines"])) :])
        if "limitBytes" in request.query:
            text = text[: int(request.query["limitBytes"])]
        if request.query.get("follow") not in ("true", "1"):
            return web.Response(body=text, content_type="text/plain")
        return await followed(request, path, text, place, lambda: self._ended(pod, container))

    def _ended(self, pod: Json, container: str) -> bool:
        live = self._objects.find(k.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
        if live is None or live["metadata"]["uid"] != pod["metadata"]["uid"]:
            return True
        found = (live.get("status") or {}).get("containerStatuses") or []
        return any(one["name"] == container and "terminated" in one["state"] for one in found)

    async def _watch(self, request: web.Request, what: Target) -> web.StreamResponse:
        chosen = _chosen(request)
        version = request.query.get("resourceVersion", "")
        loop = asyncio.get_running_loop()
        end = loop.time() + float(request.query.get("timeoutSeconds", "300"))
        first = self._first(what, version)
        last = self._objects.version
        queue = self._objects.watch()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            for change in first:
                await _tell(response, what, chosen, change)
            while (left := end - loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        change = await queue.get()
                    if change.version > last:
                        await _tell(response, what, chosen, change)
            return response
        except ConnectionResetError:  # the watcher went away
            return response
        finally:
            self._objects.unwatch(queue)

    def _first(self, what: Target, version: str) -> list[Change]:
        if version in ("", "0"):  # begin with what is there
            return [Change(0, "ADDED", what.kind, found) for found in self._objects.all(what.kind)]
        return self._objects.since(int(version))


def apply(
    objects: Objects, what: Target, body: Json, who: str, *, force: bool, dry_run: bool = False
) -> tuple[Json, bool]:
    """Server-side apply; whether the object was created by it comes second."""
    live = objects.find(what.kind, what.namespace, what.name)
    config = {**body, "metadata": {**(body.get("metadata") or {}), "name": what.name}}
    config.pop("status", None)
    if live is None:
        ownership.record(config, {(who, "Apply"): set(ownership.fields(config))}, timestamp())
        return objects.create(what.kind, what.namespace, config, manager=who, dry_run=dry_run), True
    if (config["metadata"].get("uid") or live["metadata"]["uid"]) != live["metadata"]["uid"]:
        raise missing(what.kind.group_resource, what.name)
    config["metadata"].pop("managedFields", None)
    found, owners = ownership.applied(live, config, who, force=force)
    ownership.record(found, owners, timestamp())
    return objects.replace(what.kind, what.namespace, found, manager=who, dry_run=dry_run), False


async def _tell(response: web.StreamResponse, what: Target, chosen: Test, change: Change) -> None:
    place = change.found["metadata"].get("namespace", "")
    if change.kind == what.kind and what.namespace in ("", place) and chosen(change.found):
        if what.name and change.found["metadata"]["name"] != what.name:
            return
        await response.write(json.dumps({"type": change.word, "object": change.found}).encode() + b"\n")


def _chosen(request: web.Request) -> Test:
    tests = []
    if request.query.get("labelSelector"):
        tests.append(label_test(request.query["labelSelector"]))
    if request.query.get("fieldSelector"):
        tests.append(field_test(request.query["fieldSelector"]))
    return lambda found: all(test(found) for test in tests)


async def _body(request: web.Request) -> Any:
    if request.content_type == "application/vnd.kubernetes.protobuf":
        raise RefusedError(415, "the stand-in reads JSON and YAML, no protobuf: use kubectl apply instead of create")
    text = await request.text()
    try:
        # Apply bodies are YAML; the official client sends them as JSON, kubectl as either.
        return YAML(typ="safe", pure=True).load(text) if "yaml" in request.content_type else json.loads(text or "{}")
    except (ValueError, YAMLError) as error:
        raise RefusedError(400, "the body of the request cannot be read") from error


def _group(name: str, versions: list[str]) -> Json:
    shown = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": shown, "preferredVersion": shown[0]}
