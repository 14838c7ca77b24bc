"""The text that Prometheus reads, held to its format by a small strict parser."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.prometheus import Metric, exposition

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def unescape(text: str) -> str:
    return re.sub(r"\\.", lambda found: UNESCAPED[found[0]], text)


def parse_exposition(text: str) -> dict[str, dict]:
    """Families of the text format 0.0.4: name, help, type, samples.

    Raises:
        AssertionError: anything that Prometheus would refuse, or only put up with.
    """
    assert text == "" or text.endswith("\n")
    families: dict[str, dict] = {}
    current = ""
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            current, _, told = line.removeprefix("# HELP ").partition(" ")
            assert current not in families, "a family is told once, in one piece"
            assert re.fullmatch(r"(?:[^\\]|\\\\|\\n)*", told)
            families[current] = {"help": unescape(told), "samples": {}}
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name == current
            assert kind in ("counter", "gauge", "histogram", "summary", "untyped")
            assert "type" not in families[name]
            assert not families[name]["samples"], "the type comes before the samples"
            families[name]["type"] = kind
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            name, inner, value = found.groups()
            assert name == current
            labels = tuple((label, unescape(told)) for label, told in LABEL.findall(inner or ""))
            written = ",".join(f'{label}="{told}"' for label, told in LABEL.findall(inner or ""))
            assert written == (inner or ""), "labels are separated by commas, and nothing is left over"
            assert len({label for label, _ in labels}) == len(labels)
            assert labels not in families[name]["samples"]
            assert re.fullmatch(r"NaN|[+-]Inf|[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value)
            families[name]["samples"][labels] = float(value)
    for name, family in families.items():
        assert "type" in family, name
        assert family["samples"], name
    return families


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
samples = st.lists(st.tuples(texts, st.floats()), min_size=1, max_size=4, unique_by=lambda sample: sample[0])


@given(texts, samples)
def test_what_is_written_is_read_back(told: str, given_samples: list[tuple[str, float]]) -> None:
    metric = Metric(
        "rankone_age_seconds", told, [({"model": text, "also": "x"}, value) for text, value in given_samples]
    )
    family = parse_exposition(exposition([metric]))["rankone_age_seconds"]
    assert (family["help"], family["type"]) == (told, "gauge")
    for text, value in given_samples:
        read = family["samples"][(("also", "x"), ("model", text))]
        assert read == value or (math.isnan(read) and math.isnan(value))


def test_the_text_is_that_of_the_format() -> None:
    metrics = [
        Metric("empty", "Nothing.", []),
        Metric("a_seconds", 'How\nlong \\ "far".', [({"model": 'b"\\\n'}, 1764000000.25), ({}, -2.0)]),
    ]
    assert exposition(metrics) == (
        '# HELP a_seconds How\\nlong \\\\ "far".\n'
        "# TYPE a_seconds gauge\n"
        'a_seconds{model="b\\"\\\\\\n"} 1764000000.25\n'
        "a_seconds -2\n"
    )


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric("a-b", "", [({}, 1)]), "'a-b' is no name of a metric"),
        (Metric("a", "", [({"b-c": ""}, 1)]), "'b-c' is no name of a label"),
        (Metric("a", "", [({"__name__": ""}, 1)]), "'__name__' is no name of a label"),
        (Metric("a", "", [({"b": "1"}, 1), ({"b": "1"}, 2)]), "two samples of the same labels"),
    ],
)
def test_what_prometheus_would_refuse_is_an_error(metric: Metric, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exposition([metric])


@pytest.mark.parametrize(
    "text",
    [
        "a 1\n",
        "# HELP a b\na 1\n",
        "# HELP a b\n# TYPE a gauge\n",
        "# HELP a b\n# TYPE a gauge\na 1",
        "# HELP a b\n# TYPE a gauge\na{b=1} 1\n",
        '# HELP a b\n# TYPE a gauge\na{b="\\x"} 1\n',
        '# HELP a b\n# TYPE a gauge\na{b="1"} 1\na{b="1"} 2\n',
        "# HELP a b\n# TYPE a gauge\na one\n",
    ],
)
def test_the_parser_is_strict(text: str) -> None:
    with pytest.raises(AssertionError):
        parse_exposition(text)
