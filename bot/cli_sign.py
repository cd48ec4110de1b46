"""`drbot sign`, `deny`, `withdraw`, `review`: acts on a plan, proven by the person's own OpenSSH key.

What is signed is shown first; the key stays with `ssh-keygen`. Nothing here needs Slack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actions.errors import UserError
from bot.terminal import asked, hand_out, quote, say

if TYPE_CHECKING:  # they are slow to import
    from actions.approval import Act
    from bot.router import Command
    from bot.services.signing import Signing
    from bot.services.statements import Proof, Statement
    from bot.settings import Settings

Plan = Annotated[str, typer.Argument(metavar="PLAN", help="The id of the plan, as its message shows it.")]
Reason = Annotated[str, typer.Option(help="Why; asked for when it is left out.")]
Target = Annotated[str, typer.Option(help="The name of the target, typed; asked for where the rule wants it.")]
Key = Annotated[Path | None, typer.Option(help="Your key, or the .pub file of one in the agent. Default: DRBOT_KEY.")]

_VERBS = {
    "request": "do you ask for it",
    "approve": "do you approve it",
    "deny": "do you deny it",
    "withdraw": "do you withdraw",
    "review": "is the run right, or what is wrong with it",
}


def register(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Hang the commands into the command line."""

    @app.command()
    def sign(plan: Plan, reason: Reason = "", target: Target = "", key: Key = None) -> None:
        """Approve a plan with your key, or sign your own request; it counts with Slack away too."""
        _act(settings(), plan, "approve", reason=reason, target=target, key=key)

    @app.command()
    def deny(plan: Plan, reason: Reason = "", key: Key = None) -> None:
        """Deny a plan with your key; only a new plan overrules it."""
        _act(settings(), plan, "deny", reason=reason, key=key)

    @app.command()
    def withdraw(plan: Plan, reason: Reason = "", key: Key = None) -> None:
        """Take your signature back, until the run has started."""
        _act(settings(), plan, "withdraw", reason=reason, key=key)

    @app.command()
    def review(plan: Plan, reason: Reason = "", key: Key = None) -> None:
        """Record that you have looked at a run that one person started under break-glass."""
        _act(settings(), plan, "review", reason=reason, key=key)

    @app.command()
    def proofs(
        plan: Plan,
        directory: Annotated[Path | None, typer.Option(help="Write statements, signatures and keys there.")] = None,
    ) -> None:
        """Print the statements and signatures of a plan, or write them as files for `ssh-keygen -Y verify`."""
        from bot.services.statements import NAMESPACE

        texts, signers = asyncio.run(_proofs(settings(), plan))
        if directory is None:
            hand_out("\n".join(texts))
            return
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "allowed_signers").write_text(signers)
        for number, text in enumerate(texts, start=1):
            said, armored = text.split("\n\n", 1)
            (directory / f"{number}.statement").write_text(said)
            (directory / f"{number}.sig").write_text(armored)
        say(
            f"{len(texts)} statement(s) in {directory}. Check each with: ssh-keygen -Y verify -f allowed_signers "
            f"-I PERSON -n {NAMESPACE} -s 1.sig < 1.statement"
        )


async def _proofs(settings: Settings, plan: str) -> tuple[Sequence[str], str]:
    """The proofs of a plan, and the keys of the roster as an `allowed_signers` file."""
    from bot import bootstrap

    async with bootstrap.front(settings, "") as there:
        signers = [f"{person.id} {line}\n" for person in there.plan.roster for line in person.keys]
        return await there.signing.proofs(plan), "".join(signers)


def _act(settings: Settings, plan: str, act: str, *, reason: str, key: Path | None, target: str = "") -> None:
    from actions.approval import Act
    from bot import bootstrap

    person = person_of(settings)

    async def work() -> None:
        async with bootstrap.front(settings, person) as there:
            say(await sign_plan(there.signing, plan, Act(act), reason=reason, target=target, key=key or settings.key))

    asyncio.run(work())


