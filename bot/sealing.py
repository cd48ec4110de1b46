"""The sealed record, made from the plan file: witnesses, the watch over them, the sealer."""

from __future__ import annotations

from pathlib import Path

from actions.adapters.secrets import SecretReferences
from actions.adapters.witness_file import FileWitness
from actions.adapters.witness_s3 import S3Witness
from actions.errors import UserError
from actions.ports import Clock, Secrets
from actions.site import Bucket
from bot.plan_file import DrPlan, Record, WitnessPlace, is_reference
from bot.services.policy import Policy
from bot.services.record.checkpoint import Signer, Trust
from bot.services.record.sealer import Sealer
from bot.services.record.watch import Watch
from bot.services.record.witness import Witness
from bot.services.wake import Wake
from storage.session import Database


async def watch_of(plan: DrPlan, database: Database, secrets: Secrets, clock: Clock) -> Watch | None:
    """The watch over the plan's witnesses; None when the plan has no `record`. Raises UserError for references that
    cannot be resolved."""
    if plan.record is None:
        return None
    try:
        trust = Trust([await _text(key) for key in plan.record.public_keys])
    except ValueError as error:
        wrong = "One of `record.public_keys` of the plan file leads to no Ed25519 public key"
        raise UserError(f"{wrong}; give 32 bytes in base64.") from error
    return Watch(
        database,
        [await witness_of(plan, plan.record, place, secrets) for place in plan.record.witnesses],
        trust,
        clock,
        keys=Policy(plan).keys,
        max_age=plan.record.max_age,
    )


async def sealer_of(plan: DrPlan, database: Database, secrets: Secrets, clock: Clock, wake: Wake) -> Sealer | None:
    """The sealer; None when the plan has no `record`. Raises UserError when its key is not one that is trusted."""
    watch = await watch_of(plan, database, secrets, clock)
    if plan.record is None or watch is None:
        return None
    signer = Signer.from_pem(await secrets.resolve(plan.record.signing_key), plan.record.signing_key)
    if signer.id not in watch.trust.ids:
        raise UserError(
            f"The public half of `{plan.record.signing_key}` is not among the plan's `record.public_keys`, so nobody "
            "would believe its checkpoints. Add it."
        )
    channel = plan.channels.audit if plan.record.heads else ""
    return Sealer(database, signer, watch, clock, wake, channel=channel)


async def witness_of(plan: DrPlan, record: Record, place: WitnessPlace, secrets: Secrets) -> Witness:
    """The adapter of one place."""
    if place.file is not None:
        return FileWitness(place.name, Path(await _text(place.file)))
    bucket = plan.bucket(place.bucket or "")
    return S3Witness(
        place.name,
        Bucket(
            name=bucket.name,
            endpoint=None if bucket.endpoint is None else await _text(bucket.endpoint),
            region=await _text(bucket.region),
            access_key=bucket.access_key or "",
            secret_key=bucket.secret_key or "",
        ),
        f"{bucket.prefix}record/",
        secrets,
        keep=record.keep,
    )


async def _text(value: str) -> str:
    """An address or a public key, which people may read in logs."""
    return await SecretReferences().resolve(value) if is_reference(value) else value
