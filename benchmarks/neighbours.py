"""Nearest other image of every image: ours against faiss IndexFlatIP, side by side on the same arrays in one run.

    python -m benchmarks.neighbours --images 20000 --dimension 128
    python -m benchmarks.neighbours --images 1000000 --dimension 512 --device cuda

faiss is asked for two hits, and the image itself is removed by its index, as a user would. Seconds are the best of the
runs, wall and CPU (all threads). Neighbours that differ by no more than 1e-6 in similarity are tied by our rule.

On CUDA ours runs alone, since faiss-cpu would take hours for what a GPU is for, and after it the answers of 1,000
queries are compared with those of a float64 product there.
"""

import argparse
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from retrieval.devices import describe, pick_device
from retrieval.neighbours import TIE, nearest

CHECKED, ROWS_AT_ONCE = 1_000, 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100, help="images lie around this many random centres")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    device = pick_device(options.device)
    embeddings = clustered(options.images, options.dimension, options.classes)
    itself = torch.arange(options.images)
    if device.type == "cuda":
        alone(embeddings.to(device), itself.to(device), options.runs, f"{options.images:,} x {options.dimension}")
    else:
        beside_faiss(embeddings, itself, options)


def alone(embeddings: torch.Tensor, itself: torch.Tensor, rounds: int, size: str) -> None:
    """Ours, and a check of some of its answers."""
    runs = [timed(lambda: ours(embeddings, itself)) for _ in range(rounds)]
    seconds = ", ".join(f"{run[0]:.3f}" for run in runs)
    print(f"{size}, {describe(embeddings.device)}: {seconds} s wall, the first with the starts of its kernels")
    rows = torch.randperm(len(itself), generator=torch.Generator().manual_seed(1))[:CHECKED].to(itself.device)
    expected = exhaustive(embeddings, rows)
    found = torch.from_numpy(runs[0][2]).to(rows.device)[rows]
    unit = torch.nn.functional.normalize(embeddings[rows].double())
    lost = [(unit * torch.nn.functional.normalize(embeddings[others].double())).sum(1) for others in (expected, found)]
    print(f"  equal neighbours   {int((found == expected).sum()):,} of {len(rows):,}")
    print(f"  tied within {TIE:g}  {int(((found != expected) & ((lost[0] - lost[1]).abs() <= TIE)).sum()):,}")


def exhaustive(embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The nearest other row of some rows, from products of float64."""
    unit = torch.nn.functional.normalize(embeddings[rows].double())
    best = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    found = torch.zeros_like(rows)
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        scores = unit @ torch.nn.functional.normalize(embeddings[start : start + ROWS_AT_ONCE].double()).T
        own = ((rows >= start) & (rows < start + scores.shape[1])).nonzero()[:, 0]
        scores[own, rows[own] - start] = -torch.inf
        value, place = scores.max(1)
        better = value > best
        best[better], found[better] = value[better], place[better] + start
    return found


def beside_faiss(embeddings: torch.Tensor, itself: torch.Tensor, options: argparse.Namespace) -> None:
    """Both in turns, and where they differ."""
    runs = [
        (*timed(lambda: ours(embeddings, itself)), *timed(lambda: by_faiss(embeddings))) for _ in range(options.runs)
    ]
    print(f"{options.images:,} x {options.dimension}, best of {options.runs}, {torch.get_num_threads()} threads")
    for name, wall, cpu in (("ours", 0, 1), ("faiss IndexFlatIP", 3, 4)):
        print(f"  {name:18} {min(run[wall] for run in runs):8.3f} s wall {min(run[cpu] for run in runs):8.3f} s CPU")
    ratios = [min(run[i + 3] for run in runs) / min(run[i] for run in runs) for i in (0, 1)]
    print(f"  faiss / ours       {ratios[0]:8.2f}   wall {ratios[1]:8.2f}   CPU")
    ours_found, faiss_found = runs[0][2], runs[0][5]
    differing = np.flatnonzero(ours_found != faiss_found)
    exact = [
        [cosine(embeddings, row, int(found[row])) for found in (ours_found, faiss_found)] for row in differing.tolist()
    ]
    print(f"  equal neighbours   {len(ours_found) - len(differing):,} of {len(ours_found):,}")
    print(f"  tied within {TIE:g}  {sum(abs(left - right) <= TIE for left, right in exact):,}")
    for row, (left, right) in list(zip(differing, exact, strict=True))[:5]:
        print(f"    query {row}: float64 similarity of ours {left:.9f}, of faiss's {right:.9f}")


def clustered(images: int, dimension: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, dimension, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    return torch.nn.functional.normalize(centres[labels] + torch.randn(images, dimension, generator=generator))


def ours(embeddings: torch.Tensor, itself: torch.Tensor) -> np.ndarray:
    return nearest(embeddings, embeddings, k=1, exclude=itself)[1][:, 0].cpu().numpy()


def by_faiss(embeddings: torch.Tensor) -> np.ndarray:
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings.numpy())
    hits = index.search(embeddings.numpy(), 2)[1]
    return np.where(hits[:, 0] == np.arange(len(hits)), hits[:, 1], hits[:, 0])


def cosine(embeddings: torch.Tensor, left: int, right: int) -> float:
    return float(torch.nn.functional.cosine_similarity(embeddings[left].double(), embeddings[right].double(), dim=0))


def timed(work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


if __name__ == "__main__":
    main()
