"""Pictures of co-clusters: the matrix with its blocks along the diagonal, and what lies in each cluster."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from retrieval.dataset import Dataset

MOST_ROWS, MOST_COLUMNS = 160, 160  # cells of the picture; larger matrices are averaged
CLUSTERS_RULED = 40  # more lines between clusters would hide what they part
CLUSTERS_SHOWN, IMAGES_SHOWN = 24, 16  # of the sheet
SIDE, MARGIN = 48, 3  # pixels
INK, SOFT = "#1c2430", "#5c6777"


def block_matrix(matrix: np.ndarray, row_clusters: np.ndarray, column_clusters: np.ndarray, path: Path) -> None:
    """Draw a nonnegative matrix with the rows and columns of each cluster side by side, as a PNG.

    A cell shows how much larger it is than rows and columns on their own would make it, so that blocks stand out.

    Args:
        matrix: (n, d) nonnegative.
        row_clusters: (n,) int.
        column_clusters: (d,) int.
        path: where to.
    """
    rows, columns = np.argsort(row_clusters, kind="stable"), np.argsort(column_clusters, kind="stable")
    ordered = matrix[rows][:, columns].astype(np.float64)
    expected = np.outer(ordered.sum(axis=1), ordered.sum(axis=0)) / max(ordered.sum(), 1e-12)
    ratio = _averaged(ordered, MOST_ROWS, MOST_COLUMNS) / np.maximum(
        _averaged(expected, MOST_ROWS, MOST_COLUMNS), 1e-12
    )

    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(
        np.log2(np.maximum(ratio, 2**-4)),
        cmap="RdBu_r",
        vmin=-2,
        vmax=2,
        aspect="auto",
        extent=(0, matrix.shape[1], matrix.shape[0], 0),
        interpolation="nearest",
    )
    if len(np.unique(row_clusters)) <= CLUSTERS_RULED:
        for edge in np.flatnonzero(np.diff(np.sort(row_clusters))) + 1:
            axes.axhline(float(edge), color=INK, linewidth=0.3, alpha=0.5)
        for edge in np.flatnonzero(np.diff(np.sort(column_clusters))) + 1:
            axes.axvline(float(edge), color=INK, linewidth=0.3, alpha=0.5)
    axes.set_xlabel("feature columns, by cluster", color=SOFT)
    axes.set_ylabel("training images, by cluster", color=SOFT)
    axes.set_title(f"{len(np.unique(row_clusters))} co-clusters", color=INK, loc="left")
    bar = figure.colorbar(shown, ax=axes, shrink=0.5, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["¼", "½", "as expected", "2 ×", "4 ×"])
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=110)


def cluster_sheet(dataset: Dataset, rows: np.ndarray, clusters: np.ndarray, path: Path) -> None:
    """Draw one line of images for each of the largest clusters, as a PNG.

    Args:
        dataset: of the images.
        rows: (m,) rows of the dataset.
        clusters: (m,) cluster of each of them.
        path: where to.
    """
    sizes = np.bincount(clusters[clusters >= 0])
    largest = [cluster for cluster in np.argsort(-sizes, kind="stable")[:CLUSTERS_SHOWN] if sizes[cluster]]
    label_width, step = 120, SIDE + MARGIN
    sheet = Image.new("RGB", (label_width + IMAGES_SHOWN * step, len(largest) * step + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for line, cluster in enumerate(largest):
        members = rows[clusters == cluster]
        top = line * step + MARGIN
        pen.text((6, top + SIDE // 2 - 12), f"cluster {cluster}", fill=INK)
        pen.text((6, top + SIDE // 2 + 1), f"{len(members):,} images", fill=SOFT)
        spread = members[np.linspace(0, len(members) - 1, min(IMAGES_SHOWN, len(members))).astype(int)]
        for place, image in enumerate(dataset.read(spread)):
            picture = Image.fromarray(image).resize((SIDE, SIDE))
            sheet.paste(picture, (label_width + place * step, top))
    sheet.save(path, optimize=True)


def _averaged(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means over equal bands of rows and columns, at most so many of each."""
    for axis, most in ((0, rows), (1, columns)):
        if matrix.shape[axis] > most:
            edges = np.linspace(0, matrix.shape[axis], most + 1).astype(int)
            widths = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
            matrix = np.add.reduceat(matrix, edges[:-1], axis=axis) / widths
    return matrix
