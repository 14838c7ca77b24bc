"""Which images are new, changed or gone, against plain loops."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.changes import IMAGES_SCHEMA, differences, sentence

names = st.sampled_from("abc")
lists = st.dictionaries(st.sampled_from("uvwxyz"), st.tuples(names, st.sampled_from(["train", "test"]), names))


def table(rows: dict[str, tuple[str, str, str]]) -> pa.Table:
    columns = [[place, *row] for place, row in rows.items()]
    return pa.Table.from_pylist([dict(zip(IMAGES_SCHEMA.names, row, strict=True)) for row in columns], IMAGES_SCHEMA)


@settings(deadline=None)
@given(lists, lists)
def test_differences_are_those_of_a_loop(before: dict, now: dict) -> None:
    found = differences(table(before), table(now))
    old = [(place, row) for place, row in sorted(before.items()) if now.get(place, ("", "", ""))[2] != row[2]]
    fresh = [(place, row) for place, row in sorted(now.items()) if before.get(place, ("", "", ""))[2] != row[2]]
    pairs = [(row, now[place]) for place, row in before.items() if place in now and now[place][2] == row[2]]
    counts = dict.fromkeys(("new", "removed", "changed", "moved"), 0)
    for was in list(old):
        for place, row in fresh:
            if row[2] == was[1][2]:
                counts["moved"] += 1
                pairs.append((was[1], row))
                old.remove(was)
                fresh.remove((place, row))
                break
    by_class: dict[str, list[int]] = {}
    for place, row in fresh:
        replaced = place in dict(old)
        counts["changed" if replaced else "new"] += 1
        by_class.setdefault(row[0], [0, 0, 0])[1 if replaced else 0] += 1
        pairs += [(dict(old)[place], row)] if replaced else []
    for place, row in old:
        if place not in dict(fresh):
            counts["removed"] += 1
            by_class.setdefault(row[0], [0, 0, 0])[2] += 1
    assert {name: getattr(found, name) for name in counts} == counts
    assert found.other_class == sum(was[0] != row[0] for was, row in pairs)
    assert found.other_split == sum(was[1] != row[1] for was, row in pairs)
    assert found.by_class == {name: tuple(row) for name, row in by_class.items()}
    had, has = ([row[0] for row in rows.values()] for rows in (before, now))
    assert found.new_classes == {name: has.count(name) for name in set(has) - set(had)}
    assert found.removed_classes == {name: had.count(name) for name in set(had) - set(has)}
    assert (found.before, found.now) == (len(before), len(now))
    assert (sentence(found) == "no image is new, changed or removed") == (before == now)


@given(lists, lists)
def test_every_image_is_counted_once_and_to_look_back_is_the_reverse(before: dict, now: dict) -> None:
    found, back = differences(table(before), table(now)), differences(table(now), table(before))
    assert found.before - found.removed == found.now - found.new >= found.moved + found.changed
    assert (back.new, back.removed, back.changed, back.moved) == (
        found.removed, found.new, found.changed, found.moved,
    )  # fmt: skip


def test_a_class_that_was_renamed_holds_nothing_new() -> None:
    before = {f"cat/{number}.png": ("cat", "train", str(number)) for number in range(4)}
    now = {f"feline/{number}.png": ("feline", "train", str(number)) for number in range(4)}
    found = differences(table(before), table(now))
    assert sentence(found) == "4 moved, 4 under another class, 1 new class, 1 removed class"
    assert found.by_class == {}


def test_a_picture_that_was_replaced_is_changed_and_one_that_moved_away_is_not() -> None:
    before = {"a/0": ("a", "train", "sky"), "a/1": ("a", "train", "sea"), "a/2": ("a", "train", "sun")}
    now = {"a/0": ("a", "train", "fog"), "a/1": ("a", "train", "sun"), "a/3": ("a", "test", "sea")}
    found = differences(table(before), table(now))
    assert (found.changed, found.moved, found.new, found.removed, found.other_split) == (1, 2, 0, 0, 1)
    assert found.by_class == {"a": (0, 1, 0)}
