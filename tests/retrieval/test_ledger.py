"""The protocol on a book in memory: every schedule of processes that are paused and stop between any two calls."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from retrieval import ledger
from retrieval.ledger import (
    ANY,
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    PROMOTE,
    PROPOSE,
    ROLLBACK,
    AliasMovedError,
    ConflictError,
    Entry,
    LedgerError,
    MissingVersionError,
    Move,
    Page,
    champions_of,
    entry_of,
    finish,
    look,
    move,
    settle,
)


class Memory:
    """Claims are written once; the alias is whatever was set last, as in MLflow."""

    def __init__(self, versions: int = 99) -> None:
        self.claims: dict[str, str] = {}
        self.marks: dict[str, str] = {}
        self.now: dict[str, int] = {}
        self.versions = set(range(1, versions + 1))

    def read(self) -> Page:
        return Page(dict(self.claims), dict(self.marks))

    def claim(self, place: str, text: str) -> bool:
        return self.claims.setdefault(place, text) == text

    def mark(self, place: str, text: str) -> None:
        self.marks[place] = text

    def aliases(self) -> dict[str, int]:
        return dict(self.now)

    def set_alias(self, alias: str, version: int) -> None:
        if version not in self.versions:
            raise MissingVersionError(f"no version {version}")
        self.now[alias] = version

    def delete_alias(self, alias: str) -> None:
        self.now.pop(alias, None)


class StoppedError(BaseException):
    """As if the process had been killed."""


class Schedule:
    """Lets one of many threads make one call at a time, as a seed says, and stops some of them for good."""

    def __init__(self, seed: int, stops: float, again: float = 0.0) -> None:
        self.random, self.stops, self.again = random.Random(seed), stops, again
        self.last = 0
        self.turn = threading.Condition()
        self.waiting: set[int] = set()
        self.alive: set[int] = set()
        self.running: int | None = None

    def step(self, who: int) -> None:
        with self.turn:
            self.waiting.add(who)
            self.running = None
            self._pick()
            self.turn.wait_for(lambda: self.running == who)
            if self.random.random() < self.stops:
                raise StoppedError

    def end(self, who: int) -> None:
        with self.turn:
            self.alive.discard(who)
            self.running = None
            self._pick()

    def _pick(self) -> None:
        if self.running is None and self.alive and self.waiting == self.alive:
            stays = self.random.random() < self.again and self.last in self.waiting  # the others are paused for long
            self.running = self.last = self.last if stays else self.random.choice(sorted(self.waiting))
            self.waiting.discard(self.running)
            self.turn.notify_all()

    def run(self, works: list[Callable[[int], None]]) -> None:
        self.alive = set(range(len(works)))

        def body(who: int) -> None:
            try:
                works[who](who)
            except StoppedError:
                pass
            finally:
                self.end(who)

        threads = [threading.Thread(target=body, args=(who,)) for who in self.alive.copy()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


class Scheduled:
    """A book of which every call waits for its turn."""

    def __init__(self, book: Memory, schedule: Schedule, who: int) -> None:
        self._book, self._schedule, self._who = book, schedule, who

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            self._schedule.step(self._who)
            return getattr(self._book, name)(*values)

        return call


def promoted(book: Any, to: int | None, key: str = "", alias: str = CHAMPION, **more: Any) -> Move:
    values = {"action": PROMOTE, "by": "a person", "why": "It is better.", "at": "now"} | more
    return move(book, alias, to, key=key or f"{alias} {to} {random.random()}", **values)


def check_line(book: Memory, alias: str = CHAMPION) -> tuple[Entry, ...]:
    """A linear history, and the alias at its end."""
    state = look(book, alias)
    assert [entry.number for entry in state.history] == list(range(1, len(state.history) + 1))
    before = None
    for entry in state.history:
        assert entry.before == before
        before = entry.to
    assert not state.astray
    assert state.aliases.get(PREVIOUS) == state.previous
    return state.history


@pytest.mark.parametrize("again", [0.0, 0.9])
@pytest.mark.parametrize("stops", [0.0, 0.03, 0.15])
def test_whatever_the_schedule_no_update_is_lost(stops: float, again: float) -> None:
    for seed in range(60):
        check_schedule(Schedule(seed, stops, again), stops)


def check_schedule(schedule: Schedule, stops: float) -> None:
    book = Memory()
    made: list[tuple[int | None, Move]] = []
    outcomes = Counter[str]()

    def promoter(who: int) -> None:
        mine = Scheduled(book, schedule, who)
        for attempt in range(2):
            champion = look(mine, CHAMPION).version
            try:
                made.append((champion, promoted(mine, 10 * who + attempt + 1, f"{who}/{attempt}", against=champion)))
                outcomes["made"] += 1
            except ConflictError:
                outcomes["conflict"] += 1

    schedule.run([promoter] * 4)
    settle(book, CHAMPION)
    history = check_line(book)
    for against, told in made:
        assert told.entry in history
        assert told.entry.before == against
    assert len({entry.key for entry in history}) == len(history)
    if not stops:
        assert len(history) == outcomes["made"] >= 1
        assert outcomes.total() == 8


def test_schedules_do_meet_conflicts_and_processes_that_set_the_alias_late() -> None:
    """What the test above has to find out about happens in it."""
    late = 0
    for seed in range(40):
        book, schedule = Memory(), Schedule(seed, 0.0)
        heads: list[int] = []
        original = book.set_alias

        def counted(alias: str, version: int, book: Memory = book, original: Any = original) -> None:
            nonlocal late
            last = entry_of(1, book.claims[max(book.claims)])
            late += alias == CHAMPION and last.to != version
            original(alias, version)

        book.set_alias = counted  # type: ignore[method-assign]

        def promoter(who: int, book: Memory = book, schedule: Schedule = schedule, heads: list[int] = heads) -> None:
            heads.append(promoted(Scheduled(book, schedule, who), who + 1, against=ANY).entry.number)

        schedule.run([promoter] * 4)
        assert sorted(heads) == [1, 2, 3, 4]
        check_line(book)
    assert late > 0


class Late(Memory):
    """Whoever sets the alias first is paused before it, and others go on meanwhile."""

    def __init__(self, meanwhile: Callable[["Late"], None], afterwards: Callable[["Late"], None]) -> None:
        super().__init__()
        self.waiting = [meanwhile, afterwards]

    def set_alias(self, alias: str, version: int) -> None:
        works, self.waiting = self.waiting, []
        for work in works[:1]:
            work(self)
        super().set_alias(alias, version)
        for work in works[1:]:
            work(self)


def test_an_alias_that_is_set_late_is_brought_back_and_nobody_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(book: Late) -> None:
        for version in (2, 3):
            promoted(book, version)

    def somebody(book: Late) -> None:
        assert look(book, CHAMPION).found == 1
        assert not look(book, CHAMPION).moved_by_hand
        assert settle(book, CHAMPION).found == 3

    book = Late(others, somebody)
    first = promoted(book, 1, against=None)
    assert (first.entry.number, first.head.to) == (1, 3)
    assert len(check_line(book)) == 3
    monkeypatch.setattr(ledger, "SECONDS_EXPLAINED", -1.0)  # as without the mark
    with pytest.raises(AssertionError, match="moved_by_hand"):
        promoted(Late(others, somebody), 1, against=None)


def test_an_entry_is_read_as_it_was_written() -> None:
    entry = Entry(7, ROLLBACK, 5, None, "k", "Zoë", 'Because "so".\n', "now", "runs:/1/x", against=3, found=2)
    assert entry_of(7, entry.text()) == entry
    assert {"from", "to", "key", "by", "why", "at", "report"} <= set(__import__("json").loads(entry.text()))


def test_the_same_attempt_again_finds_its_entry() -> None:
    book = Memory()
    first = promoted(book, 1, "run 1", against=None)
    assert (first.made, first.entry.number) == (True, 1)
    promoted(book, 2, "run 2", against=1)
    again = promoted(book, 1, "run 1", against=None)
    assert (again.made, again.entry, again.head.to) == (False, first.entry, 2)
    assert len(check_line(book)) == 2


def test_a_candidate_that_was_compared_with_another_champion_is_refused() -> None:
    book = Memory()
    promoted(book, 1, against=None)
    for against in (None, 2):
        with pytest.raises(ConflictError, match="judge it again") as refused:
            promoted(book, 3, against=against)
        assert "champion is version 1 since entry 1 by a person (now: It is better.)" in str(refused.value)
    assert book.now == {CHAMPION: 1}


def test_who_wants_what_has_come_to_be_meanwhile_has_nothing_to_move() -> None:
    """Two runs that make the same model at once: neither was refused anything."""
    book = Memory()
    first = promoted(book, 1, "run 1", against=None)
    second = promoted(book, 1, "run 2", against=None)
    assert (second.made, second.entry) == (False, first.entry)
    assert book.now == {CHAMPION: 1}


def test_an_entry_that_could_not_be_kept_whole_is_refused() -> None:
    book = Memory()
    with pytest.raises(LedgerError, match=r"6,000 can be kept; say shorter who moves it \(RANKONE_BY, 7,000\)"):
        ledger.move(book, CHAMPION, 1, PROMOTE, "key", "x" * 7_000, "It is better.", "2026-11-25T00:00:00Z")
    assert book.now == {}
    assert not look(book, CHAMPION).history


def test_an_alias_from_before_the_ledger_is_its_first_entry() -> None:
    book = Memory()
    book.now[CHAMPION] = 4
    promoted(book, 5, against=4)
    first, second = check_line(book)
    assert (first.action, first.to, second.before, second.to) == ("adopt", 4, 4, 5)


def test_an_alias_that_was_moved_by_hand_is_reported_and_left() -> None:
    book = Memory()
    promoted(book, 1)
    promoted(book, 2)
    book.now[CHAMPION] = 7
    with pytest.raises(
        AliasMovedError, match=r"The alias champion is at version 7, .*entry, 2 .*says version 2"
    ) as told:
        promoted(book, 3, against=2)
    assert "`rankone reconcile` puts it back to version 2" in str(told.value)
    assert (book.now[CHAMPION], len(book.claims)) == (7, 2)
    moved = promoted(book, 3, overrule=True)
    assert "is at version 7" in moved.notice
    assert (moved.entry.before, moved.entry.found) == (2, 7)
    check_line(book)
    book.now[CHAMPION] = 2
    assert settle(book, CHAMPION).moved_by_hand, "to the champion before, as a process that stopped would leave it"
    book.delete_alias(CHAMPION)
    assert "was removed" in settle(book, CHAMPION).notice()
    assert promoted(book, 3, overrule=True).made, "the same version again, with the alias"
    check_line(book)


def test_what_a_process_left_that_stopped_is_finished() -> None:
    book = Memory()
    promoted(book, 1)
    stopped = Entry(2, PROMOTE, 1, 2, "stopped", "somebody", "It is better.", "now")
    assert book.claim(ledger.place(CHAMPION, 2), stopped.text())
    assert not book.claim(ledger.place(CHAMPION, 2), "another")
    assert look(book, CHAMPION).explained
    assert promoted(book, 3, against=2).entry.number == 3
    check_line(book)


def test_the_mark_of_a_process_that_stopped_explains_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Memory()
    for version in (1, 2, 3):
        promoted(book, version)
    book.mark(f"rankone.moving/{CHAMPION}/000001/gone", str(int(ledger.time.time())))
    book.now[CHAMPION] = 1
    assert settle(book, CHAMPION).aliases[CHAMPION] == 3
    book.now[CHAMPION] = 1
    monkeypatch.setattr(ledger, "SECONDS_EXPLAINED", -1.0)
    assert settle(book, CHAMPION).moved_by_hand
    assert book.now[CHAMPION] == 1


@pytest.mark.parametrize(
    ("line", "champions"),
    [
        ("+1 +2 +3", [1, 2, 3]),
        ("+1 +2 +3 -2", [1, 2]),
        ("+1 +2 +3 -2 -1", [1]),
        ("+1 +2 +3 -1 +4", [1, 4]),
        ("+1 +2 +1", [1, 2, 1]),
        ("+1 +2 +2", [1, 2]),
        ("+1 -9", [1, 9]),
        ("", []),
    ],
)
def test_a_rollback_takes_the_champions_after_its_target_away(line: str, champions: list[int]) -> None:
    kinds = {"+": PROMOTE, "-": ROLLBACK}
    history = tuple(
        Entry(number, kinds[word[0]], None, int(word[1:]), "", "", "", "")
        for number, word in enumerate(line.split(), 1)
    )
    assert champions_of(history) == champions


def test_the_challenger_has_a_line_of_its_own_and_can_be_withdrawn() -> None:
    book = Memory()
    promoted(book, 1)
    assert promoted(book, 2, alias=CHALLENGER, compared_with=1).entry.against == 1
    assert book.now == {CHAMPION: 1, CHALLENGER: 2}
    promoted(book, None, alias=CHALLENGER)
    assert book.now == {CHAMPION: 1}
    assert promoted(book, None, alias=CHALLENGER).made is False
    assert len(check_line(book)) == 1
    assert len(look(book, CHALLENGER).history) == 2


def proposed(book: Any, to: int, key: str, compared_with: int | None) -> Move:
    return promoted(book, to, key, CHALLENGER, action=PROPOSE, compared_with=compared_with)


@pytest.mark.parametrize("keys", [("run 1", "run 2"), ("run 1", "run 1")])
def test_a_challenger_that_was_compared_with_another_champion_has_a_new_entry(keys: tuple[str, str]) -> None:
    book, (first, second) = Memory(), keys
    assert proposed(book, 2, first, 1).made
    assert not proposed(book, 2, first, 1).made
    judged_again = proposed(book, 2, second, 3)
    assert (judged_again.made, judged_again.entry.against) == (True, 3)
    assert not proposed(book, 2, second, 3).made
    back = proposed(book, 2, second, 1)
    assert (back.made, back.head.against) == (True, 1), "the champion of before is champion again"
    assert proposed(book, 2, second, None).head.against is None
    assert [(entry.to, entry.against) for entry in check_line(book, CHALLENGER)] == [(2, 1), (2, 3), (2, 1), (2, None)]


def test_an_attempt_that_another_challenger_has_overtaken_does_not_come_back() -> None:
    book = Memory()
    first = proposed(book, 2, "run 1", 1)
    proposed(book, 5, "run 2", 1)
    again = proposed(book, 2, "run 1", 1)
    assert (again.made, again.entry, again.head.to) == (False, first.entry, 5)
    assert proposed(book, 2, "run 1", 3).made, "judged again"


@pytest.mark.parametrize("stops", [0.0, 0.1])
def test_attempts_at_once_to_propose_the_same_make_one_entry(stops: float) -> None:
    for seed in range(40):
        book, schedule, told = Memory(), Schedule(seed, stops), list[Move]()
        proposed(book, 2, "run 0", 1)

        def proposer(who: int, book: Memory = book, schedule: Schedule = schedule, told: list[Move] = told) -> None:
            told.append(proposed(Scheduled(book, schedule, who), 2, f"run {who % 2}", 3))

        schedule.run([proposer] * 4)
        settle(book, CHALLENGER)
        history = check_line(book, CHALLENGER)
        assert [entry.against for entry in history] in ([1, 3], [1] if stops else [1, 3])
        assert {move.entry for move in told} <= {history[-1]}


def test_a_version_that_was_deleted_is_named_and_previous_does_without() -> None:
    book = Memory()
    promoted(book, 1)
    promoted(book, 2)
    book.versions.remove(1)
    book.delete_alias(PREVIOUS)
    promoted(book, 3)
    assert book.now == {CHAMPION: 3, PREVIOUS: 2}
    book.versions -= {2, 3}
    book.now.clear()
    with pytest.raises(MissingVersionError):
        finish(book, CHAMPION)
    promoted(book, 4, overrule=True)
    assert book.now == {CHAMPION: 4}


@pytest.mark.parametrize(("why", "message"), [(" ", "is empty"), ("x" * 2_001, "2,000 at most")])
def test_a_reason_is_given(why: str, message: str) -> None:
    book = Memory()
    with pytest.raises(LedgerError, match=message):
        promoted(book, 1, why=why)
    assert not book.claims


@pytest.mark.parametrize("text", ["", "moved", "3", "{}", '{"from": 1}', '{"from": 1, "sort": 2}'])
def test_an_entry_that_is_none_is_refused(text: str) -> None:
    book = Memory()
    book.claim(ledger.place(CHAMPION, 1), text)
    with pytest.raises(LedgerError, match="Entry 1 of the ledger cannot be read"):
        look(book, CHAMPION)


def test_a_ledger_with_a_gap_is_refused() -> None:
    book = Memory()
    book.claim(ledger.place(CHAMPION, 2), Entry(2, PROMOTE, 1, 2, "k", "b", "w", "a").text())
    with pytest.raises(LedgerError, match=r"has entries \[2\], and some are missing"):
        look(book, CHAMPION)