def split(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words of a request without `--sign KEY`, and that key. Raises UserError when the key is missing."""
    left, key = list(words), None
    for at, word in enumerate(left):
        if word == "--sign" or word.startswith("--sign="):
            value = word.partition("=")[2]
            if not value and at + 1 == len(left):
                raise UserError("`--sign` needs your key: `--sign ~/.ssh/id_ed25519`.")
            key = Path(value or left[at + 1])
            del left[at : at + (1 if value else 2)]
            break
    return left, key


async def ask(settings: Settings, words: Sequence[str], key: Path) -> tuple[str, bool]:
    """Ask for a plan and sign the request by key; how it stands or ended, and whether that is good news."""
    from bot.router import Router

    return await _request(settings, Router().parse_argv(words), key)


async def clear_suspicion(settings: Settings, command: Command, key: Path) -> str:
    """Sign that Slack can be trusted again; the sentence for the signer."""
    from bot import bootstrap

    person = person_of(settings)
    async with bootstrap.front(settings, person) as there:
        number = command.params.get("incident")
        said = await there.suspicion.statement(person, number, str(command.params.get("text") or ""))
        return await there.suspicion.hand_in(person, await proven(said, key))


async def activate(settings: Settings, file: Path, *, reason: str, target: str, key: Path) -> tuple[str, bool]:
    """Ask for a new version of the plan file to be put in force."""
    from actions import registry
    from bot import plan_file
    from bot.router import Command
    from bot.services.plan_versions import sha256_of

    text = plan_file.read_file(file)
    plan_file.load_text(text, name=str(file), actions=registry.names())
    say(f"{file}: SHA-256 {sha256_of(text)}; its target is plan-{sha256_of(text)[:8]}")
    command = Command(name="plan.activate", params={"document": text}, reason=reason, typed=target)
    return await _request(settings, command, key)


async def _request(settings: Settings, command: Command, key: Path) -> tuple[str, bool]:
    from actions.approval import Act
    from bot import bootstrap

    reason = command.reason or asked("Why do you ask for it", "--reason")
    typed = command.typed or asked("Type the name of the target", "--target")
    command = command.model_copy(update={"reason": reason, "typed": typed})
    async with bootstrap.front(settings, person_of(settings)) as there:
        plan = await there.counter.ask_by_key(command)
        say(await sign_plan(there.signing, plan, Act.APPROVE, reason=reason, target=typed, key=key))
        return await there.counter.follow(plan)


async def sign_plan(desk: Signing, plan: str, act: Act, *, reason: str, target: str, key: Path) -> str:
    """Show the plan, have the statement signed, hand it in; the sentence for the signer."""
    from actions.approval import Act
    from bot.counter import plan_text

    card = await desk.card(plan)
    act = await desk.act(plan, act)
    say(plan_text(card))
    say(f"Digest {card.digest}, code {card.short_code}")
    if act in (Act.APPROVE, Act.REQUEST) and card.typed_target and not target:
        target = asked("Type the name of the target", "--target")
    reason = reason or asked(f"Why {_VERBS[act]}", "--reason")
    return await desk.hand_in(await proven(desk.statement(card, act, target=target, reason=reason), key))


async def proven(said: Statement, key: Path) -> Proof:
    """Show the statement and have the person's key sign it."""
    from actions.adapters import ssh_keygen
    from bot.services.statements import NAMESPACE, Proof

    quote(f"You sign:\n{said.text}")
    armored = await ssh_keygen.sign(said.text, namespace=NAMESPACE, key=key)
    return Proof(statement=said, armored=armored)


def person_of(settings: Settings) -> str:
    """Who uses the command line. Raises UserError when nobody said."""
    if not settings.person:
        raise UserError("Set DRBOT_PERSON to your short name of the roster, so that the record can name you.")
    return settings.person
