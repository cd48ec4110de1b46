"""Trouble on order: what the tests and the demo make the API server do wrong.

`POST /_control/faults` takes one as JSON, `DELETE /_control/faults` removes all, `GET` lists them.
"""

import asyncio
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bot.demo.cluster.answers import RefusedError


class Fault(BaseModel):
    """Empty `verb`, `resource` or `namespace` match all. `times` is how often it still happens; None: always.

    Verbs are those of RBAC: get, list, watch, create, update, patch, delete. A resource is a plural, with
    `/scale` or `/log` for a part.
    """

    model_config = ConfigDict(extra="forbid")

    what: Literal["forbid", "unauthorized", "fail", "busy", "delay", "drop"]
    verb: str = ""
    resource: str = ""
    namespace: str = ""
    seconds: float = Field(default=0.0, ge=0, le=120)  # of the delay
    times: int | None = None

    def matches(self, verb: str, resource: str, namespace: str) -> bool:
        pairs = ((self.verb, verb), (self.resource, resource), (self.namespace, namespace))
        return all(not wanted or wanted == seen for wanted, seen in pairs)


class DroppedError(Exception):
    """Close the connection without an answer."""


class Faults:
    """Those in force, oldest first."""

    def __init__(self) -> None:
        self.active: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self.active.append(fault)

    def clear(self) -> None:
        self.active.clear()

    async def strike(self, verb: str, resource: str, group: str, namespace: str) -> None:
        """Raise what is in force for this request, or let it wait."""
        for fault in list(self.active):
            if fault.matches(verb, resource, namespace):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.active.remove(fault)
                await _happen(fault, verb, resource, group, namespace)


async def _happen(fault: Fault, verb: str, resource: str, group: str, namespace: str) -> None:
    match fault.what:
        case "delay":
            await asyncio.sleep(fault.seconds)
        case "drop":
            raise DroppedError
        case "unauthorized":
            raise RefusedError(401, "Unauthorized")
        case "fail":
            raise RefusedError(500, "the stand-in was told to fail")
        case "busy":
            raise RefusedError(429, "the stand-in was told to be busy", reason="TooManyRequests")
        case "forbid":
            place = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
            shown = f"{resource}.{group}" if group else resource
            raise RefusedError(
                403,
                f'{shown} is forbidden: User "demo" cannot {verb} resource "{resource}" in API group "{group}"{place}',
            )
