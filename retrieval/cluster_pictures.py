"""Pictures of co-clusters: the matrix with its blocks along the diagonal, and what lies in each cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from retrieval.clusters import SHEET
from retrieval.dataset import Dataset

MOST_ROWS, MOST_COLUMNS = 160, 160  # cells of the picture; larger matrices are averaged
CLUSTERS_RULED = 40  # more lines between clusters would hide what they part
IMAGES_SHOWN, IMAGES_OF_A_CLUSTER = 1_600, 16  # at most, on all sheets and of one cluster
LINES = 24  # of a sheet
SIDE, MARGIN, LABEL, TITLE = 40, 8, 80, 32  # pixels
SHEET_WIDTH, TITLE_WIDTH = 864, 640  # pixels; the one at most, the other at least
QUALITY = 60  # of a JPEG, up to 100
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


@dataclass(frozen=True)
class Layout:
    """How clusters are laid out on sheets, the largest first: down a column, then the next column, then a sheet.

    Attributes:
        clusters: that are not empty.
        images: of each cluster, at most.
        columns: of clusters on a sheet.
    """

    clusters: int
    images: int
    columns: int

    @property
    def shown(self) -> int:
        """Clusters on all sheets."""
        return min(self.clusters, IMAGES_SHOWN)

    @property
    def left_out(self) -> int:
        """Clusters that are on no sheet: more of them than images may be shown."""
        return self.clusters - self.shown

    @property
    def per_sheet(self) -> int:
        """Clusters on a full sheet."""
        return self.columns * LINES

    @property
    def sheets(self) -> int:
        """How many sheets there are."""
        return -(-self.shown // self.per_sheet)

    @property
    def cell(self) -> int:
        """Width of a column in pixels."""
        return LABEL + self.images * (SIDE + MARGIN)

    def title(self, sheet: int) -> str:
        """What a sheet shows; they are counted from 1."""
        first, last = (sheet - 1) * self.per_sheet + 1, min(sheet * self.per_sheet, self.shown)
        left_out = f"; the {self.left_out:,} smallest are not shown" if self.left_out else ""
        return (
            f"sheet {sheet} of {self.sheets}: clusters {first:,} to {last:,} of {self.clusters:,}, the largest first; "
            f"up to {self.images} images of each{left_out}"
        )


def layout(clusters: int) -> Layout:
    """How so many clusters are laid out: the fewer they are, the more images of each."""
    images = min(max(IMAGES_SHOWN // max(clusters, 1), 1), IMAGES_OF_A_CLUSTER)
    return Layout(clusters, images, columns=max(SHEET_WIDTH // (LABEL + images * (SIDE + MARGIN)), 1))


def cluster_sheets(dataset: Dataset, rows: np.ndarray, clusters: np.ndarray, folder: Path) -> list[Path]:
    """Draw images of every cluster that is not empty, the largest first, as JPEGs; photographs stay below 1 MB in all.

    Args:
        dataset: of the images.
        rows: (m,) rows of the dataset.
        clusters: (m,) cluster of each of them, -1 for none.
        folder: where to; it must be there.

    Returns:
        The sheets in their order, by clusters.SHEET; of no clusters none.
    """
    sizes = np.bincount(clusters[clusters >= 0])
    largest = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    plan = layout(len(largest))
    order = np.argsort(clusters, kind="stable")
    begins = np.searchsorted(clusters[order], np.arange(len(sizes) + 1))
    paths = [folder / SHEET.format(sheet + 1) for sheet in range(plan.sheets)]
    for sheet, path in enumerate(paths):
        of_sheet = largest[sheet * plan.per_sheet : min((sheet + 1) * plan.per_sheet, plan.shown)]
        members = {int(cluster): rows[order[begins[cluster] : begins[cluster + 1]]] for cluster in of_sheet}
        draw_sheet(dataset, members, plan, plan.title(sheet + 1)).save(path, quality=QUALITY, optimize=True)
    return paths


def draw_sheet(dataset: Dataset, members: Mapping[int, np.ndarray], plan: Layout, title: str) -> Image.Image:
    """One sheet: a line of images for each cluster, evenly spread over its rows of the dataset, under a title."""
    step, lines = SIDE + MARGIN, min(len(members), LINES)
    columns = -(-len(members) // LINES)
    sheet = Image.new("RGB", (max(columns * plan.cell, TITLE_WIDTH), TITLE + lines * step), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((6, 7), title, fill=INK)
    for number, (cluster, own) in enumerate(members.items()):
        left, top = number // LINES * plan.cell, TITLE + number % LINES * step
        pen.text((left + 6, top + SIDE // 2 - 12), f"cluster {cluster}", fill=INK)
        pen.text((left + 6, top + SIDE // 2 + 1), f"{len(own):,} image{'' if len(own) == 1 else 's'}", fill=SOFT)
        spread = own[np.linspace(0, len(own) - 1, min(plan.images, len(own))).astype(int)]
        for place, image in enumerate(dataset.read(spread)):
            sheet.paste(Image.fromarray(image).resize((SIDE, SIDE)), (left + LABEL + place * step, top))
    return sheet


def _averaged(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means over equal bands of rows and columns, at most so many of each."""
    for axis, most in ((0, rows), (1, columns)):
        if matrix.shape[axis] > most:
            edges = np.linspace(0, matrix.shape[axis], most + 1).astype(int)
            widths = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
            matrix = np.add.reduceat(matrix, edges[:-1], axis=axis) / widths
    return matrix
