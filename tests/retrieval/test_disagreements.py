import numpy as np
import pytest
from asked import answers_to
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.disagreements import disagreements

CLASSES = ("cat", "dog", "owl")
ASKED = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES), st.sampled_from(CLASSES), *[st.floats(0, 1)] * 2),
    min_size=1,
    max_size=30,
)


@given(ASKED)
@settings(deadline=None)
def test_fixed_and_broken_are_those_of_plain_loops(asked: list[tuple[str, str, str, float, float]]) -> None:
    old = answers_to([(f"{n:02}", name, f"o{n}", found, near) for n, (name, found, _, near, _) in enumerate(asked)])
    new = answers_to([(f"{n:02}", name, f"n{n}", found, near) for n, (name, _, found, _, near) in enumerate(asked)])
    fixed, broken = disagreements(new, old)
    expected: dict[str, set[str]] = {"fixed": set(), "broken": set()}
    for number, (name, before, after, _, _) in enumerate(asked):
        if before != name and after == name:
            expected["fixed"].add(f"{number:02}")
        if before == name and after != name:
            expected["broken"].add(f"{number:02}")
    assert {pair.image for pair in fixed} == expected["fixed"]
    assert {pair.image for pair in broken} == expected["broken"]
    for pair in (*fixed, *broken):
        name, before, after, near, nearer = asked[int(pair.image)]
        assert pair.class_name == name
        assert (pair.champion.image, pair.champion.class_name) == (f"o{int(pair.image)}", before)
        assert (pair.candidate.image, pair.candidate.class_name) == (f"n{int(pair.image)}", after)
        assert np.allclose((pair.champion.similarity, pair.candidate.similarity), (near, nearer))
        assert (pair.champion.right, pair.candidate.right) == (before == name, after == name)


def test_every_class_has_its_turn_and_its_surest_mistake_comes_first() -> None:
    queries = [("a", "cat", 0.5), ("b", "cat", 0.9), ("c", "cat", 0.7), ("d", "dog", 0.6)]
    old = answers_to([(image, name, "x", "owl", near) for image, name, near in queries])
    new = answers_to([(image, name, "y", name, 1 - near) for image, name, near in queries])
    fixed, broken = disagreements(new, old)
    assert ([pair.image for pair in fixed], broken) == (["b", "d", "c", "a"], [])
    assert [pair.image for pair in disagreements(old, new)[1]] == ["b", "d", "c", "a"]


def test_answers_to_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="did not answer the same queries"):
        disagreements(answers_to([("a", "cat", "b", "cat", 1.0)]), answers_to([("b", "cat", "a", "cat", 1.0)]))
