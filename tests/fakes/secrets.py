"""Secrets out of a mapping."""

from collections.abc import Mapping

from actions.errors import UserError
from actions.ports import Secrets
from actions.site import SecretRef


class MemorySecrets(Secrets):
    """`values` by reference; what is not there raises UserError, as the adapter does."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self.values = dict(values or {})

    async def resolve(self, ref: SecretRef) -> str:
        if ":" not in ref:
            raise UserError(f"`{ref}` is no reference to a secret.")
        if not self.values.get(ref):
            raise UserError(f"The secret `{ref}` is not set.")
        return self.values[ref]
