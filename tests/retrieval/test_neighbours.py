"""Nearest neighbours are those of a float64 loop, whatever the path taken, the ties and the block sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import neighbours
from retrieval.devices import bfloat16_summed_in_float32
from retrieval.neighbours import TIE, bfloat16_error, nearest, ranked, score_error


def by_loop(queries, gallery, k, exclude=None, normalise=True):
    """The rule of `nearest` in plain Python over float64 similarities."""
    similarities = unit(queries, normalise) @ unit(gallery, normalise).T
    found = []
    for row, scores in enumerate(similarities.tolist()):
        left = [i for i in range(len(scores)) if exclude is None or i != int(exclude[row])]
        hits = []
        for _ in range(k):
            best = max(scores[i] for i in left)
            hits.append(next(i for i in left if scores[i] >= best - TIE))
            left.remove(hits[-1])
        found.append((hits, [scores[i] for i in hits]))
    return torch.tensor([hits for hits, _ in found]), torch.tensor([values for _, values in found], dtype=torch.float64)


def unit(values, normalise):
    values = values.double()
    norms = values.norm(dim=1, keepdim=True)
    return values / torch.where(norms > 0, norms, 1) if normalise else values


def draw(kind, rows, dimension, seed):
    """Embeddings with what breaks neighbours: exact ties, duplicates, near-duplicates, zeros, odd scales."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, dimension, generator=generator)
    copies = values[torch.randint(rows, (rows,), generator=generator)]
    return {
        "random": values,
        "whole": values.round(),
        "duplicates": copies * torch.rand(rows, 1, generator=generator),
        "near_duplicates": copies + 3e-4 * torch.randn(rows, dimension, generator=generator),
        "zeros": values * (torch.rand(rows, 1, generator=generator) > 0.5),
        "scales": values * 10.0 ** torch.randint(-37, 30, (rows, 1), generator=generator),
        "equal": torch.ones(rows, dimension),
        "clustered": 2 * values[torch.randint(min(9, rows), (rows,), generator=generator)]
        + torch.randn(rows, dimension, generator=generator),
    }[kind]


KINDS = ("random", "whole", "duplicates", "near_duplicates", "zeros", "scales", "equal", "clustered")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.integers(2, 40), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_small_sets_agree_with_the_loop(kind, rows, dimension, k, seed):
    values = draw(kind, rows, dimension, seed)
    itself = torch.arange(rows)
    k = min(k, rows - 1)
    similarities, indices = nearest(values, values, k, itself, queries_per_block=5, gallery_per_block=7)
    expected, scores = by_loop(values, values, k, itself)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(similarities.double(), scores, atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["symmetric", "shortlist", "several", "gallery"])
