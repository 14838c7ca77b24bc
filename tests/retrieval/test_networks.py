import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retrieval.networks import FourLayer, convolutions, layer_shapes, output_size

SMALL = {"channels": (4, 5, 6), "image_size": 16, "dimension": 7}


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
def test_shapes_and_parameters_known_before_are_those_of_the_built_network(
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
    last = [shape for shape in shapes if shape.name.startswith(("convolution", "pool "))][-1]
    assert network.maps(images).shape == (2, last.channels, last.height, last.width)
    assert network(images).shape == (2, 5)
    assert sum(shape.parameters for shape in shapes) == sum(p.numel() for p in network.parameters())


def test_the_default_network_is_the_measured_one() -> None:
    network = FourLayer()
    assert [(shape.name, shape.height) for shape in network.shapes] == [
        ("convolution 1", 32),
        ("pool 1", 16),
        ("convolution 2", 16),
        ("pool 2", 8),
        ("convolution 3", 8),
        ("pool 3", 4),
        ("fully connected", 1),
    ]
    assert sum(p.numel() for p in network.parameters()) == 1_420_096


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({"kernels": (17, 3, 3), "paddings": (0, 1, 1)}, "convolution 1"),
        ({"kernels": (3, 11, 3), "paddings": (1, 1, 1)}, "convolution 2"),
        ({"strides": (4, 4, 1), "pools": (1, 2, 1)}, "pool 2"),
        ({"kernels": (3, 3, 3, 3, 1, 7)}, "convolution 3"),
    ],
)
def test_a_vanishing_map_is_refused_with_the_layers_name(options: dict[str, tuple[int, ...]], layer: str) -> None:
    with pytest.raises(ValueError, match=rf"{layer} leaves no map.*images of 16 px"):
        FourLayer(**(SMALL | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (4, 5)}, "channels has 2 numbers; 3 convolutions need 3"),
        ({"kernels": (3, 3, 3, 3)}, "kernels has 4 numbers; 3 convolutions need 3 or 6"),
        ({"strides": (1, 0, 1)}, "strides is.*at least 1"),
        ({"paddings": (1, -1, 1)}, "paddings is.*at least 0"),
        ({"pool_kind": "median"}, "'median'.*max, average"),
        ({"pooling": "gemm"}, "'gemm'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FourLayer(**(SMALL | options))
