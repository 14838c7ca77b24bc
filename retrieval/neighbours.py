"""Exact nearest neighbours by cosine similarity: tiles of float32 products, proven by float64 where it matters.

A float32 score differs from the exact one by less than `score_error`. So the images whose score lies within that error
of the best are the only ones that can be the answer: they alone are scored again in float64. Where too many lie there
(duplicates, rows of zeros), all scores of that query are computed in float64. Where a processor multiplies bfloat16 in
hardware, self-retrieval looks at such products first, with their own, wider, error: they are written in bfloat16 too,
and their maxima taken as those of whole numbers, which is a quarter of the work of float32 ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.devices import bfloat16_summed_in_float32, has_fast_bfloat16

TIE = 1e-6  # similarities this close are equal; the lowest index goes first
SPARE = 8  # candidates kept beyond k, so that most queries are proven at the first attempt
SEGMENT = 256  # columns whose maximum the symmetric search looks at,
SEGMENTS_KEPT = 12  # and how many segments it remembers for each row: enough for the error of bfloat16
TILE = 1024  # rows and columns of one product of it, a multiple of SEGMENT: smaller ones cost starts, larger the cache
TILE_ON_CUDA = 8192  # there a product of so many is worth its start
WRITTEN_IN_BFLOAT16 = 1.01 * 2.0**-7  # two scores, each rounded by at most 2^-8 of itself
LONGEST_IN_BFLOAT16 = 2.0**32  # longer rows might leave the range of numbers
EXACT_IS_CHEAPER = (
    64  # float64 products are faster than gathering candidates once the gallery is this many times their number
)


def nearest(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    exclude: Tensor | None = None,
    queries_per_block: int = 1024,
    gallery_per_block: int = 8192,
    normalise: bool = True,
) -> tuple[Tensor, Tensor]:
    """The k gallery images most similar to each query, best first.

    The order is exactly that of a float64 loop with this rule: hit by hit, among the images not yet taken, those whose
    similarity lies within 1e-6 of the greatest are tied, and the lowest index of them is next. So the similarities of
    consecutive hits may rise by up to 1e-6. A row of zeros has similarity 0 with everything.

    Args:
        queries: (q, d) float, any scale.
        gallery: (n, d) float, on the device of the queries. When it is the very tensor `queries`, k is 1 and each row
            excludes itself, the symmetry of the product saves half of the work.
        k: hits a query, at least 1.
        exclude: (q,) int64, the gallery index that each query must not retrieve (itself), or -1 for none.
        queries_per_block: memory is queries_per_block * gallery_per_block scores, whatever the gallery, besides the
            result, one float64 norm a row and, where the symmetry is used, the best segments of each row, some 800
            bytes, and on CUDA a tile of 8,192 x 8,192 scores. The result does not depend on it.
        gallery_per_block: see queries_per_block.
        normalise: False takes the rows as they are: similarity is then the inner product.

    Returns:
        Similarities (q, k) float32, rounded from float64, and gallery indices (q, k) int64.

    Raises:
        ValueError: shapes disagree, a value is not finite, or a query has fewer than k images to retrieve.
    """
    similarities, indices = ranked(queries, gallery, k, exclude, queries_per_block, gallery_per_block, normalise)
    return similarities.float(), indices


@torch.no_grad()
def ranked(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    exclude: Tensor | None = None,
    queries_per_block: int = 1024,
    gallery_per_block: int = 8192,
    normalise: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `nearest`, with the similarities in float64, which the comparison of near-ties needs."""
    _check(queries, gallery, k, exclude)
    budget = queries_per_block * gallery_per_block
    rows = _Rows(queries, normalise, budget, "queries")
    columns = rows if queries is gallery else _Rows(gallery, normalise, budget, "gallery")
    excluded = torch.full((len(queries),), -1, device=queries.device) if exclude is None else exclude
    excluded = excluded.to(queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        search = _Search(rows, columns, k, excluded, queries_per_block, gallery_per_block)
        return search.run()


def score_error(dimension: int, device: torch.device) -> float:
    """How far a float32 product of two unit vectors can be from the exact one, at most.

    Rounding each of d products and sums by u = 2^-24 gives less than d u / (1 - d u) for unit vectors in any order of
    summation (Higham, Accuracy and Stability, 2002, section 3.1); rounding the vectors themselves adds 2 u. Where
    float32 products may run on TF32 or bfloat16 units, both factors lose up to 2^-8 first.
    """
    units = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    reduced = units.matmul.fp32_precision not in ("none", "ieee")
    unit = 2.0**-22 if reduced else 2.0**-24
    return 1.01 * ((dimension + 4) * unit + (2.0**-7 if reduced else 0.0))


def bfloat16_error(dimension: int, residual: float, longest: float) -> float:
    """How far a product of rows rounded to bfloat16, summed in float32, can be from the exact one, at most.

    With x = h + l, h of bfloat16, x y - h h' = l y + h l': no more than residual (2 longest + residual) by
    Cauchy-Schwarz. Products of bfloat16 are exact in float32; their sums err as in `score_error`, with a unit that
    allows for sums that are cut off instead of rounded.

    Args:
        dimension: of the rows.
        residual: greatest length of what rounding took from a row.
        longest: greatest length of a row.
    """
    return 1.01 * (residual * (2 * longest + residual) + (dimension + 4) * 2.0**-22 * (longest + residual) ** 2)


class _Rows:
    """A matrix read tile by tile, its rows scaled to length 1 in float64."""

    def __init__(self, values: Tensor, normalise: bool, budget: int, name: str) -> None:
        self.values = values.detach()
        per_block = max(1, budget // max(1, values.shape[1]))
        norms = torch.cat([block.double().norm(dim=1) for block in self.values.split(per_block)])
        if not torch.isfinite(norms).all():
            row = int((~torch.isfinite(norms)).nonzero()[0])
            raise ValueError(
                f"Row {row} of {name} is not finite; a similarity with it means nothing. Find what made it."
            )
        self.longest = 1.0 if normalise else float(norms.max())
        self.scale = 1 / torch.where(norms > 0, norms, 1) if normalise else torch.ones_like(norms)
        small = values.numel() <= budget
        self._scaled = self.exact(slice(None)).float() if small else None
        self._rounded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows start to stop in float32."""
        if self._scaled is not None:
            return self._scaled[start:stop]
        return self.exact(slice(start, stop)).float()

    def rounded_tile(self, start: int, stop: int) -> Tensor:
        """Rows start to stop in bfloat16."""
        if self._scaled is None:
            return self.tile(start, stop).bfloat16()
        if self._rounded is None:
            self._rounded = self._scaled.bfloat16()
        return self._rounded[start:stop]

    def residual(self, rows_per_block: int) -> float:
        """Greatest length of what rounding a row to bfloat16 takes from it."""
        starts = range(0, len(self), rows_per_block)
        tiles = (self.tile(start, start + rows_per_block) for start in starts)
        return max(float((tile - tile.bfloat16().float()).norm(dim=1).max()) for tile in tiles)

    def exact(self, rows: Tensor | slice) -> Tensor:
        """The given rows in float64: any shape of indices, (..., d)."""
        return self.values[rows].double() * self.scale[rows].unsqueeze(-1)


class _Search:
    """One search: its operands and sizes, and the ways to carry it out."""

    def __init__(
        self, rows: _Rows, columns: _Rows, k: int, exclude: Tensor, queries_per_block: int, gallery_per_block: int
    ) -> None:
        self.rows, self.columns, self.k, self.exclude = rows, columns, k, exclude
        self.queries_per_block, self.gallery_per_block = queries_per_block, gallery_per_block
        self.kept = min(k + max(SPARE, k // 8), len(columns))
        self.tile = TILE_ON_CUDA if exclude.device.type == "cuda" else TILE
        error = score_error(rows.values.shape[1], rows.values.device) * rows.longest * columns.longest
        self.window = TIE + 2 * error  # a score lower than the k-th by more than this cannot be an answer
        self.similarities = torch.empty(len(rows), k, dtype=torch.float64, device=exclude.device)
        self.indices = torch.empty(len(rows), k, dtype=torch.int64, device=exclude.device)

    def run(self) -> tuple[Tensor, Tensor]:
        everyone = torch.arange(len(self.rows), device=self.exclude.device)
        if self.kept * EXACT_IS_CHEAPER >= len(self.columns):
            unproven = everyone
        elif self.rows is self.columns and self.k == 1 and torch.equal(self.exclude, everyone):
            unproven = self._nearest_other(everyone)
        else:
            unproven = torch.cat([self._shortlist(block) for block in everyone.split(self.queries_per_block)])
        self._exhaustive(unproven)
        return self.similarities, self.indices

    def _shortlist(self, block: Tensor) -> Tensor:
        """Answer a block of queries from the best float32 scores; returns the queries for which that proves nothing."""
        queries = self.rows.exact(block).float()
        scores = queries.new_full((len(block), self.kept), -torch.inf)
        indices = torch.zeros_like(scores, dtype=torch.int64)
        for start in range(0, len(self.columns), self.gallery_per_block):
            tile = queries @ self.columns.tile(start, start + self.gallery_per_block).T  # (b, columns of the tile)
            self._hide_excluded(tile, block, start)
            found, position = _largest(tile, self.kept)
            scores, chosen = torch.cat([scores, found], 1).topk(self.kept)
            indices = torch.cat([indices, position + start], 1).gather(1, chosen)
        proven = scores[:, -1] < scores[:, self.k - 1] - self.window
        at_once = max(1, self.queries_per_block * self.gallery_per_block // (self.kept * queries.shape[1]))
        for part in proven.nonzero()[:, 0].split(at_once):
            candidates = self.columns.exact(indices[part])  # (p, kept, d)
            exact = (candidates @ self.rows.exact(block[part]).unsqueeze(2)).squeeze(2)
            exact[scores[part] == -torch.inf] = -torch.inf
            self._answer(block[part], *_order(exact, indices[part], self.k))
        return block[~proven]

    def _nearest_other(self, everyone: Tensor) -> Tensor:
        """Answer every row by its nearest other row; returns the rows for which that proves nothing."""
        if self.rows.longest <= LONGEST_IN_BFLOAT16 and has_fast_bfloat16(self.exclude.device):
            with bfloat16_summed_in_float32():
                unproven = self._by_symmetry(everyone, rounded=True)
            if 2 * len(unproven) < len(everyone):
                blocks = unproven.split(self.queries_per_block) if len(unproven) else ()
                return torch.cat([unproven[:0], *map(self._shortlist, blocks)])
        return self._by_symmetry(everyone, rounded=False)

    def _by_symmetry(self, everyone: Tensor, rounded: bool) -> Tensor:
        """The nearest other row of every row, each tile of the product serving its rows and its columns.

        Only the largest maxima over segments of columns are kept for each row. Where the last of them lies outside the
        window, the answer lies in one of the segments inside, which are scored again in float64.

        Args:
            everyone: (n,) all rows.
            rounded: multiply in bfloat16; given up when the first rows show that it proves little.

        Returns:
            The unproven rows.
        """
        window, share = self.window, 0.0
        if rounded:
            dimension, longest = self.rows.values.shape[1], self.rows.longest
            window = TIE + 2 * bfloat16_error(dimension, self.rows.residual(self.queries_per_block), longest)
            share = WRITTEN_IN_BFLOAT16
        # twice the rows: the largest maxima are merged half as often
        edge, count = -(-max(2 * self.queries_per_block, self.tile) // SEGMENT) * SEGMENT, len(everyone)
        best = self.rows.tile(0, 0).new_full((count, SEGMENTS_KEPT), -torch.inf)
        segment = torch.zeros_like(best, dtype=torch.int64)
        kind = torch.bfloat16 if rounded else best.dtype
        scores = best.new_empty(min(self.tile, count) ** 2, dtype=kind)  # one for all tiles: fresh pages cost as much
        for top in range(0, count, edge):
            across, down = self._segment_maxima(top, min(top + edge, count), scores)
            _keep_largest(best, segment, top, across, top // SEGMENT)
            _keep_largest(best, segment, top + edge, down, top // SEGMENT)
            least = best[:, :1] * (1 - share) - window  # a lower maximum holds no answer
            proven = best[:, -1] < least[:, 0]
            if rounded and top == 0 and 2 * int(proven[:edge].sum()) < len(proven[:edge]):
                return everyone
        inside = (best >= least) & proven.unsqueeze(1)
        return torch.cat([everyone[~proven], self._score_segments(inside, segment)])

    def _segment_maxima(self, top: int, bottom: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Maxima of the products of rows top to bottom with these and all later rows, over segments.

        Args:
            top: first row.
            bottom: last row, and one.
            scores: memory of a tile; its type is that of the products.

        Returns:
            Of rows top to bottom, over segments of the columns from top on; and of the later rows, over segments of
            rows top to bottom; float32. A row is left out of its own maximum. Of bfloat16 ones 0 stands for all
            that is negative.
        """
        count = len(self.rows)
        rows_of = self.rows.rounded_tile if scores.dtype == torch.bfloat16 else self.rows.tile
        scores, lowest = _sortable(scores)
        across = scores.new_empty(bottom - top, -(-(count - top) // SEGMENT))
        down = scores.new_empty(count - bottom, -(-(bottom - top) // SEGMENT))
        edge = self.tile
        for left in range(top, count, edge):
            others = rows_of(left, left + edge)
            columns = slice((left - top) // SEGMENT, (left - top + edge) // SEGMENT)
            for upper in range(top, bottom, edge):
                queries = rows_of(upper, min(upper + edge, bottom))
                tile = scores[: len(queries) * len(others)].view(len(queries), len(others))
                torch.mm(queries, others.T, out=tile.view(queries.dtype))
                if left < bottom:
                    tile.diagonal(upper - left).fill_(lowest)
                across[upper - top : upper - top + edge, columns] = _maxima(tile, 1, lowest)
                if left + edge > bottom:
                    later = slice(max(left, bottom) - bottom, left - bottom + edge)
                    rows = slice((upper - top) // SEGMENT, (upper - top + edge) // SEGMENT)
                    down[later, rows] = _maxima(tile, 0, lowest)[max(bottom - left, 0) :]
        return _upper_bounds(across), _upper_bounds(down)

    def _score_segments(self, inside: Tensor, segment: Tensor) -> Tensor:
        """Answer rows from some segments each, in float64; returns those that tie across segments.

        Args:
            inside: (n, segments kept) bool, what to score; rows without any are left alone.
            segment: (n, segments kept) their numbers.
        """
        similarities = torch.full(inside.shape, -torch.inf, dtype=torch.float64, device=inside.device)
        peaks, indices = similarities.clone(), torch.zeros_like(segment)
        rows, places = inside.nonzero(as_tuple=True)
        numbers, order = segment[rows, places].sort()
        for pairs in order.split(torch.unique_consecutive(numbers, return_counts=True)[1].tolist()):
            for part in pairs.split(self.queries_per_block):
                row, place = rows[part], places[part]
                start = int(segment[row[0], place[0]]) * SEGMENT
                scores = self.rows.exact(row) @ self.columns.exact(slice(start, start + SEGMENT)).T
                self._hide_excluded(scores, row, start)
                value, position = _greedy(scores, 1)
                similarities[row, place], indices[row, place] = value[:, 0], position[:, 0] + start
                peaks[row, place] = scores.amax(1)  # of ties in a segment the first may be less
        highest, place = peaks.max(1, keepdim=True)
        alone = (peaks >= highest - TIE).sum(1) == 1
        answered = (inside.any(1) & alone).nonzero()[:, 0]
        place = place[answered]
        self._answer(answered, similarities[answered].gather(1, place), indices[answered].gather(1, place))
        return (inside.any(1) & ~alone).nonzero()[:, 0]

    def _exhaustive(self, unproven: Tensor) -> None:
        """Answer queries from all their scores in float64."""
        at_once = max(1, self.queries_per_block * self.gallery_per_block // len(self.columns))
        columns = torch.arange(len(self.columns), device=unproven.device)
        for block in unproven.split(at_once):
            queries = self.rows.exact(block)
            scores = queries.new_empty(len(block), len(self.columns))
            for start in range(0, len(self.columns), self.gallery_per_block):
                stop = start + self.gallery_per_block
                scores[:, start:stop] = queries @ self.columns.exact(slice(start, stop)).T
            self._hide_excluded(scores, block, 0)
            values, indices = scores.topk(self.kept)
            complete = (values[:, -1] < values[:, self.k - 1] - TIE) | (self.kept == len(self.columns))
            self._answer(block[complete], *_order(values[complete], indices[complete], self.k))
            for tied in (~complete).nonzero()[:, 0].split(max(1, at_once // 4)):  # sorting holds several copies
                whole = scores[tied]
                self._answer(block[tied], *_order(whole, columns.expand_as(whole), self.k))

    def _hide_excluded(self, scores: Tensor, rows: Tensor, start: int) -> None:
        column = self.exclude[rows] - start
        inside = ((self.exclude[rows] >= 0) & (column >= 0) & (column < scores.shape[1])).nonzero()[:, 0]
        scores[inside, column[inside]] = -torch.inf

    def _answer(self, rows: Tensor, similarities: Tensor, indices: Tensor) -> None:
        self.similarities[rows], self.indices[rows] = similarities, indices


def _largest(scores: Tensor, kept: int, segment: int = 32) -> tuple[Tensor, Tensor]:
    """The `kept` largest of each row and their columns: found in the segments whose maxima are largest."""
    width = scores.shape[1]
    if width % segment or width < 4 * kept * segment:
        return scores.topk(min(kept, width))
    segments = scores.view(len(scores), -1, segment)
    chosen = segments.amax(2).topk(kept, sorted=False).indices  # (b, kept)
    columns = (chosen.unsqueeze(2) * segment + torch.arange(segment, device=scores.device)).flatten(1)
    found, position = scores.gather(1, columns).topk(kept)
    return found, columns.gather(1, position)


def _sortable(scores: Tensor) -> tuple[Tensor, float]:
    """The scores as numbers whose maxima are quickly taken, in the same memory, and the least value of such a number.

    bfloat16 numbers that are not negative have the order of their bits read as whole numbers, and the negative ones are
    below them; `_upper_bounds` turns back.
    """
    if scores.dtype == torch.bfloat16:
        return scores.view(torch.int16), torch.iinfo(torch.int16).min
    return scores, -torch.inf


def _upper_bounds(maxima: Tensor) -> Tensor:
    """Maxima of `_sortable` scores in float32; of bfloat16 ones 0 stands for all that is negative."""
    return maxima.clamp(min=0).view(torch.bfloat16).float() if maxima.dtype == torch.int16 else maxima


def _maxima(tile: Tensor, dim: int, lowest: float) -> Tensor:
    """Maxima over segments of the rows (dim 0) or columns (dim 1) of a tile: (rows or columns kept, segments)."""
    missing = -tile.shape[dim] % SEGMENT
    if missing:
        tile = F.pad(tile, (0, missing) if dim == 1 else (0, 0, 0, missing), value=lowest)
    if dim == 1:
        return tile.view(len(tile), -1, SEGMENT).amax(2)
    return tile.view(-1, SEGMENT, tile.shape[1]).amax(1).T


def _keep_largest(best: Tensor, segment: Tensor, start: int, maxima: Tensor, first_segment: int) -> None:
    """Merge maxima of new segments into the largest so far, in place, for the rows from `start`."""
    rows = slice(start, start + len(maxima))
    numbers = torch.arange(first_segment, first_segment + maxima.shape[1], device=best.device).expand_as(maxima)
    values, chosen = torch.cat([best[rows], maxima], 1).topk(best.shape[1])
    best[rows], segment[rows] = values, torch.cat([segment[rows], numbers], 1).gather(1, chosen)


def _order(similarities: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of candidates (b, m) by the rule of `nearest`; the candidates hold every possible answer.

    Sorted similarities fall into chains whose links are at most TIE. The rule never leaves a chain before it is used
    up, and within a chain no longer than TIE it is the order of the indices. Rows with a longer chain go hit by hit.
    """
    indices, by_index = indices.sort(1)
    similarities = similarities.gather(1, by_index)
    values, by_value = torch.sort(similarities, dim=1, descending=True, stable=True)
    begins = F.pad(values[:, :-1] - values[:, 1:] > TIE, (1, 0), value=True)
    column = torch.arange(values.shape[1], device=values.device)
    head = torch.where(begins, column, 0).cummax(1).values  # where the chain of each begins
    position = by_value.gather(1, (head * values.shape[1] + by_value).argsort(1))[:, :k]
    long = (values.gather(1, head) - values > TIE).any(1)
    if long.any():
        position[long] = _greedy(similarities[long], k)[1]
    return similarities.gather(1, position), indices.gather(1, position)


def _greedy(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The rule of `nearest`, hit by hit, on columns in ascending order of index: values and columns (b, k)."""
    remaining = similarities.clone()
    columns = torch.empty(len(similarities), k, dtype=torch.int64, device=similarities.device)
    for hit in range(k):
        tied = remaining >= remaining.amax(1, keepdim=True) - TIE
        columns[:, hit] = tied.int().argmax(1)  # argmax gives the first of equal values
        remaining.scatter_(1, columns[:, hit : hit + 1], -torch.inf)
    return similarities.gather(1, columns), columns


def _check(queries: Tensor, gallery: Tensor, k: int, exclude: Tensor | None) -> None:
    for name, values in (("queries", queries), ("gallery", gallery)):
        if values.ndim != 2 or not values.is_floating_point():
            raise ValueError(
                f"{name} is {tuple(values.shape)} {values.dtype}; it must be a float matrix, one row an image."
            )
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}; they must agree."
        )
    if queries.shape[1] == 0 or len(queries) == 0:
        raise ValueError(f"queries are {tuple(queries.shape)}; at least one query of one dimension is needed.")
    excluding = 0
    if exclude is not None:
        if exclude.shape != (len(queries),) or exclude.dtype != torch.int64:
            raise ValueError(
                f"exclude is {tuple(exclude.shape)} {exclude.dtype}; "
                f"it must be one int64 for each of {len(queries)} queries."
            )
        if (outside := (exclude < -1) | (exclude >= len(gallery))).any():
            raise ValueError(f"exclude holds {int(exclude[outside][0])}; it must be -1 or below {len(gallery)}.")
        excluding = int((exclude >= 0).any())
    if not 1 <= k <= len(gallery) - excluding:
        itself = " when it excludes one" if excluding else ""
        raise ValueError(
            f"k is {k}; a query has {len(gallery) - excluding} images of the gallery to retrieve{itself}: "
            "choose k from 1 to that."
        )
