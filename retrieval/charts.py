"""Charts as inline SVG: sharp at any size, no scripts, coloured by the style sheet of the page they lie in."""

from collections.abc import Sequence
from html import escape
from math import floor, isclose

import numpy as np

from retrieval.evaluation import Acceptance, MissingParts, Stage

WIDTH = 760
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def percent(share: float, digits: int = 1) -> str:
    """A share of one as a person reads it: 0.5004 is "50.0 %"; only what is exactly 0 or 1 reads 0.0 or 100.0."""
    text = f"{100 * share:.{digits}f}"
    nearly = {f"{100:.{digits}f}": "> ", f"{0:.{digits}f}": "< "}
    if text in nearly and share not in (0.0, 1.0):
        step = 10.0**-digits
        text = nearly[text] + f"{(100 - step) if share > 0.5 else step:.{digits}f}"
    return f"{text} %"


def stage_chart(stages: Sequence[Stage]) -> str:
    """R@1 after each step as bars from 0 to 100 %: among test images with its interval, and to the training images."""
    to_train = any(stage.recall_at_1_to_train is not None for stage in stages)
    row, left, right = (62 if to_train else 46), 150, 64
    plot = WIDTH - left - right
    height = row * len(stages) + 34
    parts = [_line(left + plot * tick, 6, left + plot * tick, height - 24, "grid") for tick in TICKS]
    parts += [_text(left + plot * tick, height - 8, f"{100 * tick:.0f} %", "tick", "middle") for tick in TICKS]
    for number, stage in enumerate(stages):
        top = 8 + row * number
        last = " final" if number == len(stages) - 1 else ""
        parts.append(_text(left - 14, top + row / 2 - 3, stage.name, "label" + last, "end"))
        parts.append(_bar(left, top + 6, plot * stage.recall_at_1, 22, "among" + last))
        low, high = (left + plot * end for end in (stage.recall_at_1_low, stage.recall_at_1_high))
        parts.append(_line(low, top + 17, high, top + 17, "whisker"))
        parts += [_line(end, top + 12, end, top + 22, "whisker") for end in (low, high)]
        end = max(high, left + plot * stage.recall_at_1)
        parts.append(_text(end + 8, top + 22, percent(stage.recall_at_1), "value" + last))
        if stage.recall_at_1_to_train is not None:
            width = plot * stage.recall_at_1_to_train
            parts.append(_bar(left, top + 32, width, 10, "to-train"))
            parts.append(_text(left + width + 8, top + 41, percent(stage.recall_at_1_to_train), "small"))
    described = "; ".join(f"{stage.name} {percent(stage.recall_at_1)}" for stage in stages)
    return _svg(height, f"R@1 by stage: {described}", parts)


def threshold_chart(acceptance: Acceptance) -> str:
    """Precision and coverage against similarity; the level asked for and the chosen similarity are marked.

    Solid lines are the validation queries, on which the similarity was chosen; dashed ones the test queries. The band
    is the interval of the trials.
    """
    curves = (acceptance.validation_curve, acceptance.test_curve)
    similarities = [point.similarity for curve in curves for point in curve]
    if not similarities:
        return _svg(40, "No queries, no curve", [_text(WIDTH / 2, 24, "no queries, no curve", "label", "middle")])
    low, high = _padded(min(similarities), max(similarities))
    height, left, right, top = 320, 52, 20, 26
    plot_width, plot_height = WIDTH - left - right, height - top - 46

    def across(similarity: float) -> float:
        return left + plot_width * (similarity - low) / (high - low)

    def up(share: float) -> float:
        return top + plot_height * (1 - share)

    parts = [_line(left, up(tick), left + plot_width, up(tick), "grid") for tick in TICKS]
    if acceptance.trials is not None and acceptance.trials.low is not None:
        begin = max(across(acceptance.trials.low), left)
        end = left + plot_width if acceptance.trials.high is None else across(acceptance.trials.high)
        parts.append(_bar(begin, top, max(min(end, left + plot_width) - begin, 0), plot_height, "band"))
    parts += [_text(left - 10, up(tick) + 4, f"{100 * tick:.0f} %", "tick", "end") for tick in TICKS]
    parts += [_text(across(x), height - 26, f"{x:.{places}f}", "tick", "middle") for x, places in _nice(low, high)]
    parts.append(_text(left + plot_width / 2, height - 6, "similarity of the nearest image (cosine)", "tick", "middle"))
    for curve, dashed in ((curves[1], " dashed"), (curves[0], "")):
        parts.append(_curve([(across(point.similarity), up(point.coverage)) for point in curve], "coverage" + dashed))
        parts.append(_curve([(across(point.similarity), up(point.precision)) for point in curve], "precision" + dashed))
    parts.append(_line(left, up(acceptance.level), left + plot_width, up(acceptance.level), "level"))
    if acceptance.value is not None:
        x = min(max(across(acceptance.value), left), left + plot_width)
        parts.append(_line(x, top, x, top + plot_height, "mark"))
        anchor = "end" if x > left + plot_width - 80 else "start" if x < left + 80 else "middle"
        parts.append(_text(x, top - 9, f"accepted from {acceptance.value:.3f}", "mark-text", anchor))
    chosen = "not reached" if acceptance.value is None else f"chosen at {acceptance.value:.3f}"
    return _svg(height, f"Precision and coverage against similarity; threshold {chosen}", parts)


