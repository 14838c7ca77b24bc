import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.pooling import POOLINGS, GeneralisedMean, build_pooling, generalised_mean


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.rand(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)) + 0.01


def test_order_1_is_the_mean(maps: torch.Tensor) -> None:
    torch.testing.assert_close(generalised_mean(maps, 1.0), maps.mean((2, 3)))


def test_a_large_order_nears_the_maximum_and_does_not_overflow(maps: torch.Tensor) -> None:
    torch.testing.assert_close(generalised_mean(1e4 * maps, 2000.0), 1e4 * maps.amax((2, 3)), rtol=5e-3, atol=0)


@settings(max_examples=25, deadline=None)
@given(power=st.floats(0.5, 8), height=st.integers(1, 4), width=st.integers(1, 4), seed=st.integers(0, 1000))
def test_it_is_the_formula(power: float, height: int, width: int, seed: int) -> None:
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    pooled = generalised_mean(maps, power)
    for image in range(2):
        for channel in range(3):
            values = [max(float(value), 1e-6) for value in maps[image, channel].flatten()]
            expected = (sum(value**power for value in values) / len(values)) ** (1 / power)
            assert float(pooled[image, channel]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_its_order_is_learned() -> None:
    pooling = GeneralisedMean()
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    pooling(maps.float()).sum().backward()
    assert pooling.power.grad is not None
    assert pooling.power.grad > 0  # a higher order gives larger values
    order = torch.tensor(2.5, dtype=torch.float64)
    fixed = maps.detach()
    slope = (generalised_mean(fixed, order + 1e-3) - generalised_mean(fixed, order - 1e-3)).sum() / 2e-3
    order.requires_grad_(True)
    generalised_mean(fixed, order).sum().backward()
    assert float(order.grad) == pytest.approx(float(slope), rel=0.02)


@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_gives_finite_vectors_and_gradients(name: str) -> None:
    maps = torch.zeros(2, 3, 4, 4)
    maps[0] = torch.rand(3, 4, 4)  # one image of noise, one of nothing
    maps.requires_grad_(True)
    pooled = build_pooling(name)(maps)
    assert pooled.shape == (2, 48 if name == "flatten" else 3)
    pooled.square().sum().backward()
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(maps.grad).all()


def test_an_unknown_pooling_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'gemm'.*gem, average"):
        build_pooling("gemm")
