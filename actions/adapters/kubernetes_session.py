"""One connection to one API server, by the official client, speaking plain JSON.

The generated typed classes are not used: their models refuse what real servers send (an Event without `eventTime`),
and they choose the kind of a patch by its Python type. Here every patch says which kind it is.
Nothing global is read or set: no `~/.kube/config`, no default configuration, no exec plug-ins.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from urllib3.exceptions import HTTPError

from actions.errors import PermanentError, TemporaryError, UserError

Json = dict[str, Any]

FIELD_MANAGER = "superprismora-dr"
CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=20)
LOG_BYTES = 64 * 1024
MERGE_PATCH = "application/merge-patch+json"


class Resource(NamedTuple):
    """A kind of object by its address. `group` is empty for the core group."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, part: str | None = None) -> str:
        words = ["apis", self.group, self.version] if self.group else ["api", self.version]
        words += ["namespaces", namespace] if namespace else []
        return "/" + "/".join([*words, self.plural, *(word for word in (name, part) if word)])

    def rule(self, verb: str) -> str:
        """The RBAC rule that would allow `verb`, as it stands in a Role."""
        return f'apiGroups: ["{self.group}"], resources: ["{self.plural}"], verbs: ["{verb}"]'


class StaleError(Exception):
    """The object changed between reading and writing it; read again."""


class ExpiredError(Exception):
    """The server does not accept the credentials any more."""


