import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import gram
from retrieval.devices import has_fast_int8
from retrieval.gram import in_bfloat16, in_int8, in_own_precision, round_to_bfloat16, way_to_multiply
from retrieval.spectrum import sums

needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason="this processor has no fast products of int8")


def positive(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def added_up(multiply: gram.Multiply, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The upper triangle of the sum, the rows as multiplied, and whether they were rounded."""
    total, rows = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64), rows.clone()
    rounded = multiply(rows, total)
    return total.triu(), rows, rounded


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=20))
def test_rounding_gives_the_nearest_number_of_bfloat16(values: list[float]) -> None:
    given_values = np.array(values, np.float32)
    rounded = given_values.copy()
    round_to_bfloat16(rounded)
    by_torch = torch.from_numpy(given_values).bfloat16().float().numpy()
    np.testing.assert_array_equal(rounded, torch.from_numpy(rounded).bfloat16().float().numpy())
    exact = given_values.astype(np.float64)
    np.testing.assert_array_equal(np.abs(rounded - exact), np.abs(by_torch - exact))  # they differ halfway alone


@needs_int8
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 90), columns=st.integers(1, 300))
def test_sums_of_int8_are_those_of_whole_numbers(seed: int, rows: int, columns: int) -> None:
    whole = torch.randint(0, 255, (rows, columns), generator=torch.Generator().manual_seed(seed))
    whole[0] = 254  # so that a step is 1
    total, as_multiplied, rounded = added_up(in_int8, whole.float())
    assert rounded
    assert torch.equal(as_multiplied, whole.float())
    assert torch.equal(total, (whole.T @ whole).double().triu())


@needs_int8
def test_the_largest_sums_fit() -> None:
    total, _, _ = added_up(in_int8, torch.full((2_048, 20), 3.0))
    torch.testing.assert_close(total, torch.full((20, 20), 9.0 * 2_048, dtype=torch.float64).triu())


@needs_int8
def test_int8_leaves_the_rows_as_it_multiplied_them() -> None:
    rows = positive(700, 300) * torch.logspace(-6, 6, 300)  # columns of any size
    rows[:, 7] = 0
    rows[:, 8] = 1e-42  # too small to be divided into steps
    total, as_multiplied, rounded = added_up(in_int8, rows)
    exact = as_multiplied.double()
    assert rounded
    torch.testing.assert_close(total, (exact.T @ exact).triu(), rtol=1e-6, atol=0)
    half_a_step = rows.amax(0) / 254 / 2
    assert ((as_multiplied - rows).abs() <= 1.001 * half_a_step + 1e-30).all()
    assert (as_multiplied[rows == 0] == 0).all(), "nothing stays nothing"


@needs_int8
@pytest.mark.parametrize(("greatest", "rounded"), [(1, True), (100, False)])
def test_where_steps_would_be_coarse_rows_are_multiplied_as_they_are(greatest: float, rounded: bool) -> None:
    rows = positive(400, 1_100)
    rows[3] = greatest
    total, as_multiplied, was_rounded = added_up(in_int8, rows)
    assert was_rounded == rounded
    assert torch.equal(as_multiplied, rows) != rounded
    error = ((as_multiplied - rows).square().mean() / rows.square().mean()).sqrt()
    assert error < gram.COARSEST
    exact = rows.double()
    torch.testing.assert_close(total, (exact.T @ exact).triu(), rtol=1e-3 if rounded else 1e-5, atol=0)


@needs_int8
def test_faint_columns_with_one_strong_value_are_not_rounded_away() -> None:
    rows = 0.03 * (0.99 + 0.02 * positive(2_048, 1_024))
    rows[:, :100] = 1e-4 * positive(2_048, 100)
    rows[torch.arange(100), torch.arange(100)] = 0.3
    assert not added_up(in_int8, rows)[2]
    assert added_up(in_int8, rows[:, 100:])[2]


@pytest.mark.parametrize(
    ("columns", "tiles", "int8", "expected"),
    [
        (1_023, True, True, in_own_precision),
        (1_024, True, True, in_bfloat16),
        (1_024, False, True, in_int8),
        (1_024, False, False, in_own_precision),
    ],
)
def test_rows_are_rounded_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, columns: int, tiles: bool, int8: bool, expected: gram.Multiply
) -> None:
    monkeypatch.setattr(gram, "has_bfloat16_tiles", lambda: tiles)
    monkeypatch.setattr(gram, "has_fast_int8", lambda: int8)
    assert way_to_multiply("auto", columns) is expected
    assert way_to_multiply("bfloat16", 4) is in_bfloat16


def test_int8_is_refused_where_its_sums_might_not_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "has_fast_int8", lambda: False)
    with pytest.raises(ValueError, match="no AVX-512 VNNI; choose float32 or bfloat16"):
        way_to_multiply("int8", 2_048)


def test_float64_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "has_bfloat16_tiles", lambda: True)
    assert not sums([np.ones((2, 1_024))]).rounded
    assert sums([np.ones((2, 1_024), np.float32)]).rounded
    assert (sums([np.ones((2, 4))]) + sums([np.ones((2, 4), np.float32)], "bfloat16")).rounded


@pytest.mark.parametrize("name", ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)])
def test_batches_without_rows_add_nothing(name: str) -> None:
    whole = sums([np.ones((3, 5), np.float32)], name)
    parts = sums([np.ones((0, 5), np.float32), np.ones((3, 5), np.float32), np.ones((0, 5), np.float32)], name)
    np.testing.assert_array_equal(parts.gram, whole.gram)
