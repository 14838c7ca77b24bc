"""Who is champion: promotions, rollbacks, approvals and repairs of a registered model, all through its ledger.

As in `retrieval.registry`, every call goes through `retrieval.tracking`, which knows where MLflow is.
"""

import getpass
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from retrieval.ledger import (
    ADOPT,
    ANY,
    CHALLENGER,
    CHAMPION,
    PROMOTE,
    PROPOSE,
    RESTORE,
    ROLLBACK,
    WITHDRAW,
    AliasMovedError,
    ConflictError,
    Entry,
    LedgerError,
    MissingVersionError,
    Move,
    OvertakenError,
    State,
    look,
    move,
    settle,
    utc_now,
)
from retrieval.ledger_store import Ledger
from retrieval.tracking import client, error_code, open_channel, pipeline_run

ERRORS = {kind.__name__: kind for kind in (AliasMovedError, ConflictError, MissingVersionError, LedgerError)}


@dataclass(frozen=True)
class History:
    """The ledger of a registered model.

    Attributes:
        champion: entries of the alias champion, in order.
        challenger: entries of the alias challenger, in order.
        aliases: versions of the aliases as they are now.
        previous: the version that a rollback returns to; None when there is none.
        notices: aliases that somebody moved by hand, one sentence each.
    """

    champion: tuple[Entry, ...]
    challenger: tuple[Entry, ...]
    aliases: dict[str, int]
    previous: int | None
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Repair:
    """What `reconcile` found of an alias, and where it is now."""

    alias: str
    found: int | None
    now: int | None
    did: str


def promote(
    name: str, number: int, why: str, against: int | None = ANY, report: str = "", by_hand: bool = False
) -> Move:
    """Make a version champion, through the ledger.

    Args:
        name: of the registered model.
        number: of the version.
        why: the gate's reason, or a person's.
        against: the champion that it was compared with; None when there was none, ANY when a person decides.
        report: address of the gate's report.
        by_hand: a person asks for it: an alias that somebody moved meanwhile does not keep it.

    Returns:
        The entry; the one of an earlier attempt when the same pipeline run tries again.

    Raises:
        ConflictError: the champion is another one by now: judge again.
        OvertakenError: a retried run made it champion already, and the champion is another one by now.
        AliasMovedError: somebody moved the alias by hand.
        LedgerError: there is no such version, or no reason.
    """
    made = _move(name, CHAMPION, number, PROMOTE, why, against, report, overrule=by_hand)
    if made.entry and made.head and made.head.to != number:
        raise OvertakenError(
            f"This run made version {number} champion already, by entry {made.entry.number} of the ledger; since then "
            f"entry {made.head.number} by {made.head.by} made it version {made.head.to} ({made.head.why}). Nothing was "
            f"moved; `rankone promote {number} --reason ...` makes it champion again."
        )
    return made


def propose(name: str, number: int, why: str, against: int | None, report: str = "") -> Move:
    """Make a version the challenger, which waits until a person approves it.

    A challenger that was judged again, against another champion, has a new entry: `approve` goes by the last one.

    Raises:
        LedgerError: as `promote`.
    """
    return _move(name, CHALLENGER, number, PROPOSE, why, ANY, report, compared_with=against)


def promotions_by_this_run(name: str) -> list[Entry]:
    """The entries by which earlier attempts of this pipeline run made versions champion; none outside of one."""
    found = history(name).champion if pipeline_run() else ()
    return [entry for entry in found if entry.to is not None and entry.key == attempt_key(entry.to)]


def approve(name: str, why: str) -> Move:
    """Make the challenger champion.

    Raises:
        ConflictError: the champion is not the one that it was compared with.
        LedgerError: nothing waits.
    """
    return _moved(_ask("approve", name=name, by=who(), why=why, at=utc_now()))


