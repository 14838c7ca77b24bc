"""Two pictures of the same images, side by side: laid out by the features, and by the embeddings made of them."""

from dataclasses import dataclass

import numpy as np
from sklearn.manifold import TSNE

IMAGES = 1_500  # in a map: about 5 s of one core each
ITERATIONS = 500
PERPLEXITY = 30
LEAST_IMAGES = 12
LEAST_SPREAD = 1e-6  # of unit vectors along some axis: t-SNE does not survive less
HIGHLIGHTED = 10


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Where each image lies in both maps, in [0, 1].

    Attributes:
        features: (n, 2), by the features.
        embeddings: (n, 2), by the embeddings; turned and mirrored to lie like the other as far as that goes.
        labels: (n,) of the images.
        highlighted: labels of the classes to colour, spread over all of them.
    """

    features: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    highlighted: tuple[int, ...]


def feature_map(
    features: np.ndarray, embeddings: np.ndarray, labels: np.ndarray, images: int = IMAGES, seed: int = 0
) -> FeatureMap | None:
    """Lay images out in two dimensions by t-SNE (van der Maaten and Hinton, JMLR 2008) of vectors of length 1.

    Args:
        features: (m, D).
        embeddings: (m, d) of the same images.
        labels: (m,) integer.
        images: at most so many, spread evenly over the rows.
        seed: of t-SNE, which starts from the two leading principal components.

    Returns:
        The map; None for fewer than 12 images, vectors of one number, or vectors that all point one way, of which no
        picture can be made.
    """
    if len(labels) < LEAST_IMAGES or min(features.shape[1], embeddings.shape[1]) < 2:
        return None
    some = np.linspace(0, len(labels) - 1, min(images, len(labels))).astype(int)
    directions = [_directions(vectors[some]) for vectors in (features, embeddings)]
    if min(float(np.ptp(unit, axis=0).max()) for unit in directions) < LEAST_SPREAD:
        return None
    left, right = (_flat(unit, seed) for unit in directions)
    return FeatureMap(_framed(left), _framed(_turned(right, left)), labels[some], spread(labels[some]))


def spread(labels: np.ndarray, most: int = HIGHLIGHTED) -> tuple[int, ...]:
    """At most `most` of the classes, evenly spread from the first to the last."""
    classes = np.unique(labels)
    return tuple(classes[np.linspace(0, len(classes) - 1, min(most, len(classes))).round().astype(int)].tolist())


def _directions(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _flat(unit: np.ndarray, seed: int) -> np.ndarray:
    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    short = seed % 2**32  # scikit-learn takes no longer one
    tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=short)
    return np.asarray(tsne.fit_transform(np.ascontiguousarray(unit, np.float32)), np.float64)


def _turned(places: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Turn, and mirror if need be, so that the places lie nearest to others (orthogonal Procrustes)."""
    own, other = places - places.mean(0), like - like.mean(0)
    left, _, right = np.linalg.svd(own.T @ other)
    return own @ (left @ right)


def _framed(places: np.ndarray) -> np.ndarray:
    """Into the unit square, proportions kept, in its middle."""
    low, high = places.min(0), places.max(0)
    return (places - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5
