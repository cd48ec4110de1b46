"""`drbot evidence add --file` and `drbot evidence verify`: the commands about evidence that need the file, or the
bucket, and so a terminal where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.cli_sign import person_of

if TYPE_CHECKING:  # they are slow to import
    from bot.router import Command
    from bot.settings import Settings


def here(command: Command) -> bool:
    """Whether this module carries a command out."""
    return command.name == "evidence.verify" or (command.name == "evidence.add" and bool(command.params.get("file")))


async def carry_out(settings: Settings, command: Command) -> tuple[str, bool]:
    """What is said to the person, and whether it is good news."""
    from actions.adapters.clock import SystemClock
    from actions.backup.evidence import Vault
    from bot import bootstrap, world
    from bot.counter import report_text
    from bot.ports import Who
    from bot.services import plan_versions
    from bot.services.evidence_files import EvidenceFiles

    person = person_of(settings)
    async with bootstrap.bot_database(settings) as database:
        plan = (await plan_versions.in_force(database, settings.plan_file)).plan
        services = bootstrap.office(database, plan)
        ports = await world.ports(settings, plan, database)
        vault = None if ports.site.evidence is None else Vault(ports.objects, ports.site.evidence)
        who = Who(source="cli", person=person, channel=plan.channels.on_call)
        await services.desk.take_turn(who)
        files = EvidenceFiles(database, services.desk, services.incidents, vault, SystemClock())
        if command.name == "evidence.add":
            return await files.add(who, command), True
        report, good = await files.verify(who, command)
        return report_text(report), good
