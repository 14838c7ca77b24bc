import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from retrieval.charts import (
    histogram,
    map_chart,
    missing_parts_chart,
    percent,
    shift_chart,
    similarity_chart,
    stage_chart,
    threshold_chart,
)
from retrieval.drift import ClassShift
from retrieval.evaluation import Acceptance, CurvePoint, MissingParts, Stage
from retrieval.thresholds import Trials

CURVE = tuple(CurvePoint(step / 10, 0.5 + step / 20, 1 - step / 10) for step in range(1, 10))
STAGES = [Stage("pretrain", 0.25, 0.2, 0.3, 0.5, 0.1, 8), Stage("finetune_softmax", 1.0, 1.0, 1.0, 1.0, 1.0, 8)]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def inside(svg: str) -> None:
    """Nothing is drawn outside of the picture."""
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("x", "x1", "x2"):
                assert -0.1 <= float(value) + float(element.get("width", 0)) <= width + 0.1
            if name in ("y", "y1", "y2"):
                assert -0.1 <= float(value) + float(element.get("height", 0)) <= height + 0.1
        for place in element.get("points", "").split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5004, "50.0 %"), (1.0, "100.0 %"), (0.0, "0.0 %"), (0.9999, "> 99.9 %"), (0.0001, "< 0.1 %"), (0.25, "25.0 %")],
)
def test_percent_rounds_nothing_up_to_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_bars_are_as_long_as_their_numbers() -> None:
    svg = stage_chart(STAGES)
    bars = [element for element in ET.fromstring(svg) if "among" in element.get("class", "")]
    short, long = (float(bar.get("width", 0)) for bar in bars)
    assert short == pytest.approx(long / 4, abs=0.1)
    assert {"pretrain", "25.0 %", "50.0 %", "finetune_softmax", "100.0 %"} <= set(texts(svg))
    inside(svg)


def test_without_a_training_gallery_there_is_one_bar_a_stage() -> None:
    svg = stage_chart([Stage("pretrain", 0.25, 0.2, 0.3, None, 0.1, 8)])
    assert svg.count("<rect") == 1
    inside(svg)


def test_names_are_escaped() -> None:
    svg = stage_chart([Stage('<script>"&', 0.25, 0.2, 0.3, None, 0.1, 8)])
    assert "<script" not in svg
    assert '<script>"&' in texts(svg)


@pytest.mark.parametrize("value", [0.1, 0.55, 0.9, None])
def test_the_threshold_is_marked_where_there_is_one(value: float | None) -> None:
    svg = threshold_chart(Acceptance(0.9, value is not None, value, 9, 0.9, 0.5, 0.9, 0.5, CURVE, CURVE))
    assert ("accepted from" in svg) == (value is not None)
    assert svg.count("<polyline") == 4
    inside(svg)


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-4, 1e-2, 2.0])
def test_similarities_of_any_spread_have_an_axis(spread: float) -> None:
    curve = (CurvePoint(-spread / 2, 0.5, 1.0), CurvePoint(spread / 2, 1.0, 0.5))
    svg = threshold_chart(Acceptance(0.9, False, None, 2, None, 0.0, None, 0.0, curve, ()))
    ticks = [text for text in texts(svg) if text and "%" not in text and "similarity" not in text]
    assert 2 <= len(ticks) <= 12
    assert len(set(ticks)) == len(ticks)
    inside(svg)


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.6), (0.3, None), (None, None), (0.05, 0.95)])
def test_the_interval_of_the_trials_is_a_band(low: float | None, high: float | None) -> None:
    trials = Trials(200, 1.0, 0.5, low, high, 0.5)
    svg = threshold_chart(Acceptance(0.9, True, 0.5, 9, 0.9, 0.5, 0.9, 0.5, CURVE, CURVE, trials))
    bands = [element for element in ET.fromstring(svg) if "band" in element.get("class", "")]
    assert len(bands) == (low is not None)
    inside(svg)
    if (low, high) == (0.3, 0.6):
        assert float(bands[0].get("width", 0)) == pytest.approx((760 - 52 - 20) * 0.3 / 0.8, abs=0.1)