def test_every_path_agrees_with_the_loop(kind, path, monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_IS_CHEAPER", 0)
    monkeypatch.setattr(neighbours, "SEGMENT", 16)
    values = draw(kind, 130, 8, seed=1)
    gallery = values if path == "symmetric" else values.clone()
    queries = values[:30] if path == "gallery" else values
    exclude = None if path == "gallery" else torch.arange(130)
    k = 4 if path == "several" else 1
    found = ranked(queries, gallery, k, exclude, queries_per_block=40, gallery_per_block=60)
    expected, scores = by_loop(queries, gallery, k, exclude)
    assert torch.equal(found[1], expected)
    torch.testing.assert_close(found[0], scores, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block", "tile"), [(40, 48), (64, 32), (1024, 512), (16, 128)])
@pytest.mark.parametrize("kept", [2, 8])
def test_bfloat16_first_agrees_with_the_loop(kind, block, tile, kept, monkeypatch):
    """Rows that bfloat16 answers, and rows that it leaves to float32 and float64, in one set."""
    monkeypatch.setattr(neighbours, "EXACT_IS_CHEAPER", 0)
    monkeypatch.setattr(neighbours, "SEGMENT", 16)
    monkeypatch.setattr(neighbours, "TILE", tile)
    monkeypatch.setattr(neighbours, "SEGMENTS_KEPT", kept)
    monkeypatch.setattr(neighbours, "has_fast_bfloat16", lambda _: True)
    values = torch.cat([draw("clustered", 200, 48, seed=2), draw(kind, 117, 48, seed=1)])
    found = ranked(values, values, 1, torch.arange(317), queries_per_block=block, gallery_per_block=60)
    expected, scores = by_loop(values, values, 1, torch.arange(317))
    assert torch.equal(found[1], expected)
    torch.testing.assert_close(found[0], scores, atol=1e-12, rtol=0)


@pytest.mark.parametrize("fast", [True, False])
def test_a_tie_is_seen_in_a_segment_whose_first_tie_is_none_of_the_whole(fast, monkeypatch):
    """Of three close rows the best lies in another segment, and only the second of the other two ties with it."""
    monkeypatch.setattr(neighbours, "EXACT_IS_CHEAPER", 0)
    monkeypatch.setattr(neighbours, "SEGMENT", 16)
    monkeypatch.setattr(neighbours, "has_fast_bfloat16", lambda _: fast)
    values = torch.cat([torch.zeros(100, 2), torch.eye(100)], 1).double()
    values[0], values[0, 0] = 0, 1
    for row, below in ((20, 1.6e-6), (23, 0.8e-6), (70, 0.0)):
        similarity = 0.9 - below
        values[row] *= (1 - similarity**2) ** 0.5
        values[row, 0] = similarity
    found = ranked(values, values, 1, torch.arange(100))
    expected, _ = by_loop(values, values, 1, torch.arange(100))
    assert expected[0] == 23
    assert torch.equal(found[1], expected)


def searched(values, fast, monkeypatch):
    """The answer, and how many rows each attempt by symmetry left unproven."""
    attempts = []
    by_symmetry = neighbours._Search._by_symmetry

    def watched(search, everyone, rounded):
        unproven = by_symmetry(search, everyone, rounded)
        attempts.append((rounded, len(unproven)))
        return unproven

    monkeypatch.setattr(neighbours._Search, "_by_symmetry", watched)
    monkeypatch.setattr(neighbours, "has_fast_bfloat16", lambda _: fast)
    return nearest(values, values, 1, torch.arange(len(values)))[1], attempts


def test_bfloat16_proves_most_rows_and_gives_way_where_it_cannot(monkeypatch):
    apart, close = draw("clustered", 3000, 64, seed=4), 1 + 0.01 * draw("random", 3000, 64, seed=5)
    found, attempts = searched(apart, True, monkeypatch)
    assert attempts[0][0]
    assert attempts[0][1] < 750
    assert len(attempts) == 1
    assert torch.equal(found, searched(apart, False, monkeypatch)[0])
    found, attempts = searched(close, True, monkeypatch)
    assert attempts[0] == (True, 3000), "given up after the first rows"
    assert not attempts[1][0]
    assert torch.equal(found, searched(close, False, monkeypatch)[0])


@pytest.mark.parametrize("dimension", [2, 64, 1000])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_bfloat16_products_stay_within_the_proven_error(dimension, scale):
    values = scale * torch.nn.functional.normalize(draw("random", 300, dimension, seed=0).double())
    single = values.float()
    residual = float((single - single.bfloat16().float()).norm(dim=1).max())
    products = (single.bfloat16() @ single.bfloat16().T).double()
    written = neighbours.WRITTEN_IN_BFLOAT16 / 2 * products.abs()
    bound = bfloat16_error(dimension, residual, scale)
    assert ((products - values @ values.T).abs() < bound + written).all()
    assert bound < 2**-6.9 * scale**2, "no looser than 2 units of bfloat16"


def test_on_cuda_bfloat16_is_summed_in_float32_and_the_setting_put_back():
    matmul = torch.backends.cuda.matmul
    assert matmul.allow_bf16_reduced_precision_reduction
    with bfloat16_summed_in_float32():
        assert not matmul.allow_bf16_reduced_precision_reduction
    assert matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates"])
def test_on_cuda_the_neighbours_are_those_of_the_cpu(kind):
    values, itself = draw(kind, 20_000, 64, seed=1), torch.arange(20_000)
    there = values.cuda()
    assert torch.equal(nearest(there, there, 1, itself.cuda())[1].cpu(), nearest(values, values, 1, itself)[1])


def test_maxima_of_bfloat16_are_those_of_numbers_and_none_is_below_0():
    scores = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    scores[3] = -scores[3].abs()
    whole, lowest = neighbours._sortable(scores.clone())
    assert torch.equal(neighbours._upper_bounds(whole.amax(1)), scores.float().amax(1).clamp(min=0))
    assert lowest <= int(whole.min())


def test_rows_that_resemble_no_other_are_found_in_bfloat16_too(monkeypatch):
    values = torch.eye(64) - 0.5 / 64
    lonely = torch.cat([draw("clustered", 1500, 64, seed=7), values[:1], -values[1:2]])
    assert torch.equal(searched(lonely, True, monkeypatch)[0], searched(lonely, False, monkeypatch)[0])
    below = torch.nn.functional.normalize(torch.eye(400) - 1 / 400)  # all similarities are below 0
    assert torch.equal(searched(below, True, monkeypatch)[0], searched(below, False, monkeypatch)[0])


def test_segments_find_the_largest_of_a_wide_tile():
    scores = torch.randn(20, 4096, generator=torch.Generator().manual_seed(0))
    values, columns = neighbours._largest(scores, 9)
    assert torch.equal(values, scores.topk(9).values)
    assert torch.equal(scores.gather(1, columns), values)


@pytest.mark.parametrize("blocks", [(7, 31), (64, 128), (1024, 8192)])
def test_block_sizes_do_not_change_the_answer(blocks, monkeypatch):
    values = draw("near_duplicates", 200, 12, seed=3)
    itself = torch.arange(200)
    expected = nearest(values, values, 2, itself)[1]
    monkeypatch.setattr(neighbours, "EXACT_IS_CHEAPER", 0)
    assert torch.equal(nearest(values, values, 2, itself, *blocks)[1], expected)


def test_an_image_never_retrieves_itself_even_among_duplicates():
    values = torch.ones(600, 4)
    indices = nearest(values, values, 1, torch.arange(600))[1][:, 0]
    assert indices.tolist() == [1] + [0] * 599  # the lowest other index, not "the second hit"


def test_ties_within_a_millionth_go_to_the_lowest_index_and_others_do_not():
    def at_angle(cosine):
        return [cosine, (1 - cosine**2) ** 0.5]

    gallery = torch.tensor([at_angle(0.8), at_angle(0.8 + 9e-7), at_angle(0.8 + 2.1e-6)], dtype=torch.float64)
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert nearest(query, gallery[:2], 1)[1].item() == 0
    assert nearest(query, gallery, 1)[1].item() == 2
    assert nearest(query, gallery, 3)[1].tolist() == [[2, 0, 1]]


def test_a_long_chain_of_near_ties_goes_hit_by_hit():
    angles = 0.8 + 4e-7 * torch.randperm(200, generator=torch.Generator().manual_seed(0)).double()
    gallery = torch.stack([angles, (1 - angles**2).sqrt()], 1)
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(nearest(query, gallery, 20)[1], by_loop(query, gallery, 20)[0])


def test_inner_products_are_taken_when_rows_are_not_normalised(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_IS_CHEAPER", 0)
    values = 30 * draw("random", 200, 6, seed=5)
    found = ranked(values, values.clone(), 3, torch.arange(200), normalise=False)
    expected, scores = by_loop(values, values, 3, torch.arange(200), normalise=False)
    assert torch.equal(found[1], expected)
    torch.testing.assert_close(found[0], scores)


@pytest.mark.parametrize("dimension", [2, 64, 1000])
def test_float32_products_stay_within_the_proven_error(dimension):
    values = torch.nn.functional.normalize(draw("random", 300, dimension, seed=0).double())
    error = (values.float() @ values.float().T).double() - values @ values.T
    assert error.abs().max() < score_error(dimension, torch.device("cpu"))


def test_autocast_and_gradients_do_not_reach_the_search():
    values = draw("random", 1500, 16, seed=2)
    itself = torch.arange(1500)
    plain = nearest(values, values, 1, itself)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest(values.clone().requires_grad_(), values, 1, itself)
    assert torch.equal(found[1], plain[1])
    assert not found[0].requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 2), torch.ones(3, 2), 3, torch.arange(3)), "k is 3; a query has 2 images"),
        ((torch.ones(3, 2), torch.ones(3, 2), 4), "k is 4; a query has 3 images"),
        ((torch.ones(3, 2), torch.ones(3, 2), 0), "k is 0"),
        ((torch.ones(3, 2), torch.ones(3, 4), 1), "must agree"),
        ((torch.ones(3, 2).long(), torch.ones(3, 2), 1), "must be a float matrix"),
        ((torch.ones(0, 2), torch.ones(3, 2), 1), "at least one query"),
        ((torch.ones(3, 2), torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), 1), "Row 1 of gallery is not finite"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1, torch.tensor([0, 1, 3])), "exclude holds 3"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1, torch.tensor([0, 1])), "one int64 for each of 3"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nearest(*arguments)
