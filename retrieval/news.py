"""What there is to say when a pipeline run has ended, found in its records, and how a message puts it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrieval.manifest import digest_of
from retrieval.redaction import without_credentials
from retrieval.run_records import RunRecords, StepRecord

FORMAT_VERSION = 1  # of the generic message
DECISION_STEP, ANNOUNCING_STEP = "promote", "announce"
FAILED, STOPPED, UNKNOWN = "failed", "stopped", "unknown"
ENDED_BADLY = ("FAILED", "KILLED", "RUNNING")  # of a step, once its pipeline run has ended
LONGEST_REASON = 1_500  # characters; an error may be a page long
SECTION, TEXT = 2_900, 2_900  # characters that Slack takes in a section (3,000), and shows well in a notification
PICTURES = {
    "promoted": ":large_green_circle:",
    "waiting": ":hourglass:",
    "rejected": ":large_yellow_circle:",
    "skipped": ":fast_forward:",
    FAILED: ":red_circle:",
    STOPPED: ":black_square_for_stop:",
}


@dataclass(frozen=True)
class Ending:
    """How a pipeline run ended, by whoever ran it.

    Attributes:
        state: SUCCEEDED, FAILED or CANCELLED; empty where nobody says.
        message: the runner's own words for a failure.
        step: that was at work, where the runner knows it.
    """

    state: str = ""
    message: str = ""
    step: str = ""


@dataclass(frozen=True)
class News:
    """What a message says.

    Attributes:
        run: key of the pipeline run.
        run_name: as MLflow's page shows it; empty where that is not known.
        outcome: promoted, waiting, rejected or skipped, as the gate decided; failed or stopped where it did not come so
            far; unknown where the run went well and its decision cannot be read.
        headline: the outcome in a few words.
        reason: why, in words.
        rule: of the gate, that decided; empty where it did not.
        state: of the whole run, by whoever ran it: SUCCEEDED, FAILED, CANCELLED or empty.
        failed_step: empty where none is known.
        registered_model: empty where the gate did not decide.
        model_version: that was registered.
        alias: that the version carries now; or empty.
        recall_at_1: of the version; None where it was not measured.
        champion_version: that it was compared with; empty where there was none.
        champion_recall_at_1: of that one, on the same images where the gate compared them.
        gain: difference of the two on the same queries, with the ends of its 95 % interval; None where not compared.
        gain_low: lower end.
        gain_high: upper end.
        links: addresses of pages by what they show.
    """

    run: str
    run_name: str
    outcome: str
    headline: str
    reason: str
    rule: str = ""
    state: str = ""
    failed_step: str = ""
    registered_model: str = ""
    model_version: str = ""
    alias: str = ""
    recall_at_1: float | None = None
    champion_version: str = ""
    champion_recall_at_1: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    links: Mapping[str, str] = field(default_factory=dict)


def news_of(key: str, records: RunRecords | None, ending: Ending, pipeline_page: str = "", trouble: str = "") -> News:
    """What there is to say of a pipeline run.

    A decision that promote recorded and ended well with is the outcome, whatever became of the run afterwards: the
    registry has moved. Without one, the run failed at the last step that did not end well.

    Args:
        key: of the run.
        records: what its steps left; None where they left nothing or it cannot be read.
        ending: what whoever ran it says.
        pipeline_page: address of the run's page outside MLflow, or empty.
        trouble: why the records cannot be read; or empty.
    """
    pages = {"pipeline": pipeline_page, "mlflow": records.page if records else ""}
    known: dict[str, Any] = {
        "run": key,
        "run_name": records.name if records else "",
        "state": ending.state,
        "links": {name: page for name, page in pages.items() if page.startswith(("https://", "http://"))},
    }
    decided = records.step(DECISION_STEP) if records else None
    if decided and decided.status == "FINISHED" and "rankone.outcome" in decided.tags:
        return News(**known, **_decision(decided.tags, ending))
    if ending.state == "SUCCEEDED" and not _unwell(records):
        why = trouble or "promote left no decision in MLflow"
        return News(
            **known, outcome=UNKNOWN, headline="Ended well, with a decision that cannot be read", reason=brief(why)
        )
    step, why = _failure(records, ending, trouble)
    stopped = ending.state.startswith("CANCEL")
    headline = f"{'Stopped' if stopped else 'Failed'}{f' at {step}' if step else ''}"
    outcome = STOPPED if stopped else FAILED
    return News(**known, outcome=outcome, headline=headline, reason=brief(why), failed_step=step)


def brief(text: str, most: int = LONGEST_REASON) -> str:
    """A text without the credentials of addresses in it, cut where it is too long; an error names itself at its end."""
    plain = without_credentials(text).strip()
    return plain if len(plain) <= most else plain[: most // 2] + " ... " + plain[-(most // 2) :]


def generic(news: News) -> dict[str, Any]:
    """The message as JSON for programs; see docs/messages.md.

    `id` is the same for the same run and outcome: a receiver that has seen it has seen the message.
    """
    compared = {"gain": news.gain, "gain_low": news.gain_low, "gain_high": news.gain_high}
    champion = {"version": news.champion_version, "recall_at_1": news.champion_recall_at_1}
    return {
        "format_version": FORMAT_VERSION,
        "id": digest_of([news.run, news.outcome])[:32],
        "event": "rankone.run_ended",
        "run": {"key": news.run, "name": news.run_name, "state": news.state, "failed_step": news.failed_step},
        "outcome": news.outcome,
        "headline": news.headline,
        "rule": news.rule,
        "reason": news.reason,
        "model": {
            "name": news.registered_model,
            "version": news.model_version,
            "alias": news.alias,
            "recall_at_1": news.recall_at_1,
        },
        "champion": champion if news.champion_version else None,
        "comparison": compared if news.gain is not None else None,
        "links": dict(news.links),
    }


def slack(news: News) -> dict[str, Any]:
    """The message as Slack's incoming webhooks take it, and those of Mattermost and others that follow them."""
    lines = [f"*{escaped(news.headline, 300)}*", escaped(news.reason, SECTION - 400)]
    blocks = [_section("\n".join(filter(None, [f"{PICTURES.get(news.outcome, '')} {lines[0]}".strip(), lines[1]])))]
    if measured := measured_line(news):
        blocks.append(_section(escaped(measured, SECTION)))
    links = [f"<{_address(page)}|{escaped(name, 50)}>" for name, page in news.links.items() if len(page) < 1_000]
    named = f"run {news.run_name or news.run}"
    foot = {"type": "mrkdwn", "text": " | ".join([escaped(named, 300), *links]), "verbatim": True}
    blocks.append({"type": "context", "elements": [foot]})
    said = [news.headline, news.reason, measured]
    return {"text": escaped("\n".join(filter(None, said)), TEXT), "blocks": blocks}


