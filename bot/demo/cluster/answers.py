"""Refusals as a Kubernetes API server words them: `Status` objects."""

from typing import Any

Json = dict[str, Any]

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class RefusedError(Exception):
    """A request is refused with this HTTP code."""

    def __init__(self, code: int, message: str, *, reason: str | None = None, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status: Json = {
            "apiVersion": "v1",
            "kind": "Status",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason or REASONS.get(code, "Unknown"),
            "code": code,
        }
        if details:
            self.status["details"] = details


def missing(group_resource: str, name: str) -> RefusedError:
    group = group_resource.partition(".")[2]
    details = {"name": name, "group": group, "kind": group_resource.partition(".")[0]}
    return RefusedError(404, f'{group_resource} "{name}" not found', details=details)


def stale(group_resource: str, name: str) -> RefusedError:
    return RefusedError(
        409,
        f'Operation cannot be fulfilled on {group_resource} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again",
    )


def exists(group_resource: str, name: str) -> RefusedError:
    return RefusedError(409, f'{group_resource} "{name}" already exists', reason="AlreadyExists")


def invalid(kind: str, name: str, why: str) -> RefusedError:
    return RefusedError(422, f'{kind} "{name}" is invalid: {why}')
