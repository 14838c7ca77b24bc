"""Where images belong among co-clusters: what places further images as those that were fitted, kept beside them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from retrieval.k_means import KMeans, normalised
from retrieval.nonnegative import NONNEGATIVE
from retrieval.spectrum import Spectrum

CLUSTER_MAP = "cluster_map.safetensors"  # a file of the clusters artifact


@dataclass(frozen=True)
class ClusterMap:
    """The map from the features of an image to its co-cluster.

    Attributes:
        nonnegative: how features become a nonnegative matrix, a name of NONNEGATIVE.
        spectrum: where rows and columns lie.
        k_means: the groups, in the coordinates of the spectrum.
    """

    nonnegative: str
    spectrum: Spectrum
    k_means: KMeans

    def matrix(self, features: np.ndarray) -> np.ndarray:
        """The rows of A that features (b, d) are: (b, columns) float32, nonnegative."""
        return NONNEGATIVE[self.nonnegative](normalised(features))

    def assign(self, features: np.ndarray) -> np.ndarray:
        """The cluster of each image, fitted or new: (b, d) -> (b,) int64; -1 for a row of zeros."""
        return self.k_means.assign(self.spectrum.row_places(self.matrix(features)))

    def save(self, path: Path) -> None:
        """Write the map as safetensors."""
        tensors = {
            "singular_values": self.spectrum.singular_values,
            "row_map": self.spectrum.row_map,
            "column_coordinates": self.spectrum.column_coordinates,
            "centres": self.k_means.centres,
            "numbers": np.array([self.spectrum.leading_singular_value, self.spectrum.ends, self.k_means.inertia]),
        }
        contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        save_file(contiguous, path, {"nonnegative": self.nonnegative})

    @classmethod
    def load(cls, path: Path) -> "ClusterMap":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is none, or of features that became nonnegative in a way unknown here.
        """
        try:
            with safe_open(path, "numpy") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
                nonnegative = (stored.metadata() or {}).get("nonnegative", "")
            leading, ends, inertia = tensors["numbers"].tolist()
            spectrum = Spectrum(
                tensors["singular_values"], tensors["row_map"], tensors["column_coordinates"], leading, bool(ends)
            )
            k_means = KMeans(tensors["centres"], inertia)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no map of co-clusters ({error}); name one that co_cluster wrote.") from None
        if nonnegative not in NONNEGATIVE:
            raise ValueError(f"{path} makes features nonnegative by '{nonnegative}'; known: {', '.join(NONNEGATIVE)}.")
        return cls(nonnegative, spectrum, k_means)
