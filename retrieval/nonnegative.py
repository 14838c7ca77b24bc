"""How signed features become the nonnegative matrix that co-clustering needs."""

from collections.abc import Callable

import numpy as np


def root(features: np.ndarray) -> np.ndarray:
    """Square roots: features that are nonnegative already, their bursts tamed.

    Raises:
        ValueError: a feature is negative.
    """
    if features.min(initial=0) < 0:
        raise ValueError("Features hold negative values, which have no root; choose nonnegative=split.")
    return np.sqrt(features)


def split(features: np.ndarray) -> np.ndarray:
    """Two columns a dimension, what is positive and what is negative: nothing is lost. (b, d) -> (b, 2 d)."""
    return np.concatenate([np.maximum(features, 0), np.maximum(-features, 0)], axis=1)


def relu(features: np.ndarray) -> np.ndarray:
    """What is negative becomes 0: a dimension counts only where it fires."""
    return np.maximum(features, 0)


def softplus(features: np.ndarray) -> np.ndarray:
    """log(1 + e^x): like relu, but smooth and never 0."""
    return np.logaddexp(features, 0, dtype=features.dtype)


NONNEGATIVE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "root": root,
    "split": split,
    "relu": relu,
    "softplus": softplus,
}
