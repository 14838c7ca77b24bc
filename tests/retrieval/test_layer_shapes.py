import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from retrieval.cosine_layer import CosineLayer
from retrieval.layer_shapes import convolutions, layer_shapes, output_size, softmax_shape
from retrieval.networks import FourLayer


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 20),
    k=st.integers(1, 6),
    s=st.integers(1, 4),
    left=st.integers(0, 3),
    right=st.integers(0, 3),
)
def test_output_size_is_that_of_a_real_convolution(n: int, k: int, s: int, left: int, right: int) -> None:
    size = output_size(n, k, s, left, right)
    padded = torch.zeros(1, 1, n + left + right)
    if size >= 1:
        assert nn.Conv1d(1, 1, k, s)(padded).shape[-1] == size
    else:
        with pytest.raises(RuntimeError):
            nn.Conv1d(1, 1, k, s)(padded)


sizes = st.integers(1, 4)


@settings(max_examples=40, deadline=None)
@given(
    kernels=st.lists(sizes, min_size=6, max_size=6),
    strides=st.lists(st.integers(1, 2), min_size=6, max_size=6),
    paddings=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    pools=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    pooling=st.sampled_from(["flatten", "gem", "average", "max"]),
    batch_norm=st.booleans(),
)
def test_shapes_parameters_and_flops_known_before_are_those_of_the_built_network(
    kernels: list[int], strides: list[int], paddings: list[int], pools: list[int], pooling: str, batch_norm: bool
) -> None:
    layers = convolutions((2, 3, 4), kernels, strides, paddings, pools)
    try:
        shapes = layer_shapes(layers, 12, pooling, 5, batch_norm)
    except ValueError:
        with pytest.raises(ValueError, match="leaves no map"):
            FourLayer((2, 3, 4), kernels, strides, paddings, pools, 12, 5, "max", batch_norm, pooling)
        return
    network = FourLayer((2, 3, 4), kernels, strides, paddings, pools, 12, 5, "max", batch_norm, pooling).eval()
    images = torch.rand(2, 3, 12, 12)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(images[:1])
    assert sum(shape.flops for shape in shapes) == counter.get_total_flops()
    last = [shape for shape in shapes if shape.name.startswith(("convolution", "pool "))][-1]
    assert network.maps(images).shape == (2, last.channels, last.height, last.width)
    assert network(images).shape == (2, 5)
    assert sum(shape.parameters for shape in shapes) == sum(p.numel() for p in network.parameters())


def test_costs_of_a_network_counted_by_hand() -> None:
    paddings = (0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)  # one column of zeros at the left of the third convolution's map
    layers = convolutions((2, 3, 4), (3, 1, 1, 1, 1, 2), (1, 2, 1, 1, 1, 1), paddings, (1, 2, 1))
    shapes = layer_shapes(layers, 6, "gem", 5)
    assert [tuple(dataclasses.asdict(shape).values()) for shape in shapes] == [
        ("convolution 1", 2, 4, 3, 2 * 3 * 3 + 4, 2 * 3 * 3 * 12),
        ("convolution 2", 3, 4, 3, 3 * 2 + 6, 3 * 2 * 12),
        ("pool 2", 3, 2, 1, 0, 0),
        ("convolution 3", 4, 2, 1, 4 * 3 * 2 + 8, 4 * 3 * 2 * 2),
        ("gem pooling", 4, 1, 1, 1, 0),
        ("fully connected", 5, 1, 1, 4 * 5 + 5, 4 * 5),
    ]
    assert shapes[0].flops == 2 * 2 * 3 * 3 * 12


def test_the_softmax_layer_is_that_of_the_training() -> None:
    layer = CosineLayer(torch.rand(7, 5))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        layer.logits(torch.rand(1, 5))
    shape = softmax_shape(5, 7)
    assert (shape.channels, shape.height, shape.width) == (7, 1, 1)
    assert shape.parameters == sum(parameter.numel() for parameter in layer.parameters())
    assert shape.flops == counter.get_total_flops()
