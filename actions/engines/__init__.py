"""The engines for base backups and WAL: one module of this package for each, which declares it as `ENGINE`.

Nothing else lists them: a module that is there is an engine.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from actions.engine import Engine, UnknownEngine
from actions.errors import UNKNOWN_NAME, RefusedError
from actions.site import PhysicalPolicy


@functools.cache
def engines() -> Mapping[str, Engine]:
    """By name, in the order of their names."""
    modules = sorted(found.name for found in pkgutil.iter_modules(__path__))
    found = [_declared(importlib.import_module(f"{__name__}.{module}").ENGINE, module) for module in modules]
    keys = [key for engine in found for key in engine.keys.model_fields]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise TypeError(f"two engines have the keys {', '.join(sorted(twice))}")
    return {engine.name: engine for engine in found}


def engine_of(policy: PhysicalPolicy) -> Engine:
    """The one that the plan file names for a server. Raises RefusedError for a name that none has."""
    known = engines()
    if policy.engine not in known:
        names = ", ".join(f"`{name}`" for name in known)
        raise RefusedError(
            f"There is no engine `{policy.engine}` for server `{policy.server}`. Use one of {names}.", code=UNKNOWN_NAME
        )
    return known[policy.engine]


def engine_of_step(name: str, label: str) -> Engine:
    """The one that a step names. Plans that were signed before steps did are told by the label."""
    known = engines()
    if name:
        return known[name] if name in known else UnknownEngine(name)
    return next((engine for engine in known.values() if engine.signed_unnamed(label)), UnknownEngine("?"))


def _declared(engine: object, module: str) -> Engine:
    if not isinstance(engine, Engine) or engine.name != module:
        raise TypeError(f"actions/engines/{module}.py does not declare an engine of its own name")
    return engine
