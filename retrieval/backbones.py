"""Image classifiers of torchvision as sources of features: their trunks, their maps, their least image size."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from retrieval.pooling import build_pooling

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224


def feature_trunk(name: str) -> nn.Sequential:
    """The `features` of a classifier that keeps its convolutions under that name."""
    trunk = _classifier(name).features
    assert isinstance(trunk, nn.Sequential)
    return trunk


def residual_trunk(name: str) -> nn.Sequential:
    """All of a residual network before its average pooling."""
    return nn.Sequential(OrderedDict(list(_classifier(name).named_children())[:-2]))


# To add one: its name at torchvision, and how its trunk is taken out. The trunk must be made of convolutions, norms and
# linear layers only (`initialise` refuses anything else), and its state must carry torchvision's names.
BACKBONES: dict[str, Callable[[str], nn.Sequential]] = {
    "resnet18": residual_trunk,
    "resnet34": residual_trunk,
    "resnet50": residual_trunk,
    "resnet101": residual_trunk,
    "alexnet": feature_trunk,
    "vgg11": feature_trunk,
    "vgg16": feature_trunk,
    "vgg16_bn": feature_trunk,
    "mobilenet_v2": feature_trunk,
    "mobilenet_v3_small": feature_trunk,
    "mobilenet_v3_large": feature_trunk,
    "squeezenet1_0": feature_trunk,
    "squeezenet1_1": feature_trunk,
    "efficientnet_b0": feature_trunk,
}


class Backbone(nn.Module):
    """The trunk of a classifier, its maps pooled to one vector: (b, 3, h, w), colours normalised -> (b, features).

    Attributes:
        trunk: the convolutions, with torchvision's names.
        frozen: whether the trunk stays as it is while the rest trains.
        widths: features that each depth gives, in the order of `depths`; the vector is these laid end to end.
    """

    def __init__(self, name: str, image_size: int, depths: Sequence[int] = (1,), pooling: str = "gem") -> None:
        """Build it with random weights, from torch's own generator.

        Args:
            name: one of BACKBONES.
            image_size: height and width of the images that come in; poolings but "flatten" take others too.
            depths: which maps to take, counted from the end: 1 is the last, 2 the last before the resolution halves...
            pooling: one of POOLINGS.

        Raises:
            ValueError: an unknown name, a depth that is not there, or images so small that the map vanishes.
        """
        super().__init__()
        self.taken = taken_layers(name, depths)
        _refuse_small(name, self.taken, image_size)
        layers = list(build_trunk(name).named_children())[: max(self.taken) + 1]
        self.trunk = nn.Sequential(OrderedDict(layers))  # a slice of a Sequential would lose torchvision's names
        self.poolings = nn.ModuleList(build_pooling(pooling) for _ in depths)
        shapes = _map_shapes(name, image_size)
        flat = pooling == "flatten"
        self.frozen = False
        self.widths = tuple(
            shape[0] * shape[1] * shape[2] if flat else shape[0] for shape in (shapes[layer] for layer in self.taken)
        )

    def freeze(self, frozen: bool = True) -> None:
        """Keep the trunk as it is: no gradients, its norms in evaluation mode whatever mode is set; or let it train.

        To be called before an optimiser is built. The poolings, which belong to no classifier, go on training.
        """
        self.frozen = frozen
        self.trunk.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, of all but a frozen trunk."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, sum of widths)."""
        maps = images
        pooled: dict[int, Tensor] = {}
        for number, layer in enumerate(self.trunk):
            maps = layer(maps)
            if number in self.taken:
                pooled[number] = self.poolings[self.taken.index(number)](maps)
        return torch.cat([pooled[number] for number in self.taken], 1)


def build_trunk(name: str) -> nn.Sequential:
    """A trunk with random weights, from torch's own generator; the classifier's last layers are never built."""
    trunk = copy.deepcopy(empty_trunk(name)).to_empty(device="cpu")
    initialise(trunk)
    return trunk


def initialise(network: nn.Module) -> None:
    """Draw all weights: He's normal distribution for convolutions (fan out), one and zero for norms.

    Raises:
        ValueError: a module with weights of its own that this does not know.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            raise ValueError(f"{name} is a {type(module).__name__}, whose weights `initialise` cannot draw.")


def taken_layers(name: str, depths: Sequence[int]) -> tuple[int, ...]:
    """The layers of a trunk after which the maps of the given depths lie.

    Raises:
        ValueError: a depth that is not there, or given twice; says how many there are.
    """
    ends = _stage_ends(name)
    wrong = [depth for depth in depths if not 1 <= depth <= len(ends)]
    if wrong or not depths or len(set(depths)) != len(depths):
        raise ValueError(
            f"depths is {list(depths)}; {name} has {len(ends)} maps: name some of 1 (the last) to "
            f"{len(ends)}, each once."
        )
    return tuple(ends[-depth] for depth in depths)


def least_image_size(name: str, depths: Sequence[int] = (1,)) -> int:
    """The smallest square images, in pixels, of which the trunk leaves a map."""
    taken = taken_layers(name, depths)
    return next(size for size in range(1, IMAGENET_SIZE + 1) if _vanishing_layer(name, taken, size) is None)


def enlarged_size(name: str, image_size: int) -> int:
    """Height and width to which images must be brought for the last map to be there; 0 when they are large enough."""
    least = least_image_size(name)
    return least if least > image_size else 0


@functools.cache
def _stage_ends(name: str) -> tuple[int, ...]:
    """The last layer of each run of layers that keep the resolution, at the size the classifier was made for."""
    sizes = [shape[1] for shape in _map_shapes(name, IMAGENET_SIZE)]
    return tuple(i for i, size in enumerate(sizes) if i + 1 == len(sizes) or sizes[i + 1] != size)


@functools.cache
def _map_shapes(name: str, image_size: int) -> list[tuple[int, int, int]]:
    """(c, h, w) after each layer of the trunk; as many layers as leave a map."""
    shapes = []
    maps = torch.empty(1, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        for layer in empty_trunk(name).eval():
            try:
                maps = layer(maps)
            except RuntimeError:  # torch refuses a window larger than the map
                break
            shapes.append((maps.shape[1], maps.shape[2], maps.shape[3]))
    return shapes


def _vanishing_layer(name: str, taken: tuple[int, ...], image_size: int) -> int | None:
    passed = len(_map_shapes(name, image_size))
    return passed if passed <= max(taken) else None


def _refuse_small(name: str, taken: tuple[int, ...], image_size: int) -> None:
    vanishing = _vanishing_layer(name, taken, image_size)
    if vanishing is not None:
        layer = list(empty_trunk(name).named_children())[vanishing]
        least = next(
            size for size in range(image_size, IMAGENET_SIZE + 1) if _vanishing_layer(name, taken, size) is None
        )
        raise ValueError(
            f"Images of {image_size} px vanish in {name}, at its layer {vanishing} ('{layer[0]}', "
            f"{type(layer[1]).__name__}); it needs {least} px or more. Give a larger backbone_image_size."
        )


@functools.cache
def empty_trunk(name: str) -> nn.Sequential:
    """The trunk without memory for its weights: for shapes, and to be filled."""
    if name not in BACKBONES:
        raise ValueError(f"Unknown backbone '{name}'; choose one of: {', '.join(BACKBONES)}.")
    with torch.device("meta"):
        return BACKBONES[name](name)


def _classifier(name: str) -> nn.Module:
    import torchvision  # takes a second: only who builds a backbone waits for it

    return torchvision.models.get_model(name, weights=None)
