import pytest

from retrieval.networks import FourLayer

SMALL = {"channels": (4, 5, 6), "image_size": 16, "dimension": 7}


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