def rollback(name: str, why: str, to: int | None = None) -> Move:
    """Go back to an earlier champion.

    Args:
        name: of the registered model.
        why: in words.
        to: the version; the champion before the present one when None.

    Raises:
        ConflictError: somebody else moved the alias at the same time.
        LedgerError: there is no earlier champion, or `to` was never champion.
    """
    return _moved(_ask("rollback", name=name, to=to, by=who(), why=why, at=utc_now(), key=uuid.uuid4().hex))


def reconcile(name: str, adopt: bool = False, why: str = "") -> tuple[Repair, ...]:
    """Bring the aliases to the ledger's heads; with `adopt`, take over into the ledger what was moved by hand."""
    found = _ask("reconcile", name=name, adopt=adopt, by=who(), why=why, at=utc_now(), key=uuid.uuid4().hex)
    return tuple(Repair(**values) for values in _checked(found)["repairs"])


def history(name: str) -> History:
    """Every move of the aliases, and what is amiss; changes nothing."""
    found = _checked(_ask("history", name=name))
    return History(
        tuple(Entry(**entry) for entry in found["champion"]),
        tuple(Entry(**entry) for entry in found["challenger"]),
        found["aliases"],
        found["previous"],
        tuple(found["notices"]),
    )


def who() -> str:
    """Who moves an alias: RANKONE_BY, the pipeline run, or the user of this machine. MLflow records nobody."""
    if given := os.environ.get("RANKONE_BY", "").strip():
        return given
    if pipeline_run():
        return f"pipeline run {pipeline_run()}"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return f"user {os.getuid()}"


def attempt_key(number: int) -> str:
    """Key of an attempt: the same when a step of a pipeline run is retried, another one whenever a person asks."""
    return f"{pipeline_run()}/{number}" if pipeline_run() else uuid.uuid4().hex


def _move(
    name: str,
    alias: str,
    number: int,
    action: str,
    why: str,
    against: int | None,
    report: str,
    compared_with: int | None = None,
    overrule: bool = False,
) -> Move:
    values = {"to": number, "action": action, "key": attempt_key(number), "by": who(), "why": why, "at": utc_now()}
    values |= {"report": report, "against": against, "compared_with": compared_with, "overrule": overrule}
    return _moved(_ask("move_alias", name=name, alias=alias, values=values))


def _ask(action: str, **arguments: Any) -> dict[str, Any]:
    channel = open_channel()
    try:
        return channel.ask(action, **arguments)
    finally:
        channel.close()


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("refused"):
        raise ERRORS[answer["refused"]](answer["why"])
    return answer


def _moved(answer: dict[str, Any]) -> Move:
    found = _checked(answer)
    entry, head = (Entry(**values) if values else None for values in (found["entry"], found["head"]))
    return Move(entry, found["made"], head, found["notice"])


