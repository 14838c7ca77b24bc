"""The ledger of a registered model: every move of its aliases, in order, each written once.

MLflow's call that moves an alias has no compare-and-swap: of promoters at once, all believe that they won. A parameter
of a run, however, is written once: of those who write it, one succeeds. So a promotion is a claim on the next number of
the ledger, and the alias follows the ledger's last entry, its head. A process may stop, or be paused for long, between
any two calls; whoever comes next finishes what it left.

Setting the alias late is the one thing that a paused process can do wrong. It says so beforehand, by a mark that it
closes afterwards. An alias that is away from the head is thus explained, and brought back; one that is not was moved by
a person, which is reported and never overwritten unasked.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
PROMOTE, ROLLBACK, ADOPT, RESTORE = "promote", "rollback", "adopt", "restore"
PROPOSE, WITHDRAW = "propose", "withdraw"
ANY = -1  # as `against`: whatever the head is
LONGEST_REASON = 2_000  # characters
LONGEST_ENTRY = 6_000  # characters; MLflow cuts more and does not say so
SECONDS_EXPLAINED = 900.0  # how long the mark of a process that stopped explains where the alias is
DONE = "done"


class LedgerError(ValueError):
    """A move that is refused; its text says what to do."""


class ConflictError(LedgerError):
    """The head is not the champion that the candidate was compared with."""


class OvertakenError(ConflictError):
    """This attempt made the version champion already, and another one has become champion since."""


class AliasMovedError(LedgerError):
    """The alias is where neither the ledger nor a process that stopped has put it."""


class MissingVersionError(LedgerError):
    """A version that the ledger names was deleted."""


@dataclass(frozen=True)
class Entry:
    """One move of an alias.

    Attributes:
        number: its place in the ledger, from 1.
        action: promote or rollback of the champion, propose or withdraw of the challenger; adopt or restore after
            somebody moved the alias by hand.
        before: the version of the entry before; None for the first.
        to: the version that carries the alias from here on; None for no version.
        key: of the attempt; the same attempt again finds its entry and makes no other, but for a challenger that is
            judged again, against another champion.
        by: who moved it.
        why: in words.
        at: when, in UTC.
        report: address of the gate's report; may be empty.
        against: of a challenger: the champion that it was compared with.
        found: where the alias was when it was not at `before`: somebody had moved it by hand.
    """

    number: int
    action: str
    before: int | None
    to: int | None
    key: str
    by: str
    why: str
    at: str
    report: str = ""
    against: int | None = None
    found: int | None = None

    def text(self) -> str:
        """As it is written."""
        values = {"action": self.action, "from": self.before, "to": self.to, "key": self.key, "by": self.by}
        values |= {"why": self.why, "at": self.at, "report": self.report}
        more = {"against": self.against, "found": self.found}
        return json.dumps(values | {name: value for name, value in more.items() if value}, ensure_ascii=False)


def entry_of(number: int, text: str) -> Entry:
    """An entry as it was written.

    Raises:
        LedgerError: it is none, or of a later version.
    """
    try:
        values = json.loads(text)
        return Entry(number=number, before=values.pop("from"), **values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"Entry {number} of the ledger cannot be read ({error}): it was written by hand, or by a later version of "
            "Rankone. Use that version, or restore the database from a backup."
        ) from error


@dataclass(frozen=True)
class Page:
    """What the run of a ledger holds: parameters, written once, and marks, which only go from open to done."""

    claims: Mapping[str, str]
    marks: Mapping[str, str]


class Book(Protocol):
    """Where a ledger and the aliases are kept."""

    def read(self) -> Page:
        """Everything written so far."""

    def claim(self, place: str, text: str) -> bool:
        """Write an entry; False where another one is."""

    def mark(self, place: str, text: str) -> None:
        """Write a mark."""

    def aliases(self) -> dict[str, int]:
        """The versions of the aliases."""

    def set_alias(self, alias: str, version: int) -> None:
        """Move an alias, whatever it was.

        Raises:
            MissingVersionError: there is no such version.
        """

    def delete_alias(self, alias: str) -> None:
        """Remove an alias, if it is there."""


@dataclass(frozen=True)
class State:
    """A ledger and its alias at one moment.

    Attributes:
        alias: its name.
        history: all entries, in order.
        aliases: the versions of all aliases.
        settled: numbers of entries that the alias is known to have followed.
        marked: versions to which a process that has not finished may still set the alias.
    """

    alias: str
    history: tuple[Entry, ...]
    aliases: Mapping[str, int]
    settled: frozenset[int]
    marked: frozenset[int | None]

    @property
    def head(self) -> Entry | None:
        """The last entry."""
        return self.history[-1] if self.history else None

    @property
    def version(self) -> int | None:
        """Where the alias should be."""
        return self.head.to if self.head else None

    @property
    def found(self) -> int | None:
        """Where the alias is."""
        return self.aliases.get(self.alias)

    @property
    def astray(self) -> bool:
        """Whether it is elsewhere than it should be."""
        return self.found != self.version

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        followed = self.head is None or self.head.number in self.settled
        return followed and all(self.aliases.get(name) == to for name, to in self.wanted().items())

    @property
    def explained(self) -> bool:
        """Whether a process that stopped, or is late, has left the alias where it is."""
        if self.head is None:
            return False
        if self.head.number in self.settled:
            return self.found in self.marked
        return self.found in self.marked | {self.head.before} | ({self.head.found} - {None})

    @property
    def moved_by_hand(self) -> bool:
        """Whether a person has moved it since the head was written."""
        return bool(self.history) and self.astray and not self.explained

    @property
    def previous(self) -> int | None:
        """What a rollback returns to: the champion before, those left aside that were rolled back from."""
        champions = champions_of(self.history)
        return champions[-2] if len(champions) > 1 else None

    def of_key(self, key: str) -> Entry | None:
        """The last entry of an attempt."""
        return next((entry for entry in reversed(self.history) if entry.key == key), None)

    def wanted(self) -> dict[str, int | None]:
        """Where the alias, and the one that is derived from it, should be."""
        return {self.alias: self.version} | ({PREVIOUS: self.previous} if self.alias == CHAMPION else {})

    def notice(self) -> str:
        """One sentence on an alias that was moved by hand, with what to do; else empty."""
        if not self.moved_by_hand:
            return ""
        assert self.head is not None
        is_now = f"is at version {self.found}" if self.found else "was removed"
        keep = f"`rankone reconcile --adopt --reason ...` keeps version {self.found}" if self.found else ""
        return (
            f"the alias {self.alias} {is_now}, and the ledger's last entry, {self.head.number} by {self.head.by}, "
            f"says {_said(self.version)}: somebody moved it by hand. `rankone reconcile` puts it back to "
            f"{_said(self.version)}{'; ' + keep if keep else ''}."
        )


@dataclass(frozen=True)
class Move:
    """What came of an attempt.

    Attributes:
        entry: of this attempt; where nothing had to be done, the head; None where there is no entry at all.
        made: whether the entry was written now.
        head: the last entry at the end.
        notice: what was found amiss; may be empty.
    """

    entry: Entry | None
    made: bool
    head: Entry | None
    notice: str = ""


def champions_of(history: tuple[Entry, ...]) -> list[int]:
    """The champions that lead to the present one, oldest first; a rollback takes those after its target away."""
    champions: list[int] = []
    for entry in history:
        if entry.to is None:
            continue
        if entry.action == ROLLBACK and entry.to in champions:
            last = len(champions) - 1 - champions[::-1].index(entry.to)
            champions = champions[: last + 1]
        elif not champions or champions[-1] != entry.to:
            champions.append(entry.to)
    return champions


def look(book: Book, alias: str) -> State:
    """The ledger and its alias at one moment: what was written is the same before and after the alias is read."""
    page = book.read()
    while True:
        aliases, again = book.aliases(), book.read()
        if again == page:
            return _state(alias, page, aliases)
        page = again


def move(
    book: Book,
    alias: str,
    to: int | None,
    action: str,
    key: str,
    by: str,
    why: str,
    at: str,
    report: str = "",
    against: int | None = ANY,
    compared_with: int | None = None,
    overrule: bool = False,
) -> Move:
    """Move an alias through the ledger.

    What the ledger says already is not written again. Of a challenger it says with which champion it was compared: when
    it was judged again, against another one, that is a new entry.

    Args:
        book: the ledger and the aliases of one registered model.
        alias: champion or challenger.
        to: the version; None for none.
        action: what it is called in the ledger.
        key: of this attempt; an attempt that is repeated returns its entry.
        by: who.
        why: in words.
        at: when, in UTC.
        report: address of the gate's report.
        against: the head that the decision was taken on; None when there was none, ANY when it does not matter.
        compared_with: of a challenger: the champion that it was judged against.
        overrule: go on although somebody moved the alias by hand; where it was is written in the entry.

    Raises:
        ConflictError: the head is another than `against`.
        AliasMovedError: somebody moved the alias by hand, and `overrule` was not given.
        LedgerError: the reason is empty or too long, or the whole entry is.
    """
    check_reason(why)

    def says_so(entry: Entry | None) -> bool:
        return action != PROPOSE or (entry is not None and entry.against == compared_with)

    while True:
        state = settle(book, alias)
        if (done := state.of_key(key)) and says_so(done):
            return Move(done, False, state.head, state.notice())
        if state.moved_by_hand and not overrule:
            raise AliasMovedError(f"{_capital(state.notice())} Nothing was moved.")
        # another attempt for the same version may have been first
        if state.version == to and not state.astray and says_so(state.head):
            return Move(state.head, False, state.head)
        if against != ANY and state.version != against:
            raise ConflictError(_conflict(state, to, against))
        found = state.found if state.astray else None
        number = len(state.history) + 1
        entry = Entry(number, action, state.version, to, key, by, why, at, report, compared_with, found)
        if len(entry.text()) > LONGEST_ENTRY:
            raise LedgerError(
                f"The entry has {len(entry.text()):,} characters, and {LONGEST_ENTRY:,} can be kept; say shorter who "
                f"moves it (RANKONE_BY, {len(by):,}) and why ({len(why):,})."
            )
        if book.claim(place(alias, number), entry.text()):
            return Move(entry, True, finish(book, alias).head, state.notice())


def settle(book: Book, alias: str) -> State:
    """Finish what a process that stopped has left, so that the alias is at the head.

    An alias that was set before there was a ledger becomes its first entry. One that somebody moved by hand stays.
    """
    while True:
        state = look(book, alias)
        if not state.history and state.found is not None:
            why = "It was set before the ledger began."
            first = Entry(1, ADOPT, None, state.found, f"before the ledger/{state.found}", "unknown", why, utc_now())
            book.claim(place(alias, 1), first.text())
        elif state.moved_by_hand or state.finished:
            return state
        else:
            return finish(book, alias)


def finish(book: Book, alias: str) -> State:
    """Set the alias to the head until both agree; returns them.

    Raises:
        MissingVersionError: the version of the head was deleted.
    """
    token, opened, missing = secrets.token_hex(4), list[int](), set[str]()
    while True:
        state = look(book, alias)
        if state.head is None:
            return state
        wrong = {name: to for name, to in state.wanted().items() if state.aliases.get(name) != to}
        wrong = {name: to for name, to in wrong.items() if name not in missing}
        if not wrong:
            for number in opened if state.head.number in state.settled else {*opened, state.head.number}:
                book.mark(_mark(alias, number, token), DONE)
            return state
        if state.head.number not in opened:
            book.mark(_mark(alias, state.head.number, token), str(int(time.time())))
            opened.append(state.head.number)
        for name, to in wrong.items():
            try:
                book.delete_alias(name) if to is None else book.set_alias(name, to)
            except MissingVersionError:
                if name == alias:
                    raise
                missing.add(name)
                book.delete_alias(name)


def check_reason(why: str) -> None:
    """Refuse a reason that says nothing, or more than an entry holds.

    Raises:
        LedgerError: it is empty or too long.
    """
    if not why.strip():
        raise LedgerError("The reason is empty; say in a few words why, for those who read the history.")
    if len(why) > LONGEST_REASON:
        raise LedgerError(f"The reason has {len(why):,} characters; use {LONGEST_REASON:,} at most.")


def utc_now() -> str:
    """Now, as an entry says it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def place(alias: str, number: int) -> str:
    """Where an entry is written."""
    return f"promote/{alias}/{number:06d}"


