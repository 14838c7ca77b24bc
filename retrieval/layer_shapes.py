"""What every layer of the four-layer network gives out and costs: arithmetic alone, before anything is built.

Standard library only, so that the command line can refuse a network without loading torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FOUR_LAYER = "four_layer"
AUTO_POOLING = "flatten"  # of its last map, when "auto" is asked for
CONVOLUTIONS = 3


def output_size(n: int, k: int, s: int, p_left: int, p_right: int) -> int:
    """Length of what a window of k leaves of n, moved by s with padding on both sides; below 1 nothing is left."""
    return (n + p_left + p_right - k) // s + 1


@dataclass(frozen=True)
class LayerShape:
    """What one layer gives out, known before anything is built.

    Attributes:
        name: of the layer, e.g. "convolution 2".
        channels: of its output.
        height: of its output; 1 for a vector.
        width: of its output; 1 for a vector.
        parameters: weights and biases that are learned.
        multiply_adds: of its weights, for one image; biases, norms, activations and poolings are not counted.
    """

    name: str
    channels: int
    height: int
    width: int
    parameters: int = 0
    multiply_adds: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations for one image: a multiply-add is two."""
        return 2 * self.multiply_adds


@dataclass(frozen=True)
class Convolution:
    """One convolution of the network, and the pooling after it.

    Attributes:
        channels: of its output.
        kernel: height and width.
        stride: down and right.
        padding: left, right, top and bottom, the order of torch's pad.
        pool: window of the pooling after it, which also is that pooling's stride; 1 for none.
    """

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    pool: int


def convolutions(
    channels: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    paddings: Sequence[int],
    pools: Sequence[int],
) -> list[Convolution]:
    """The three convolutions from flat lists of numbers.

    Args:
        channels: one number a layer.
        kernels: one number a layer, or two: height and width.
        strides: one number a layer, or two: down and right.
        paddings: one number a layer (all sides), two (top and bottom, left and right) or four (left, right, top,
            bottom).
        pools: one number a layer; 1 for no pooling.

    Raises:
        ValueError: a list of the wrong length, a padding below 0 or another number below 1.
    """
    from_one = [("channels", channels), ("kernels", kernels), ("strides", strides), ("pools", pools)]
    for name, values, least in [*((*entry, 1) for entry in from_one), ("paddings", paddings, 0)]:
        if any(value < least for value in values):
            raise ValueError(f"{name} is {list(values)}; every number must be at least {least}.")
    grouped = zip(
        _by_layer("channels", channels, (1,)),
        _by_layer("kernels", kernels, (1, 2)),
        _by_layer("strides", strides, (1, 2)),
        _by_layer("paddings", paddings, (1, 2, 4)),
        _by_layer("pools", pools, (1,)),
        strict=True,
    )
    return [
        Convolution(channel[0], _pair(kernel), _pair(stride), _sides(padding), pool[0])
        for channel, kernel, stride, padding, pool in grouped
    ]


def layer_shapes(
    layers: Sequence[Convolution], image_size: int, pooling: str, dimension: int, batch_norm: bool = True
) -> list[LayerShape]:
    """Output of every layer for square images of `image_size` pixels, from arithmetic alone.

    Raises:
        ValueError: a layer would leave no map; names it, with what comes in.
    """
    shapes: list[LayerShape] = []
    channels, height, width = 3, image_size, image_size
    for number, layer in enumerate(layers, start=1):
        (down, right), (left, right_side, top, bottom) = layer.stride, layer.padding
        weights = layer.channels * channels * math.prod(layer.kernel)
        before = height, width
        height = output_size(height, layer.kernel[0], down, top, bottom)
        width = output_size(width, layer.kernel[1], right, left, right_side)
        name = f"convolution {number}"
        _refuse_vanishing(name, before, (height, width), layer.kernel, layer.stride, image_size)
        channels = layer.channels
        learned = weights + (2 if batch_norm else 1) * channels
        shapes.append(LayerShape(name, channels, height, width, learned, weights * height * width))
        if layer.pool > 1:
            before, window = (height, width), (layer.pool, layer.pool)
            height, width = (output_size(n, layer.pool, layer.pool, 0, 0) for n in before)
            _refuse_vanishing(f"pool {number}", before, (height, width), window, window, image_size)
            shapes.append(LayerShape(f"pool {number}", channels, height, width))
    if pooling != "flatten":
        shapes.append(LayerShape(f"{pooling} pooling", channels, 1, 1, 1 if pooling == "gem" else 0))
    entering = channels * shapes[-1].height * shapes[-1].width
    shapes.append(LayerShape("fully connected", dimension, 1, 1, (entering + 1) * dimension, entering * dimension))
    return shapes


def softmax_shape(dimension: int, classes: int) -> LayerShape:
    """The softmax layer on top of an embedding: one weight vector a class, compared by cosine, without bias."""
    return LayerShape("softmax", classes, 1, 1, classes * dimension, classes * dimension)


def _by_layer(name: str, values: Sequence[int], each: tuple[int, ...]) -> list[tuple[int, ...]]:
    for count in each:
        if len(values) == CONVOLUTIONS * count:
            return [tuple(values[start : start + count]) for start in range(0, len(values), count)]
    lengths = " or ".join(str(CONVOLUTIONS * count) for count in each)
    raise ValueError(f"{name} has {len(values)} numbers; {CONVOLUTIONS} convolutions need {lengths}.")


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[-1]


def _sides(values: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(values) == 4:
        return values[0], values[1], values[2], values[3]
    vertical, horizontal = _pair(values)
    return horizontal, horizontal, vertical, vertical


def _refuse_vanishing(
    layer: str,
    before: tuple[int, int],
    after: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    image_size: int,
) -> None:
    if min(after) < 1:
        raise ValueError(
            f"{layer} leaves no map: a {window[0]}x{window[1]} window with stride {stride[0]}x{stride[1]} on "
            f"{before[0]}x{before[1]} gives {after[0]}x{after[1]} (images of {image_size} px). "
            "Use larger images, smaller windows, smaller strides or more padding."
        )