def _refusals(action: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An action whose refusals are an answer, so that they keep their type on the way to another process."""

    def answer(**arguments: Any) -> dict[str, Any]:
        try:
            return action(**arguments)
        except LedgerError as error:
            return {"refused": type(error).__name__, "why": str(error)}

    return answer


def _move_alias(name: str, alias: str, values: dict[str, Any]) -> dict[str, Any]:
    _check_version(name, values["to"])
    moved = move(Ledger(name), alias, **values)
    return asdict(_follow(name, moved) if alias == CHAMPION else moved)


def _approve(name: str, by: str, why: str, at: str) -> dict[str, Any]:
    waiting = settle(Ledger(name), CHALLENGER)
    if waiting.moved_by_hand:
        raise AliasMovedError(f"Nothing was approved: {waiting.notice()}")
    if waiting.head is None or waiting.head.to is None:
        raise LedgerError(f"No challenger of {name} waits; `rankone models` lists the versions.")
    entry = waiting.head
    assert entry.to is not None
    _check_version(name, entry.to)
    moved = move(
        Ledger(name),
        CHAMPION,
        entry.to,
        action=PROMOTE,
        key=f"approval of challenger {entry.number}",
        by=by,
        why=why,
        at=at,
        report=entry.report,
        against=entry.against,
    )
    client().set_model_version_tag(name, str(entry.to), "rankone.outcome", "approved")
    return asdict(_follow(name, moved))


def _rollback(name: str, to: int | None, by: str, why: str, at: str, key: str) -> dict[str, Any]:
    state = settle(Ledger(name), CHAMPION)
    target = to or state.previous
    if target is None:
        raise LedgerError(
            f"{name} has had no champion before this one; `rankone promote VERSION --reason ...` makes one."
        )
    champions = {entry.to for entry in state.history if entry.to is not None}
    if to and to not in champions:
        been = ", ".join(map(str, sorted(champions))) or "none"
        raise LedgerError(
            f"Version {to} of {name} was never champion (these were: {been}), so this is no rollback; "
            f"`rankone promote {to} --reason ...` makes it champion."
        )
    _check_version(name, target)
    moved = move(Ledger(name), CHAMPION, target, ROLLBACK, key, by, why, at, against=state.version, overrule=True)
    return asdict(_follow(name, moved))


def _follow(name: str, moved: Move) -> Move:
    """A challenger that has become champion waits no more."""
    entry = moved.entry
    if entry and moved.head and moved.head.to == entry.to and look(Ledger(name), CHALLENGER).version == entry.to:
        why = f"It is champion, by entry {entry.number}."
        move(Ledger(name), CHALLENGER, None, WITHDRAW, f"{entry.key}/withdraw", entry.by, why, entry.at, overrule=True)
    return moved


def _reconcile(name: str, adopt: bool, by: str, why: str, at: str, key: str) -> dict[str, Any]:
    return {"repairs": [asdict(_repaired(name, alias, adopt, by, why, at, key)) for alias in (CHAMPION, CHALLENGER)]}


def _repaired(name: str, alias: str, adopt: bool, by: str, why: str, at: str, key: str) -> Repair:
    book, found = Ledger(name), look(Ledger(name), alias)
    if not found.moved_by_hand:
        now = settle(book, alias)
        return Repair(alias, found.found, now.found, _done(found, now))
    if adopt and alias == CHAMPION and found.found is None:
        raise LedgerError(f"The alias {alias} was removed by hand; leave --adopt out to put it back.")
    action, to = (ADOPT, found.found) if adopt else (RESTORE, found.version)
    if to is not None:
        _check_version(name, to)
    why = why if why or adopt else "Somebody had moved the alias by hand."
    move(book, alias, to, action, f"{key}/{alias}", by, why, at, against=found.version, overrule=True)
    did = "the ledger has an entry for what was moved by hand" if adopt else "put back: it had been moved by hand"
    return Repair(alias, found.found, to, did)


def _done(found: State, now: State) -> str:
    if len(now.history) > len(found.history):
        return "what was set before the ledger began is its first entry"
    if found.finished:
        return "nothing: it agrees with the ledger" if found.history else "nothing: it was never set"
    return "finished what a process that stopped had left"


def _history(name: str) -> dict[str, Any]:
    champion, challenger = look(Ledger(name), CHAMPION), look(Ledger(name), CHALLENGER)
    return {
        "champion": [asdict(entry) for entry in champion.history],
        "challenger": [asdict(entry) for entry in challenger.history],
        "aliases": dict(champion.aliases),
        "previous": champion.previous,
        "notices": [notice for notice in (champion.notice(), challenger.notice()) if notice],
    }


def _check_version(name: str, number: int) -> None:
    try:
        client().get_model_version(name, str(number))
    except Exception as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise MissingVersionError(
            f"{name} has no version {number}, or no more; `rankone models` lists those it has, and "
            "`rankone rollback` or `rankone promote` makes one champion."
        ) from error


ACTIONS: dict[str, Callable[..., Any]] = {
    "move_alias": _refusals(_move_alias),
    "approve": _refusals(_approve),
    "rollback": _refusals(_rollback),
    "reconcile": _refusals(_reconcile),
    "history": _refusals(_history),
}