def similarity_chart(usual: Sequence[float], found: Sequence[float], far_below: float) -> str:
    """How similar the nearest image is: shares of the images of a reference and of new ones, in equal bins.

    The line is the similarity below which an image counts as far.
    """
    low, high = _padded(min(*usual, *found, far_below), max(*usual, *found, far_below))
    height, left, right, top, bins = 250, 30, 20, 26, 40
    plot_width, plot_height = WIDTH - left - right, height - top - 46
    edges = np.linspace(low, high, bins + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (usual, found)]
    most = max(float(share.max()) for share in shares)

    def across(similarity: float) -> float:
        return left + plot_width * (similarity - low) / (high - low)

    parts = [_line(left, top + plot_height, left + plot_width, top + plot_height, "axis")]
    for share, style in zip(shares, ("usual", "found"), strict=True):
        points = []
        for number, value in enumerate(share):
            up = top + plot_height * (1 - float(value) / most)
            points += [(across(edges[number]), up), (across(edges[number + 1]), up)]
        parts.append(_curve(points, style))
    parts += [_text(across(x), height - 26, f"{x:.{places}f}", "tick", "middle") for x, places in _nice(low, high)]
    parts.append(_text(left + plot_width / 2, height - 6, "similarity of the nearest image (cosine)", "tick", "middle"))
    x = across(far_below)
    parts.append(_line(x, top, x, top + plot_height, "mark"))
    anchor = "end" if x > left + plot_width - 80 else "start" if x < left + 80 else "middle"
    parts.append(_text(x, top - 9, f"far below {far_below:.3f}", "mark-text", anchor))
    return _svg(height, f"Similarity of the nearest image; far below {far_below:.3f}", parts)


def histogram(shares: Sequence[float], bins: int = 10) -> str:
    """How many classes reach what R@1, in equal bins from 0 to 100 %; the last bin holds 100 %."""
    counts = [0] * bins
    for share in shares:
        counts[min(floor(share * bins + 1e-9), bins - 1)] += 1
    height, left, top = 190, 20, 22
    plot_width, plot_height, gap = WIDTH - 2 * left, height - top - 44, 6
    step = plot_width / bins
    base = top + plot_height
    parts = [_line(left, base, left + plot_width, base, "axis")]
    for number, count in enumerate(counts):
        bar = plot_height * count / max(max(counts), 1)
        x = left + step * number
        if count:
            parts.append(_bar(x + gap / 2, base - bar, step - gap, bar, "among"))
            parts.append(_text(x + step / 2, base - bar - 6, str(count), "value", "middle"))
    for number in range(0, bins + 1):
        anchor = "start" if number == 0 else "end" if number == bins else "middle"
        parts.append(_text(left + step * number, base + 17, f"{100 * number / bins:.0f} %", "tick", anchor))
    parts.append(_text(WIDTH / 2, height - 6, "R@1 of a class", "tick", "middle"))
    return _svg(height, f"{len(shares)} classes by their R@1", parts)