def test_hidden_shapes_have_a_line_each_and_labels_apart() -> None:
    parts = [MissingParts("whole", 0.0, 9, 0.9), MissingParts("half", 0.5, 9, 0.31)]
    parts += [
        MissingParts(shape, share, 9, 0.8 - share) for shape in ("block", "patches") for share in (0.1, 0.25, 0.5)
    ]
    svg = missing_parts_chart(parts)
    root = ET.fromstring(svg)
    lines = [element.get("points", "").split() for element in root.iter() if element.tag.endswith("polyline")]
    assert [len(line) for line in lines] == [4, 4]  # one share of a shape is a dot, not a line
    names = [element for element in root.iter() if "series-name" in element.get("class", "")]
    heights = sorted(float(name.get("y", 0)) for name in names)
    assert len(names) == 3
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 16
    inside(svg)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_names_of_shapes_stay_in_the_picture(value: float) -> None:
    shapes = [MissingParts(shape, 0.5, 9, value) for shape in ("block", "patches", "side")]
    inside(missing_parts_chart([MissingParts("whole", 0.0, 9, value), *shapes]))


def test_every_image_is_a_spot_of_the_map_and_only_chosen_classes_have_a_colour() -> None:
    places = np.random.default_rng(0).random((50, 2))
    svg = map_chart(places, np.arange(50) % 5, (1, 3), "Test <images>")
    kinds = {path.get("class", ""): path.get("d", "").count("M") for path in ET.fromstring(svg)}
    assert kinds == {"spots other": 30, "spots s0": 10, "spots s1": 10}
    numbers = [float(number) for number in re.findall(r"M([\d.-]+),([\d.-]+)h0", svg) for number in number]
    assert 0 < min(numbers) < max(numbers) < 480


def test_no_queries_make_no_curve() -> None:
    assert "no queries" in threshold_chart(Acceptance(0.9, False, None, 0, None, 0.0, None, 0.0))


def test_the_histogram_counts_every_class_once() -> None:
    svg = histogram([0.0, 0.05, 0.1, 0.3, 0.7, 1.0, 1.0, 0.95])
    assert sum(int(text) for text in texts(svg) if text.isdigit()) == 8
    assert "3" in texts(svg)  # 0.95, 1.0 and 1.0 in the last bin
    inside(svg)


def test_shifts_are_as_long_as_their_numbers_and_those_beyond_chance_stand_out() -> None:
    shifts = [
        ClassShift("moved", 9, 0.4, 0.1, 0.0005),
        ClassShift("<stayed> & so on, by a name beyond all bounds", 9, 0.1, 0.2, 0.6),
    ]
    svg = shift_chart(shifts, 1)
    moved, stayed = (element for element in ET.fromstring(svg) if element.get("class", "").startswith("bar"))
    assert float(moved.get("width", 0)) == pytest.approx(4 * float(stayed.get("width", 0)), abs=0.3)
    assert (moved.get("class"), stayed.get("class")) == ("bar has-moved", "bar within")
    limits = [element for element in ET.fromstring(svg) if element.get("class") == "limit"]
    start = float(moved.get("x", 0))
    lengths = [float(limit.get("x1", 0)) - start for limit in limits]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.3)
    assert {"moved", "0.400", "0.100"} <= set(texts(svg))
    assert any(text.startswith("<stayed> & so on") and text.endswith("…") for text in texts(svg))
    inside(svg)


@pytest.mark.parametrize(
    "shifts", [[], [ClassShift("one", 9, 0.0, 0.0, 1.0)], [ClassShift("two", 9, -1e-17, 0.0, 1.0)]]
)
def test_shifts_of_nothing_can_be_drawn(shifts: list[ClassShift]) -> None:
    inside(shift_chart(shifts, 0))


@pytest.mark.parametrize("far_below", [-0.5, 0.3, 1.0])
def test_similarities_are_drawn_as_shares_with_the_place_from_which_they_are_far(far_below: float) -> None:
    usual, found = [0.5] * 8 + [0.9] * 2, [0.1] * 5 + [0.9] * 5
    svg = similarity_chart(usual, found, far_below)
    curves = {element.get("class", "").split()[-1]: element for element in ET.fromstring(svg) if element.get("points")}
    heights = {
        name: max(212 - 8 - float(place.split(",")[1]) for place in curve.get("points", "").split())
        for name, curve in curves.items()
    }
    assert heights["usual"] == pytest.approx(heights["found"] * 8 / 5, rel=0.01), "each is a share of its own images"
    assert f"far below {far_below:.3f}" in texts(svg)
    inside(svg)
    inside(similarity_chart([0.5, 0.5], [0.5], 0.5))
