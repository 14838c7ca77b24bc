"""The small embedding network: three convolutions and one fully connected layer."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from retrieval.pooling import build_pooling

CONVOLUTIONS = 3
MAP_POOLS: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


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
        multiplications: multiply-adds for one image.
    """

    name: str
    channels: int
    height: int
    width: int
    parameters: int = 0
    multiplications: int = 0


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


class FourLayer(nn.Module):
    """The paper's network: three convolutions, each with batch norm, ReLU and a pooling, and a linear layer."""

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256),
        kernels: Sequence[int] = (3, 3, 3),
        strides: Sequence[int] = (1, 1, 1),
        paddings: Sequence[int] = (1, 1, 1),
        pools: Sequence[int] = (2, 2, 2),
        image_size: int = 32,
        dimension: int = 256,
        pool_kind: str = "max",
        batch_norm: bool = True,
        pooling: str = "flatten",
    ) -> None:
        """Check the sizes, then build.

        Args:
            channels: see `convolutions`, as for the four that follow it.
            kernels: sizes of the windows.
            strides: steps of the windows.
            paddings: zeros around the map.
            pools: windows of the poolings.
            image_size: height and width of the images.
            dimension: d, the length of the embedding.
            pool_kind: "max" or "average", of the pooling after each convolution.
            batch_norm: whether each convolution is followed by batch norm.
            pooling: how the last map becomes a vector: "flatten", "gem", "average" or "max".

        Raises:
            ValueError: a map would vanish, or an option has no such value.
        """
        super().__init__()
        if pool_kind not in MAP_POOLS:
            raise ValueError(f"Unknown pool_kind '{pool_kind}'; choose one of: {', '.join(MAP_POOLS)}.")
        layers = convolutions(channels, kernels, strides, paddings, pools)
        self.shapes = layer_shapes(layers, image_size, pooling, dimension, batch_norm)
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        entering = 3
        for number, layer in enumerate(layers, start=1):
            modules[f"layer{number}"] = _block(entering, layer, MAP_POOLS[pool_kind], batch_norm)
            entering = layer.channels
        self.maps = nn.Sequential(modules)
        self.pooling = build_pooling(pooling)
        last = self.shapes[-2]
        self.embedding = nn.Linear(last.channels * last.height * last.width, dimension)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, image_size, image_size), colours normalised -> (b, dimension)."""
        return self.embedding(self.pooling(self.maps(images)))


def _block(
    entering: int, layer: Convolution, pool_kind: type[nn.MaxPool2d] | type[nn.AvgPool2d], batch_norm: bool
) -> nn.Sequential:
    left, right, top, bottom = layer.padding
    symmetric = left == right and top == bottom
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if not symmetric:
        parts["padding"] = nn.ZeroPad2d(layer.padding)
    parts["convolution"] = nn.Conv2d(
        entering,
        layer.channels,
        layer.kernel,
        layer.stride,
        padding=(top, left) if symmetric else 0,
        bias=not batch_norm,
    )
    nn.init.kaiming_normal_(parts["convolution"].weight, nonlinearity="relu")  # type: ignore[arg-type]
    if batch_norm:
        parts["norm"] = nn.BatchNorm2d(layer.channels)
    parts["activation"] = nn.ReLU(inplace=True)
    if layer.pool > 1:
        parts["pool"] = pool_kind(layer.pool)
    return nn.Sequential(parts)


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
