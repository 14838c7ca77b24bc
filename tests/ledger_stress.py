"""Promoters of one model, each a process, that are paused and killed between any two calls of MLflow.

    python -m tests.ledger_stress MODEL FOLDER WORKERS ATTEMPTS SEED

What a promoter was told is in FOLDER/told, one line of JSON a promotion; how many were killed is printed at the end.
"""

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval.ledger import CHAMPION, PROMOTE, ConflictError, look, move, utc_now
from retrieval.ledger_store import Ledger
from retrieval.promotion import history
from retrieval.tracking import client, loading

VERSIONS = 12
KILLED, BROKEN = 17, 18
ATTEMPTS_OF_A_PROCESS = 6
SHARE_KILLED, SHARE_PAUSED, LONGEST_PAUSE = 0.01, 0.3, 0.05  # of the calls; seconds


class Unreliable:
    """A ledger before each call of which the process may be paused or killed."""

    def __init__(self, book: Ledger, chance: random.Random) -> None:
        self._book, self._chance = book, chance

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            if self._chance.random() < SHARE_KILLED:
                os._exit(KILLED)
            if self._chance.random() < SHARE_PAUSED:
                time.sleep(self._chance.uniform(0, LONGEST_PAUSE))
            return getattr(self._book, name)(*values)

        return call


def make_model(name: str) -> None:
    """A registered model with versions that hold nothing."""
    client().create_registered_model(name)
    for _ in range(VERSIONS):
        client().create_model_version(name, source="s3://nowhere/model")


def promoter(name: str, folder: Path, seed: int) -> None:
    """Promote again and again, each time against the champion that it saw."""
    chance = random.Random(seed)
    book = Unreliable(Ledger(name), chance)
    for attempt in range(ATTEMPTS_OF_A_PROCESS):
        against, to, key = look(book, CHAMPION).version, chance.randint(1, VERSIONS), f"{seed}/{attempt}"
        if to == against:
            continue
        try:
            entry = move(book, CHAMPION, to, PROMOTE, key, "a promoter", "stress", utc_now(), against=against).entry
            assert entry is not None
            assert entry.to == to
            told = {"key": key, "against": against, "to": to, "number": entry.number}
            if entry.key != key:  # another promoter has made the same version champion meanwhile
                told = {"key": key, "is_already": to}
        except ConflictError:
            told = {"key": key, "conflict": True}
        with (folder / "told").open("a") as file:
            file.write(json.dumps(told) + "\n")


def main(name: str, folder: Path, workers: int, attempts: int, seed: int) -> None:
    """Keep so many promoters at work until so many attempts have ended or were killed."""
    with loading():
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store
        import mlflow.tracking  # noqa: F401
    running, killed, started = set[int](), 0, 0
    while started * ATTEMPTS_OF_A_PROCESS < attempts or running:
        while len(running) < workers and started * ATTEMPTS_OF_A_PROCESS < attempts:
            started += 1
            child = os.fork()
            if not child:
                try:
                    promoter(name, folder, seed * 1_000 + started)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(BROKEN)
            running.add(child)
        ended, status = os.wait()
        running.discard(ended)
        code = os.waitstatus_to_exitcode(status)
        killed += code == KILLED
        if code not in (0, KILLED):
            sys.exit(f"a promoter ended with {code}")
    print(json.dumps({"processes": started, "killed": killed}))


def check(name: str, folder: Path) -> dict[str, int]:
    """What was promised holds: nothing lost, one line, the alias at its end. Returns counts."""
    told = [json.loads(line) for line in (folder / "told").read_text().splitlines()]
    made = [line for line in told if "number" in line]
    from retrieval.promotion import reconcile

    assert "hand" not in reconcile(name)[0].did
    found = history(name)
    by_key = {entry.key: entry for entry in found.champion}
    assert len(by_key) == len(found.champion)
    for line in made:
        entry = by_key[line["key"]]
        assert (entry.number, entry.before, entry.to) == (line["number"], line["against"], line["to"])
    before = None
    for number, entry in enumerate(found.champion, 1):
        assert (entry.number, entry.before) == (number, before)
        before = entry.to
    assert found.aliases[CHAMPION] == before
    assert found.aliases.get("previous") == found.previous
    assert found.notices == ()
    conflicts = sum("conflict" in line for line in told)
    return {"entries": len(found.champion), "told": len(made), "conflicts": conflicts}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
