"""The model card: what a version is, in Markdown, for those who decide whether to use it (Mitchell et al., FAT* 2019).

It is the description of the version in MLflow and a file of the model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval.evaluation import Acceptance, Evaluation
from retrieval.manifest import Manifest
from retrieval.model_folder import CONFIG
from retrieval.thresholds import MINIMUM_ANSWERED

LONGEST = 5_000  # characters; what MLflow takes as a version's description
WEAK_CLASSES = 5
LONGEST_TEXT = 300  # characters of a name or sentence that comes from elsewhere


def model_card(name: str, model: Path, manifest: Manifest, measured: Evaluation, tags: Mapping[str, str]) -> str:
    """The card of a model.

    Args:
        name: of the registered model.
        model: its folder.
        manifest: of that folder.
        measured: how well it finds.
        tags: lineage, as the version carries it; what is missing is left out.

    Returns:
        Markdown of 5,000 characters at most.
    """
    sections = {
        "Figures": figures(measured),
        "Weak classes": weak_classes(measured),
        "Data": data(measured, tags),
        "Method": method(json.loads((model / CONFIG).read_text()), manifest.facts),
        "Cost": cost(measured, tags),
        "Use": use(name, measured),
    }
    lines = [f"# {name}: image embeddings for retrieval"]
    for title, items in sections.items():
        lines += ["", f"## {title}", "", *(f"- {item}" for item in items or ["not known"])]
    return shortened("\n".join(lines) + "\n", LONGEST)


def figures(measured: Evaluation) -> list[str]:
    """How well it finds, with intervals."""
    interval = f"95 % interval {_percent(measured.recall_at_1_low)} to {_percent(measured.recall_at_1_high)}"
    asked = f"{measured.queries:,} queries of {measured.classes:,} classes"
    lines = [
        f"R@1 {_percent(measured.recall_at_1)} ({interval}, the wider by class and by query), {asked}",
        f"R@2 {_percent(measured.recall_at_2)}, R@4 {_percent(measured.recall_at_4)}, R@8 "
        f"{_percent(measured.recall_at_8)}, MAP@R {_percent(measured.map_at_r)}, R-precision "
        f"{_percent(measured.r_precision)}, R@1 averaged by class {_percent(measured.macro_recall_at_1)}",
    ]
    return lines + [f"R@1 after {stage.name}: {_percent(stage.recall_at_1)}" for stage in measured.stages]


def weak_classes(measured: Evaluation) -> list[str]:
    """The classes that are found worst."""
    found = sorted(measured.recall_by_class, key=lambda found: found.recall_at_1)[:WEAK_CLASSES]
    return [f"{plain(one.class_name)}: R@1 {_percent(one.recall_at_1)} of {one.queries:,} queries" for one in found]


def data(measured: Evaluation, tags: Mapping[str, str]) -> list[str]:
    """What it was trained and measured on, and by which code."""
    lines = [
        f"dataset `{measured.dataset_digest[:12]}`, evaluation `{measured.evaluation_digest[:12]}`",
        f"measured on {plain(measured.protocol)}",
    ]
    labels = {"pipeline run": "pipeline_run", "its page": "pipeline_address", "code": "code_version"}
    return lines + [f"{label} {tags[f'rankone.{tag}']}" for label, tag in labels.items() if tags.get(f"rankone.{tag}")]


def method(config: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """The network, and what was decided while it was trained."""
    network = {"network": "architecture", "dimension": "dimension", "image size": "image_size", "head": "head"}
    config = {**config, "dimension": facts.get("dimension", config.get("dimension"))}  # another if refined or joined
    lines = [f"{label} {config[key]}" for label, key in network.items() if key in config]
    return lines + [f"{plain(str(value))}" for key, value in sorted(facts.items()) if key.endswith("_why")]


def cost(measured: Evaluation, tags: Mapping[str, str]) -> list[str]:
    """Seconds of the steps that this run took, and how fast the model embeds."""
    seconds = json.loads(tags.get("rankone.step_seconds", "{}"))
    lines = [f"{step} {value:,.0f} s" for step, value in seconds.items()]
    for speed in measured.speeds[-1:]:
        if speed.embedding_images_per_second:
            lines.append(f"embeds {speed.embedding_images_per_second:,.0f} images a second")
    return lines


def use(name: str, measured: Evaluation) -> list[str]:
    """How to call it, and from which similarity its answer may be trusted."""
    return [f"`models:/{name}@champion`: pictures in base64 in, embeddings of length 1 out", trust(measured.threshold)]


def trust(found: Acceptance) -> str:
    """From which similarity an answer may be trusted: only where the test queries accept it; else why from none."""
    asked = _percent(found.level)
    if found.value is None and not found.validation_queries:
        return "trust no similarity: none was chosen, for R@1 could not be measured on validation"
    if found.value is None and found.validation_queries < MINIMUM_ANSWERED:
        few = f"{found.validation_queries:,} validation queries are too few to choose one on"
        return f"trust no similarity: {few}, {MINIMUM_ANSWERED} are the least"
    if found.value is None:
        queries = f"{found.validation_queries:,} validation queries"
        return f"trust no similarity: none gives {asked} right answers to the {queries}"
    seen = "no query has such an answer"
    if found.precision is not None and found.precision_low is not None:
        sure = f"{_percent(found.precision_low)} or more with 95 % confidence; asked for: {asked}"
        right = f"{_percent(found.precision)} of those are right ({sure})"
        seen = f"{_percent(found.coverage)} of the queries have such an answer and {right}"
    if found.verdict == "accepted":
        return f"trust an answer from the cosine similarity {found.value:.4f} on: accepted on test, where {seen}"
    return f"trust no similarity: {found.value:.4f}, chosen on validation, is {found.verdict} on test, where {seen}"


def shortened(text: str, longest: int) -> str:
    """The text, without the last lines that are too much."""
    if len(text) <= longest:
        return text
    return text[: longest - 2].rpartition("\n")[0] + "\n…"


def plain(text: str, longest: int = LONGEST_TEXT) -> str:
    """One line that Markdown takes as it is, of so many characters at most."""
    line = " ".join(text.split())[:longest]
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in line)


def _percent(share: float) -> str:
    return f"{share:.2%}"