def _mark(alias: str, number: int, token: str) -> str:
    return f"rankone.moving/{alias}/{number:06d}/{token}"


def _state(alias: str, page: Page, aliases: Mapping[str, int]) -> State:
    prefix = place(alias, 0).rpartition("/")[0] + "/"
    written = {int(name.removeprefix(prefix)): text for name, text in page.claims.items() if name.startswith(prefix)}
    if sorted(written) != list(range(1, len(written) + 1)):
        raise LedgerError(
            f"The ledger of {alias} has entries {sorted(written)}, and some are missing: somebody wrote to or deleted "
            "from its run by hand. Restore the database from a backup."
        )
    history = tuple(entry_of(number, text) for number, text in sorted(written.items()))
    settled, marked, now = set[int](), set[int | None](), time.time()
    for name, text in page.marks.items():
        start, _, rest = name.partition("/")
        if start != "rankone.moving" or not rest.startswith(f"{alias}/"):
            continue
        number = int(rest.split("/")[1])
        if text == DONE:
            settled.add(number)
        elif now - float(text) < SECONDS_EXPLAINED and number <= len(history):
            marked.add(history[number - 1].to)
    return State(alias, history, dict(aliases), frozenset(settled), frozenset(marked))


def _conflict(state: State, to: int | None, against: Any) -> str:
    head = state.head
    since = f" since entry {head.number} by {head.by} ({head.at}: {head.why})" if head else ""
    return (
        f"Version {to} was compared with {_said(against)}, and {state.alias} is {_said(state.version)}{since}. Nothing "
        "was moved: judge it again, against the champion of now."
    )


def _said(version: int | None) -> str:
    return f"version {version}" if version is not None else "no version"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
