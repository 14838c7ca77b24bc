"""The knobs of co_cluster."""

from dataclasses import dataclass

from components.knobs import LABELS, check_choices, check_seed, is_auto_or_number

NONNEGATIVE = ("auto", "root", "split", "relu", "softplus")


@dataclass(frozen=True)
class Params:
    """How images and feature dimensions are grouped, and how far features are drawn together.

    Attributes:
        co_clusters: how many co-clusters; 0 for as many as the spectrum shows, else four a class, or one for a hundred
            images with labels=none.
        shrinkage: share by which a feature is drawn to the centre of its cluster, from 0 to 1; auto for the one of most
            R@1 on the validation images, against plain k-means and none, together with how strongly blocks of features
            that tell the classes apart are weighted.
        nonnegative: how signed features become a nonnegative matrix: auto, root, split, relu or softplus.
        labels: given, or none: no class is looked at, nor their number; blocks of features keep their weight, and
            shrinkage=auto is 0.1.
        seed: of every random choice.
    """

    co_clusters: int = 0
    shrinkage: str = "auto"
    nonnegative: str = "auto"
    labels: str = "given"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.co_clusters < 0 or self.co_clusters == 1:
            raise ValueError(f"co_clusters is {self.co_clusters}; give 2 or more, or 0 to have it chosen.")
        check_choices(self, nonnegative=NONNEGATIVE, labels=LABELS)
        check_seed(self)
        if not is_auto_or_number(self.shrinkage, 0, 1):
            raise ValueError(f"shrinkage is '{self.shrinkage}'; give auto or a number from 0 to 1, e.g. 0.15.")
