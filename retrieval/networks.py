"""The small embedding network: three convolutions and one fully connected layer."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from retrieval.layer_shapes import Convolution, convolutions, layer_shapes
from retrieval.pooling import build_pooling

MAP_POOLS: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class FourLayer(nn.Module):
    """The default network: three convolutions, each with a pooling, batch norm and ReLU, and a linear layer.

    Pooled first, norm and ReLU have a quarter of the map to go over, which training on a CPU is much faster for.
    """

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
    if layer.pool > 1:
        parts["pool"] = pool_kind(layer.pool)
    if batch_norm:
        parts["norm"] = nn.BatchNorm2d(layer.channels)
    parts["activation"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)
