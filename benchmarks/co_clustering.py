"""Spectral co-clustering: ours against scikit-learn's SpectralCoclustering, on the same array in one run.

    python -m benchmarks.co_clustering --images 20000 --dimensions 512 --clusters 100
    python -m benchmarks.co_clustering --features features.npy --labels labels.npy --clusters 100

Each runs in a process of its own. CPU seconds are of all threads; memory is the most that was held beyond the data.
Inertia is that of spherical k-means in our places, for both: the spread that rows and columns keep around their
cluster's direction.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.cluster import SpectralCoclustering
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from retrieval.co_clustering import MOST_VECTORS, co_cluster
from retrieval.k_means import normalised
from retrieval.nonnegative import root
from retrieval.spectrum import spectrum, sums

OURS, PEER = "rankone", "scikit-learn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--features", type=Path, help="(n, d) nonnegative float32 .npy instead of made-up ones")
    parser.add_argument("--labels", type=Path, help="(n,) int .npy, with --features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=(OURS, PEER), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        alone(options.only, options.features, options.clusters, options.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        if not options.features:
            made, made_labels = made_up(options.images, options.dimensions, options.clusters)
            options.features, options.labels = Path(folder) / "features.npy", Path(folder) / "labels.npy"
            np.save(options.features, made)
            np.save(options.labels, made_labels)
        prepared = Path(folder) / "prepared.npy"
        matrix = root(normalised(np.load(options.features)))
        matrix = matrix[:, matrix.any(axis=0)]  # scikit-learn divides by the sums of columns
        np.save(prepared, np.square(matrix))
        found = {name: in_its_own_process(name, prepared, options) for name in (OURS, PEER)}
        show(matrix, np.load(options.labels) if options.labels else None, found, options.clusters)


def made_up(images: int, dimensions: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Sparse, skewed, nonnegative features around a centre a class, like those of a network after relu."""
    random = np.random.default_rng(0)
    labels = random.integers(clusters, size=images)
    centres = random.standard_normal((clusters, dimensions), np.float32)
    noise = random.standard_normal((images, dimensions), np.float32)
    return np.maximum(centres[labels] * 0.5 + noise, 0), labels


def in_its_own_process(name: str, features: Path, options: argparse.Namespace) -> dict:
    """Run one of the two and return what it measured."""
    command = [sys.executable, __file__, f"--only={name}", f"--features={features}", f"--clusters={options.clusters}"]
    command.append(f"--seed={options.seed}")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(name: str, path: Path, clusters: int, seed: int) -> None:
    """Cluster the array and print seconds, memory and labels as JSON. Both take the same matrix, in memory."""
    features = np.load(path)
    Path("/proc/self/clear_refs").write_text("5")  # forget the most that loading took
    before, started, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    if name == OURS:
        fitted = co_cluster(features, np.arange(len(features)), clusters, 0, seed, nonnegative="root")
        rows, columns = fitted.row_clusters, fitted.column_clusters
    else:
        peer = SpectralCoclustering(clusters, random_state=seed).fit(root(normalised(features)))
        rows, columns = peer.row_labels_, peer.column_labels_
    numbers = {
        "wall": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "mebibytes": memory("VmHWM") - before,
    }
    print(json.dumps(numbers | {"rows": rows.tolist(), "columns": columns.tolist()}))


def memory(kind: str) -> float:
    """What this process holds (VmRSS) or has held at most (VmHWM), in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def show(matrix: np.ndarray, labels: np.ndarray | None, found: dict[str, dict], clusters: int) -> None:
    lines = {name: (found[OURS][name], found[PEER][name]) for name in ("wall", "cpu", "mebibytes")}
    fitted = spectrum(sums([matrix]), min(MOST_VECTORS, clusters - 1))
    places = normalised(np.concatenate([fitted.row_places(matrix), fitted.column_places]))
    rows = {name: np.array(found[name]["rows"]) for name in found}
    both = {name: np.concatenate([rows[name], found[name]["columns"]]) for name in found}
    lines["inertia"] = (inertia(places, both[OURS]), inertia(places, both[PEER]))
    if labels is not None:
        lines["purity"] = (purity(rows[OURS], labels), purity(rows[PEER], labels))
        lines["NMI"] = tuple(normalized_mutual_info_score(labels, rows[name]) for name in (OURS, PEER))
    print(f"{matrix.shape[0]:,} x {matrix.shape[1]:,}, {clusters} clusters, data {matrix.nbytes / 2**20:,.0f} MiB")
    print(f"  {'':12}{OURS:>14}{PEER:>14}{'ratio':>9}")
    for name, (ours, theirs) in lines.items():
        print(f"  {name:12}{ours:14.4g}{theirs:14.4g}{theirs / max(ours, 1e-12):9.2f}")
    print(f"  leading singular value {fitted.leading_singular_value:.9f}")
    print(f"  subspace against float64: {degrees_off(fitted.column_coordinates, matrix):.2g} degrees")
    print(f"  agreement of the labels (ARI) {adjusted_rand_score(rows[OURS], rows[PEER]):.3f}")


def inertia(places: np.ndarray, labels: np.ndarray) -> float:
    lengths = [np.linalg.norm(places[labels == label].sum(axis=0, dtype=np.float64)) for label in np.unique(labels)]
    return 2 * len(places) - 2 * float(sum(lengths))


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    counts = np.zeros((clusters.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (clusters, labels), 1)
    return float(counts.max(axis=1).sum() / len(labels))


def degrees_off(columns: np.ndarray, matrix: np.ndarray) -> float:
    """Largest principal angle between our right singular vectors and those of a float64 product of A_n with itself."""
    exact = matrix.astype(np.float64)
    totals = np.sqrt(exact.sum(axis=0))
    scaled = exact / np.sqrt(np.maximum(exact.sum(axis=1), 1e-300))[:, None] / totals
    vectors = np.linalg.eigh(scaled.T @ scaled)[1][:, ::-1][:, 1 : columns.shape[1] + 1]
    ours = np.linalg.qr(columns.astype(np.float64) * totals[:, None])[0]
    apart = float(np.linalg.norm(ours - vectors @ (vectors.T @ ours), 2))
    return float(np.degrees(np.arcsin(min(apart, 1.0))))


if __name__ == "__main__":
    main()
