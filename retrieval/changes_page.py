"""The page of detect_changes: what is to be done and why, what is new of the images, whether they have drifted."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from retrieval.changes import Differences, sentence
from retrieval.charts import percent, shift_chart, similarity_chart
from retrieval.drift import Drift
from retrieval.retraining import Plan

TEMPLATE = "changes_page.html"
CLASSES_SHOWN = 200
CLASSES_DRAWN = 15


def changes_page(plan: Plan, versus: str, found: Differences | None, drifted: Drift | None, without_drift: str) -> str:
    """The page, one HTML file without references to others.

    Args:
        plan: what is to be done.
        versus: what the images are compared with, e.g. "the champion, digits version 3".
        found: how the images differ from its; None where that is not known.
        drifted: what it makes of the new images; None where that was not looked at,
        without_drift: and why not.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    chart = shifts = ""
    if drifted:
        similarities = (drifted.usual_similarities.tolist(), drifted.similarities.tolist())
        chart = similarity_chart(*similarities, drifted.far_below)
        shifts = shift_chart(drifted.shifts[:CLASSES_DRAWN], len(drifted.shifted))
    return environment.get_template(TEMPLATE).render(
        plan=plan,
        versus=versus,
        found=found,
        classes=sorted(found.by_class.items(), key=lambda row: (-sum(row[1]), row[0])) if found else [],
        sentence=sentence(found) if found else "",
        drift=drifted,
        without_drift=without_drift,
        chart=Markup(chart),
        shift_chart=Markup(shifts),
        percent=percent,
        shown=CLASSES_SHOWN,
    )