class Session:
    """Reads and patches objects. Blocking; call it from a thread. May be used by several threads at once.

    Raises UserError for what a person must put right (rights, names), TemporaryError when the server cannot be
    reached, is busy or failing, PermanentError for an answer that trying again will not change.
    """

    def __init__(self, name: str, api: client.ApiClient) -> None:
        self.name = name
        self._api = api
        self._lock = threading.Lock()

    @classmethod
    def open(cls, name: str, kubeconfig: str, context: str | None) -> "Session":
        """`kubeconfig` is its text, or the path of a file with it; empty stands for the pod's service account."""
        configuration = client.Configuration()
        try:
            if kubeconfig.strip():
                loaded = _parsed(name, kubeconfig)
                config.load_kube_config_from_dict(  # type: ignore[no-untyped-call]
                    loaded, context=context, client_configuration=configuration, persist_config=False
                )
            else:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException as error:
            raise UserError(f"The kubeconfig of cluster `{name}` cannot be used: {error}.") from error
        # The caller decides about trying again: a blocked thread per retry would hide an outage for minutes.
        configuration.retries = False
        return cls(name, client.ApiClient(configuration))

    def close(self) -> None:
        self._api.close()  # type: ignore[no-untyped-call]

    def get(self, resource: Resource, namespace: str | None, name: str) -> Json | None:
        """The object, or None when there is none (or no such kind) under that name."""
        try:
            return self._json("get", resource, namespace, name)
        except _MissingError:
            return None

    def list(self, resource: Resource, namespace: str | None, *, labels: str | None = None) -> list[Json]:
        """All objects of the kind in the namespace; none when the server has no such kind."""
        items: list[Json] = []
        query = {"limit": "500"} | ({"labelSelector": labels} if labels else {})
        while True:
            try:
                page = self._json("list", resource, namespace, None, query=query)
            except _MissingError:
                return []
            items += page.get("items") or []
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return items
            query = {**query, "continue": more}

    def patch(self, resource: Resource, namespace: str, name: str, body: Json, *, dry_run: bool = False) -> Json:
        """Merge-patch an object: what is not named stays, lists included.

        Raises StaleError when `metadata.resourceVersion` is in the body and not the object's any more.
        """
        query = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        try:
            return self._json("patch", resource, namespace, name, body=body, query=query)
        except _MissingError as error:
            raise UserError(f"`{self.name}` has no {resource.plural} `{name}` in namespace `{namespace}`.") from error

    def create(self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False) -> Json:
        """Raises StaleError when there is an object of that name."""
        query = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        try:
            return self._json("create", resource, namespace, None, body=body, query=query)
        except _MissingError as error:
            raise UserError(
                f"`{self.name}` has no namespace `{namespace}`. Create it, or correct the plan file."
            ) from error

    def delete(self, resource: Resource, namespace: str, name: str, *, uid: str, dry_run: bool = False) -> None:
        """Delete the object of that uid; its dependents go first. Nothing happens when it is gone.

        Raises StaleError when another object has the name by now.
        """
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        query = {"dryRun": "All"} if dry_run else {}
        with contextlib.suppress(_MissingError):
            self._send("delete", resource, namespace, name, body=options, query=query)

    def allowed(self, verb: str, resource: Resource, namespace: str, name: str | None = None) -> None:
        """Raise UserError when the account has no right to it. Nothing is changed: writes are dry runs, and on a name
        that does not exist."""
        query = {"dryRun": "All"} if verb in ("patch", "delete") else {}
        with contextlib.suppress(_MissingError):
            self._send(verb, resource, namespace, name, body={} if verb == "patch" else None, query=query)

    def follow(self, namespace: str, pod: str, container: str, *, lines: int) -> "LogStream | None":
        """The last lines of a container's log and what it writes from now on; None when it has none."""
        resource = Resource("", "v1", "pods")
        query = {"container": container, "tailLines": str(lines), "follow": "true"}
        try:
            answer = self._open("GET", resource.path(namespace, pod, "log"), query, None)
        except ApiException as error:
            translated = self._translated(error, "get", resource._replace(plural="pods/log"), namespace)
            if isinstance(translated, _MissingError | _RefusedError):
                return None  # 400: the container is still waiting to start
            raise translated from error
        return LogStream(self.name, answer.response)

    def log(self, namespace: str, pod: str, container: str, *, lines: int, limit: int = LOG_BYTES) -> str | None:
        """The end of a container's log, at most `limit` bytes of it; None when it has none (not started, or gone)."""
        resource = Resource("", "v1", "pods")
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(limit)}
        try:
            return self._send("get", resource, namespace, pod, part="log", query=query).decode(errors="replace")
        except (_MissingError, _RefusedError):
            return None  # 400: the container is still waiting to start

    def preferred_version(self, group: str) -> str | None:
        """The version the server prefers for an API group, or None when it does not serve the group."""
        try:
            found = json.loads(self._call("GET", f"/apis/{group}", {}, None))
        except ApiException as error:
            if error.status == 404:
                return None
            raise self._translated(error, "get", Resource(group, "", "*"), None) from error
        return str(found["preferredVersion"]["version"])

    def kinds(self, group: str, version: str) -> dict[str, tuple[Resource, bool]]:
        """The kinds of one version of an API group: where they are, and whether they have namespaces. None of them when
        it is not served."""
        path = f"/apis/{group}/{version}" if group else f"/api/{version}"
        try:
            found = json.loads(self._call("GET", path, {}, None))
        except ApiException as error:
            if error.status == 404:
                return {}
            raise self._translated(error, "get", Resource(group, version, "*"), None) from error
        return {
            entry["kind"]: (Resource(group, version, entry["name"]), bool(entry["namespaced"]))
            for entry in found.get("resources") or []
            if "/" not in entry["name"]
        }

    def _json(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str | None,
        *,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Json:
        try:
            found = json.loads(self._send(verb, resource, namespace, name, body=body, query=query))
        except ValueError:
            # Half an answer. It may hold Secrets, and the error holds all of it.
            raise TemporaryError(
                f"Cluster `{self.name}` answered `{verb} {resource.plural}` with half of it."
            ) from None
        if not isinstance(found, dict):
            raise PermanentError(f"Cluster `{self.name}` answered with something that is not an object.")
        return found

    def _send(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str | None,
        *,
        part: str | None = None,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        method = {"patch": "PATCH", "create": "POST", "delete": "DELETE"}.get(verb, "GET")
        try:
            return self._call(method, resource.path(namespace, name, part), query or {}, body)
        except ApiException as error:
            shown = resource if part is None else resource._replace(plural=f"{resource.plural}/{part}")
            raise self._translated(error, verb, shown, namespace) from error

    def _call(self, method: str, path: str, query: Mapping[str, str], body: Json | None) -> bytes:
        answer = self._open(method, path, query, body)
        try:
            read: bytes = answer.read() or b""
            return read
        except HTTPError as error:
            raise self._unreachable(error) from error

    def _open(self, method: str, path: str, query: Mapping[str, str], body: Json | None) -> Any:
        """The answer, its body not read yet. Raises ApiException unless it is a good one."""
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json"} | ({"Content-Type": kind} if body is not None else {})
        with self._lock:  # the hook that renews a token writes to the shared configuration
            method, url, headers, sent, post, *_ = self._api.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
        limits = (CONNECT_TIMEOUT.total_seconds(), READ_TIMEOUT.total_seconds())
        try:
            answer = self._api.call_api(method, url, headers, sent, post, _request_timeout=limits)
            if not 200 <= answer.status <= 299:
                said: bytes = answer.read() or b""  # type: ignore[no-untyped-call]
                raise ApiException.from_response(http_resp=answer, body=said.decode(errors="replace"), data=None)
        except HTTPError as error:
            raise self._unreachable(error) from error
        return answer

    def _unreachable(self, error: HTTPError) -> TemporaryError:
        return TemporaryError(f"Cluster `{self.name}` cannot be reached: {_plain(error)}.")

    def _translated(self, error: ApiException, verb: str, resource: Resource, namespace: str | None) -> Exception:
        said = _message(error)
        where = f"`{self.name}/{namespace}`" if namespace else f"`{self.name}`"
        match error.status:
            case 401:
                return ExpiredError(said)
            case 403:
                return UserError(
                    f"Cluster {where} refused `{verb} {resource.plural}`: the bot's account has no right to it. "
                    f"Give it the rule `{resource.rule(verb)}`."
                )
            case 404:
                return _MissingError(said)
            case 409:
                return StaleError(said)
            case 400:
                return _RefusedError(f"Cluster {where} refused `{verb} {resource.plural}`: {said}")
            case 429:
                seconds = (error.headers or {}).get("Retry-After", "5")
                wait = timedelta(seconds=int(seconds) if str(seconds).isdigit() else 5)
                return TemporaryError(f"Cluster {where} is busy: {said}", retry_after=wait)
            case status if status is None or status == 0 or status >= 500:
                return TemporaryError(f"Cluster {where} failed at `{verb} {resource.plural}` ({status}): {said}")
        return PermanentError(f"Cluster {where} refused `{verb} {resource.plural}` ({error.status}): {said}")


class LogStream:
    """A container's log as it is written. Iterate in one thread; `close` may be called from another."""

    def __init__(self, cluster: str, response: Any) -> None:
        self._cluster = cluster
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        """Whole lines. Ends when the container has ended, or raises TemporaryError when the connection breaks (also
        after a silence of `READ_TIMEOUT`: follow again then)."""
        rest = b""
        try:
            for chunk in self._response.stream(64 * 1024):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except (HTTPError, OSError, ValueError) as error:  # ValueError: `close` was called in the middle of a read
            raise TemporaryError(f"Cluster `{self._cluster}` broke off a log.") from error
        finally:
            self._response.close()  # here and not in `close`: the reader holds the buffer's lock
        if rest:
            yield rest

    def close(self) -> None:
        """Wake the reader up; its next read ends."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._response.shutdown()


class _MissingError(Exception):
    """404."""


class _RefusedError(PermanentError):
    """400."""


def _parsed(name: str, kubeconfig: str) -> Json:
    text = kubeconfig
    if "\n" not in kubeconfig.strip() and not kubeconfig.lstrip().startswith("{"):
        try:
            text = Path(kubeconfig.strip()).read_text()
        except OSError as error:
            raise UserError(f"The kubeconfig file of cluster `{name}` cannot be read: {error.strerror}.") from error
    try:
        loaded = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        # The parser quotes lines of the text, and those hold tokens.
        raise UserError(f"The kubeconfig of cluster `{name}` is not YAML.") from None
    if not isinstance(loaded, dict):
        raise UserError(f"The kubeconfig of cluster `{name}` is not a kubeconfig.")
    for user in loaded.get("users") or []:
        if "exec" in (user.get("user") or {}) or "auth-provider" in (user.get("user") or {}):
            raise UserError(
                f"The kubeconfig of cluster `{name}` wants to run a program to log in, which the bot does not do. "
                "Give it a kubeconfig with a service account's token or a client certificate."
            )
    return loaded


def _message(error: ApiException) -> str:
    try:
        status = json.loads(error.body or "")
        return str(status["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason or "no reason given")


def _plain(error: HTTPError) -> str:
    # urllib3 wraps the cause several times and names its own objects; people need the innermost words.
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    return str(cause).rsplit(": ", maxsplit=1)[-1] or type(cause).__name__