def missing_parts_chart(parts: Sequence[MissingParts]) -> str:
    """R@1 against the share of the query image that is hidden, a line or a dot for each shape."""
    shapes = list(dict.fromkeys(part.shape for part in parts if part.share))
    whole = next(part for part in parts if not part.share)
    most = max(part.share for part in parts)
    height, left, right, top = 260, 52, 150, 16
    plot_width, plot_height = WIDTH - left - right, height - top - 46

    def place(part: MissingParts) -> tuple[float, float]:
        return left + plot_width * part.share / most, top + plot_height * (1 - part.recall_at_1)

    levels = {f"{100 * tick:.0f} %": top + plot_height * (1 - tick) for tick in TICKS}
    body = [_line(left, y, left + plot_width, y, "grid") for y in levels.values()]
    body += [_text(left - 10, y + 4, level, "tick", "end") for level, y in levels.items()]
    for share in sorted({part.share for part in parts}):
        body.append(_text(left + plot_width * share / most, height - 26, f"{100 * share:.0f} %", "tick", "middle"))
    body.append(_text(left + plot_width / 2, height - 6, "of the query image hidden", "tick", "middle"))
    ends = []
    for number, shape in enumerate(shapes):
        line = [whole, *(part for part in parts if part.share and part.shape == shape)]
        if len(line) > 2:  # a line through one measured share would claim the shares between
            body.append(_curve([place(part) for part in line], f"series s{number}"))
        body += [_dot(*place(part), f"dot s{number}") for part in line[1:]]
        ends.append((place(line[-1])[1], number, f"{shape} {percent(line[-1].recall_at_1)}"))
    body.append(_dot(*place(whole), "dot whole"))
    ends.sort()
    for y, (_, number, text) in zip(_apart([end[0] for end in ends], top), ends, strict=True):
        body.append(_text(left + plot_width + 14, y + 4, text, f"series-name s{number}"))
    return _svg(height, f"R@1 with parts hidden; whole {percent(whole.recall_at_1)}", body)


def map_chart(places: np.ndarray, labels: np.ndarray, highlighted: Sequence[int], title: str) -> str:
    """Images as dots, those of the highlighted classes each in a colour of its own, the others grey beneath.

    Args:
        places: (n, 2) in [0, 1], the second from below.
        labels: (n,) of the images.
        highlighted: at most ten labels.
        title: what the map shows.
    """
    side, edge = 480.0, 10.0
    spots = np.stack([places[:, 0], 1 - places[:, 1]], 1) * (side - 2 * edge) + edge
    size = min(9.0, max(4.0, 150 / len(labels) ** 0.5))
    groups = [("other", ~np.isin(labels, highlighted))]
    groups += [(f"s{number}", labels == label) for number, label in enumerate(highlighted)]
    paths = []
    for kind, chosen in groups:
        if chosen.any():
            drawn = "".join(f"M{x:.1f},{y:.1f}h0" for x, y in spots[chosen])
            paths.append(f'<path class="spots {kind}" d="{drawn}" stroke-width="{size:.1f}"/>')
    return _svg(side, title, paths, side)


def _apart(rising: Sequence[float], highest: float, least: float = 17) -> list[float]:
    """Heights of labels, moved up from the lowest so that none covers another, and down where that is out of sight."""
    places: list[float] = []
    for y in reversed(rising):
        places.append(min(y, places[-1] - least) if places else y)
    return [max(y, highest + number * least) for number, y in enumerate(reversed(places))]


def _padded(low: float, high: float) -> tuple[float, float]:
    """The axis of the similarities: all of them, never of no length, never past what a cosine can be for no reason."""
    if isclose(low, high, abs_tol=1e-6):
        return low - 0.05, high + 0.05
    return low, high


def _nice(low: float, high: float) -> list[tuple[float, int]]:
    """Round numbers between two ends, four to nine of them, with the decimals that they need."""
    for places in range(1, 8):
        for step in (5, 2, 1):
            size = step * 10.0**-places
            ticks = [round(number * size, places) for number in range(floor(low / size) - 1, floor(high / size) + 2)]
            inside = [tick for tick in ticks if low - size * 1e-6 <= tick <= high + size * 1e-6]
            if len(inside) >= 4:
                return [(tick + 0.0, places) for tick in inside]
    return [(low, 8), (high, 8)]


def _curve(places: Sequence[tuple[float, float]], kind: str) -> str:
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="curve {kind}" points="{where}"/>' if places else ""


def _svg(height: float, title: str, parts: Sequence[str], width: float = WIDTH) -> str:
    body = "".join(parts)
    name = escape(title)
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">{body}</svg>'


def _dot(x: float, y: float, kind: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="bar {kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
