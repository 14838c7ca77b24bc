"""Whether a projection keeps what its original says of which images are alike: the second test of feature learning."""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import normalize

from retrieval.evaluation import FeatureLearning, Kept
from retrieval.neighbours import nearest

NEIGHBOURS = 10
PAIRS = 200_000  # of images: the rank correlation's standard error is about 0.002
AT_ONCE = 8_192  # rows or pairs held at a time


def feature_learning(features: Tensor, embeddings: Tensor, training: np.ndarray, seed: int = 0) -> FeatureLearning:
    """Compare embeddings with the features of the same images, with the null and the ceiling.

    Args:
        features: (m, D) of images that were not trained on.
        embeddings: (m, d) of the same images in the same order.
        training: (n, D) features of the training images, from which the ceiling is fitted; may be memory-mapped.
        seed: of the pairs and of the null's order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator).to(features.device)
    dimension = embeddings.shape[1]
    axes = leading_directions(training, dimension).to(features.device)
    original = Similarity(features, seed)
    return FeatureLearning(
        images=len(features),
        feature_dimension=features.shape[1],
        dimension=dimension,
        projection=original.kept_by(embeddings),
        null=original.kept_by(features[order]),
        ceiling=original.kept_by(normalize(features, dim=1) @ axes),
    )


class Similarity:
    """Which of a set of images are alike, as one set of vectors says: searched once, compared with many."""

    def __init__(self, vectors: Tensor, seed: int = 0) -> None:
        """Take the vectors (m, D), any scale.

        Raises:
            ValueError: fewer than three images.
        """
        if len(vectors) < 3:
            raise ValueError(f"{len(vectors)} images; a similarity needs at least 3 to be compared.")
        self._vectors, self._seed = vectors, seed
        self._neighbours, self._ranks = _neighbours(vectors), rankdata(self._cosines(vectors))

    def kept_by(self, vectors: Tensor) -> Kept:
        """How much of it other vectors (m, d) of the same images keep.

        Raises:
            ValueError: their number differs.
        """
        if len(vectors) != len(self._vectors):
            raise ValueError(f"{len(vectors):,} vectors for {len(self._vectors):,} images; give one an image.")
        return Kept(
            linear_cka(self._vectors, vectors),
            _overlap(self._neighbours, _neighbours(vectors)),
            _correlation(self._ranks, rankdata(self._cosines(vectors))),
        )

    def _cosines(self, vectors: Tensor) -> np.ndarray:
        """Of the same random pairs of different images every time: (PAIRS,) float64."""
        generator = np.random.default_rng(self._seed)
        first = generator.integers(len(vectors), size=PAIRS)
        second = (first + generator.integers(1, len(vectors), size=PAIRS)) % len(vectors)
        unit, parts = normalize(vectors.double(), dim=1), []
        for start in range(0, PAIRS, AT_ONCE):
            left, right = (torch.from_numpy(pair[start : start + AT_ONCE]).to(unit.device) for pair in (first, second))
            parts.append((unit[left] * unit[right]).sum(1))
        return torch.cat(parts).cpu().numpy()


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Centred kernel alignment of two sets of vectors (m, D), (m, d) of the same images, rows brought to length 1.

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of centred columns: the m x m products are never made (Kornblith et al.,
    ICML 2019). It is 0 when one of the two is the same vector everywhere.
    """
    x, y = (normalize(vectors.double(), dim=1) for vectors in (first, second))
    x, y = x - x.mean(0), y - y.mean(0)
    size = float((x.T @ x).norm() * (y.T @ y).norm())
    return float((y.T @ x).norm() ** 2) / size if size > 1e-12 else 0.0


def leading_directions(vectors: np.ndarray, dimension: int) -> Tensor:
    """The principal directions of vectors of length 1, their mean left in: (n, D) -> (D, min(dimension, D)) float32.

    Of all linear maps to so few dimensions the one onto these keeps the products of the vectors best (Eckart and Young,
    1936).
    """
    size = vectors.shape[1]
    products = torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(vectors), AT_ONCE):
        block = torch.from_numpy(np.array(vectors[start : start + AT_ONCE], np.float32))
        unit = normalize(block, dim=1)
        products += (unit.T @ unit).double()
    _, directions = torch.linalg.eigh(products)  # rising
    return directions.flip(1)[:, :dimension].float()


def _neighbours(vectors: Tensor) -> Tensor:
    """The 10 nearest other images of each, or all there are: (m, k) int64."""
    itself = torch.arange(len(vectors), device=vectors.device)
    return nearest(vectors, vectors, min(NEIGHBOURS, len(vectors) - 1), exclude=itself)[1]


def _overlap(first: Tensor, second: Tensor) -> float:
    shared = (first.unsqueeze(2) == second.to(first.device).unsqueeze(1)).any(2)
    return float(shared.double().mean())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    x, y = first - first.mean(), second - second.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0