FORMATS: dict[str, Callable[[News], dict[str, Any]]] = {"generic": generic, "slack": slack}


def measured_line(news: News) -> str:
    """R@1 against the champion's, in words; empty where nothing was measured."""
    if news.recall_at_1 is None:
        return ""
    text = f"R@1 {news.recall_at_1:.2%}"
    if news.champion_recall_at_1 is not None:
        text += f", champion version {news.champion_version} {news.champion_recall_at_1:.2%}"
    if news.gain is not None and news.gain_low is not None and news.gain_high is not None:
        ends = f"{100 * news.gain_low:+.2f} to {100 * news.gain_high:+.2f}"
        text += f", gain {100 * news.gain:+.2f} points (95 % interval {ends})"
    return text


def escaped(text: str, most: int) -> str:
    """A text in which Slack finds no command, no longer than `most` characters as it is sent."""
    signs = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    sent: list[str] = []
    length = 0
    for sign in text:
        piece = signs.get(sign, sign)
        if length + len(piece) > most - 3:  # room for the dots
            return "".join(sent) + "..."
        sent.append(piece)
        length += len(piece)
    return "".join(sent)


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}


def _address(page: str) -> str:
    """An address that ends nowhere before its end in Slack's own notation."""
    return "".join({"<": "%3C", ">": "%3E", "|": "%7C", " ": "%20", "&": "&amp;"}.get(sign, sign) for sign in page)


def _decision(tags: Mapping[str, str], ending: Ending) -> dict[str, Any]:
    said = {name.removeprefix("rankone."): text for name, text in tags.items()}
    outcome, alias = said["outcome"], said.get("alias", "")
    number = said.get("version") or said.get("champion_version")  # a run that was skipped made no version
    which = said.get("registered_model", "the model") + (f" version {number}" if number else "")
    headline = {
        "promoted": f"Promoted: {which} is now {alias or 'champion'}",
        "waiting": f"Waiting for approval: {which}",
        "rejected": f"Rejected ({said.get('rule', '')}): {which}",
        "skipped": f"Skipped ({said.get('rule', '')}): {which} stays as it is",
    }.get(outcome, f"{outcome}: {which}")
    badly = ending.state.startswith(("FAIL", "CANCEL"))
    after = f" The run itself ended as {ending.state}: {ending.message or 'no more is known.'}" if badly else ""
    numbers = ("recall_at_1", "champion_recall_at_1", "gain", "gain_low", "gain_high")
    return {
        "outcome": outcome,
        "headline": headline,
        "reason": brief(said.get("reason", "") + after),
        "rule": said.get("rule", ""),
        "registered_model": said.get("registered_model", ""),
        "model_version": said.get("version", ""),
        "alias": alias,
        "champion_version": said.get("champion_version", ""),
        **{name: _number(said.get(name, "")) for name in numbers},
    }


def _unwell(records: RunRecords | None) -> StepRecord | None:
    """The last step that did not end well; this one, which is at work, apart."""
    steps = [step for step in records.steps if step.step != ANNOUNCING_STEP] if records else []
    return next((step for step in reversed(steps) if step.status in ENDED_BADLY), None)


def _failure(records: RunRecords | None, ending: Ending, trouble: str) -> tuple[str, str]:
    """The step that failed, empty where that is not known, and why."""
    found = _unwell(records)
    if found and ending.step in ("", found.step):
        gone = "its process ended without a word: killed, or out of memory"
        return found.step, found.tags.get("rankone.error", gone if found.status != "FAILED" else "it does not say why")
    if ending.step:
        return ending.step, ending.message or trouble or "it left no record in MLflow"
    last = records.steps[-1].step if records and records.steps else ""
    after = f"no step after {last} left a record in MLflow" if last else "no step left a record in MLflow"
    return "", ". ".join(filter(None, [ending.message.rstrip(". "), trouble or after]))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
