"""Numbers in Prometheus' text format, version 0.0.4: what a node exporter's textfile collector reads."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
ESCAPES = {"\\": r"\\", "\n": r"\n"}  # of texts; labels have one more
LABEL_ESCAPES = ESCAPES | {'"': r"\""}


@dataclasses.dataclass(frozen=True)
class Metric:
    """One family of samples, a gauge.

    Attributes:
        name: ends in its unit: seconds, ratio, or nothing for counts, and states of 0 or 1.
        help: what it is, for people.
        samples: pairs of labels and value.
    """

    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def exposition(metrics: Sequence[Metric]) -> str:
    """The text of some metrics; one without samples is left out.

    Raises:
        ValueError: a name that Prometheus does not take, or two samples that it could not tell apart.
    """
    return "".join(f"{line}\n" for metric in metrics if metric.samples for line in _lines(metric))


def _lines(metric: Metric) -> list[str]:
    if not NAME.fullmatch(metric.name):
        raise ValueError(f"'{metric.name}' is no name of a metric.")
    labels = [_labels(given) for given, _ in metric.samples]
    if len(set(labels)) < len(labels):
        raise ValueError(f"{metric.name} has two samples of the same labels.")
    lines = [f"# HELP {metric.name} {_escaped(metric.help, ESCAPES)}", f"# TYPE {metric.name} gauge"]
    values = [value for _, value in metric.samples]
    return lines + [f"{metric.name}{text} {_number(value)}" for text, value in zip(labels, values, strict=True)]


def _labels(labels: Mapping[str, str]) -> str:
    for label in labels:
        if not LABEL.fullmatch(label) or label.startswith("__"):
            raise ValueError(f"'{label}' is no name of a label.")
    inner = ",".join(f'{label}="{_escaped(text, LABEL_ESCAPES)}"' for label, text in sorted(labels.items()))
    return f"{{{inner}}}" if inner else ""


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(letter, letter) for letter in text)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))
