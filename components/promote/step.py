"""promote: from a judged model to a version in the registry, and to the champion if it earns it."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.launch import AGAIN, SKIP, TRAIN, InputPath, InputText, OutputPath, Outputs, Scalar, launch
from components.promote.params import Params
from retrieval import promotion, registry
from retrieval.answer_records import find_answers, find_pictures, record_answers, record_pictures
from retrieval.answers import Answers, evidence_from, load_answers, same_queries
from retrieval.evaluation import ANSWERS, CHAMPION_ANSWERS, IMAGES, PICTURES, REFERENCE, Evaluation, load_evaluation
from retrieval.evaluation import FORMAT_VERSION as EVALUATION_FORMAT
from retrieval.evaluation import KIND as EVALUATION_KIND
from retrieval.evidence import Evidence
from retrieval.gate import NOT_MOVED, Outcome, Rule, Thresholds, Verdict, decide
from retrieval.gate_report import facts_of, page_of
from retrieval.ledger import CHALLENGER, CHAMPION, Entry, LedgerError, OvertakenError, utc_now
from retrieval.manifest import FILE_NAME, file_digest, files_in, read_manifest, write_manifest
from retrieval.model_card import model_card
from retrieval.model_folder import read_model_manifest
from retrieval.object_store import Address
from retrieval.pictures import load_pictures
from retrieval.publication import publish
from retrieval.registry import ModelVersion
from retrieval.retraining import TAG, TRAINED_AT, origin_tag
from retrieval.tracking import PIPELINE_RUN, StepRun, code_version, pipeline_run, step_run
from retrieval.verdict_page import commands_for, render_message, render_verdict, sections_of, side_of

KIND, FORMAT_VERSION, DECISION, PAGE = "decision", 2, "decision.json", "gate.md"
REPORT_FILE, VERDICT_FILE = "report.html", "verdict.html"  # as MLflow keeps the pages
PUBLICATION_FORMAT = 1
OF_THE_PIPELINE = ("outcome", "rule", "reason", "registered_model", "version", "champion_version")  # tags of its run
OF_THE_VERDICT = (*registry.JUDGED, "rankone.floor", "rankone.minimum_gain")  # tags of a version: asked and said
NOTE = "mlflow.note.content"  # tag that MLflow shows as the run's description


def promote(
    params: Params,
    tuned_model: InputPath,
    evaluation: InputPath,
    report: InputPath,
    decision: OutputPath,
    verdict_page: OutputPath,
    plan: InputText = InputText(TRAIN),  # noqa: B008
    made_from: InputText = InputText(""),  # noqa: B008 - a text
) -> Outputs:
    """Register the model, judge it against the champion, and move the alias if the verdict says so.

    The same model again makes no second version. Where it is champion already, only what was measured is recorded anew.
    Where an earlier attempt of this run made it that, the promotion is told again. Where there was nothing to train on,
    that is recorded and nothing else.
    """
    if plan.startswith(SKIP):
        return record_skipped(params, plan.removeprefix(SKIP), made_from, decision, verdict_page)
    name, model = params.registered_model, read_model_manifest(tuned_model)
    measured, numbers = load_evaluation(evaluation), read_manifest(evaluation, EVALUATION_KIND, EVALUATION_FORMAT)
    if measured.model_digest != model.digest:
        raise ValueError(
            f"{evaluation} was measured on the model {measured.model_digest[:12]}, and {tuned_model} holds "
            f"{model.digest[:12]}; evaluate this model, or promote that one."
        )
    digests = {"tuned_model": model.digest, "evaluation": numbers.digest, "report": file_digest(report)}
    answers = load_answers(evaluation / ANSWERS)
    with step_run("promote", params) as run:
        made, before = earlier_promotion(name, model.digest)
        champion = before if made else registry.champion(name)
        theirs = champion_answers(champion, answers, evaluation)
        verdict = decide(evidence_of(answers, measured), champion_evidence(champion, theirs), asked(params))
        verdict = as_promoted(verdict, made) if made else held_back(params, verdict)
        judged = interval(measured) | judgement(verdict)
        now = {TRAINED_AT: utc_now()}
        tags = (
            lineage(measured) | origin_tag(made_from, {}) | now | registry.lineage(pipeline_run(), run.run_id) | judged
        )
        card = model_card(name, tuned_model, model, measured, tags)
        version = registry.register(tuned_model, name, model.digest, tags, run.run_id, measured.versions, card)
        record_answers(version, answers)
        if (evaluation / PICTURES).is_file():
            record_pictures(version, answers.evaluation_digest, evaluation / PICTURES)
        told = changed(verdict, judged, version.tags) | origin_tag(made_from, version.tags)
        registry.tag_version(name, version.version, told)
        for file in (IMAGES, REFERENCE):
            if (evaluation / file).is_file():
                registry.keep_file(version, evaluation / file, f"data/{file}")
        published = publish_model(params, version.version, tuned_model, report, digests)
        past = move_alias(name, version.version, verdict, champion, f"runs:/{run.run_id}/{DECISION}")
        if plan.startswith(AGAIN):  # only now: until it is judged, the steps of this training may come from a cache
            registry.tag_version(name, version.version, now)
        metadata = described(name, verdict, version) | published
        print(f"{headline(metadata)}: {verdict.reason}", flush=True)
        print(
            f"Measured on {measured.queries:,} queries of {measured.classes:,} classes; {measured.protocol}", flush=True
        )
        new = side_of("candidate", replace(version, tags=version.tags | judged), answers)
        old = side_of("champion", champion, theirs) if champion and verdict.outcome != Outcome.SKIPPED else None
        commands = commands_for(name, version.version, verdict, past.previous, champion.version if champion else None)
        pictures = pictures_of(evaluation, champion, answers.evaluation_digest)
        verdict_page.parent.mkdir(parents=True, exist_ok=True)
        shown = render_verdict(verdict, headline(metadata), new, old, pictures, commands)
        verdict_page.write_text(shown, encoding="utf-8")
        page = page_of(verdict, headline(metadata), sections_of(new, old, commands))
        save_decision(decision, facts_of(verdict), metadata, page, digests)
        log_decision(run, metadata, page, decision, {REPORT_FILE: report, VERDICT_FILE: verdict_page})
    return {"decision": metadata, "verdict_page": {"outcome": metadata["outcome"], "rule": metadata["rule"]}}


def record_skipped(
    params: Params, reason: str, made_from: str, decision: OutputPath, verdict_page: OutputPath
) -> Outputs:
    """Record that there was nothing to train on."""
    with step_run("promote", params) as run:
        champion = registry.champion(params.registered_model)
        metadata: dict[str, Scalar] = {
            "outcome": str(Outcome.SKIPPED),
            "rule": str(Rule.UNCHANGED),
            "reason": reason,
            "registered_model": params.registered_model,
            "alias": "",
        }
        if champion is not None:
            metadata["champion_version"] = champion.version
        stays = f"; version {champion.version} stays {CHAMPION}" if champion else ""
        line = f"Skipped ({Rule.UNCHANGED}): {params.registered_model}"
        print(f"{line}: {reason}{stays}.", flush=True)
        verdict_page.parent.mkdir(parents=True, exist_ok=True)
        verdict_page.write_text(render_message(line, f"{reason}{stays}."), encoding="utf-8")
        page = f"**{line}**: {reason}{stays}.\n"
        save_decision(decision, {TAG: made_from}, metadata, page, {})
        log_decision(run, metadata, page, decision, {VERDICT_FILE: verdict_page})
    return {"decision": metadata, "verdict_page": {"outcome": metadata["outcome"], "rule": metadata["rule"]}}


def asked(params: Params) -> Thresholds:
    """What the knobs ask of a champion."""
    return Thresholds(
        floor=params.minimum_recall_at_1,
        minimum_gain=params.minimum_gain,
        maximum_regression=params.maximum_regression,
        minimum_queries=params.minimum_queries,
        maximum_class_drop=params.maximum_class_drop,
        fail_on_class_drop=params.fail_on_class_drop,
        maximum_dimension=params.maximum_dimension,
        minimum_images_per_second=params.minimum_images_per_second,
    )


def earlier_promotion(name: str, model_digest: str) -> tuple[Entry | None, ModelVersion | None]:
    """The entry by which an earlier attempt of this run made the model champion, and the champion of before.

    Either is None where there is none, the champion of before also where it was deleted.
    """
    entries = promotion.promotions_by_this_run(name)
    versions = {found.version: found for found in registry.versions_of(name)} if entries else {}
    for entry in entries:
        if entry.to in versions and versions[entry.to].model_digest == model_digest:
            return entry, versions.get(entry.before) if entry.before is not None else None
    return None, None


def as_promoted(verdict: Verdict, made: Entry) -> Verdict:
    """The verdict that a promotion was made on, found again against the champion of before.

    The same numbers give the same verdict. Where some are gone, the ledger's reason stands without a comparison.
    """
    rule = Rule.FIRST_MODEL if made.before is None else Rule.BETTER
    found = verdict if verdict.rule == rule else replace(verdict, checks=(), comparison=None)
    return replace(found, outcome=Outcome.PROMOTED, rule=rule, reason=made.why)


def evidence_of(answers: Answers, measured: Evaluation) -> Evidence:
    """What evaluate found of the candidate."""
    return replace(evidence_from(answers), recall_at_1=measured.recall_at_1, queries=measured.queries)


def champion_answers(champion: ModelVersion | None, candidate: Answers, evaluation: Path) -> Answers | None:
    """What the champion answered to the candidate's queries: as recorded in the registry, or as evaluate scored it."""
    if champion is None:
        return None
    scored = evaluation / CHAMPION_ANSWERS
    answers = find_answers(champion, candidate.evaluation_digest)
    if answers is None and scored.is_file():
        answers = load_answers(scored)
    if answers is None or answers.model_digest != champion.model_digest or not same_queries(answers, candidate):
        return None
    return answers


def champion_evidence(champion: ModelVersion | None, answers: Answers | None) -> Evidence | None:
    """What is known of the champion on the candidate's queries; without answers, what the registry says of others."""
    if champion is None:
        return None
    if answers is None:
        return replace(champion.evidence, model_digest=champion.model_digest)
    return replace(evidence_from(answers), version=str(champion.version))


def pictures_of(evaluation: Path, champion: ModelVersion | None, digest: str) -> dict[str, bytes]:
    """Pictures of test images, those that evaluate made and those that were kept with the champion."""
    kept = find_pictures(champion, digest) if champion else {}
    made = evaluation / PICTURES
    return kept | (load_pictures(made) if made.is_file() else {})


def publish_model(
    params: Params, version: int, model: Path, report: Path, made_from: dict[str, str]
) -> dict[str, Scalar]:
    """Keep model and report in the bucket that was asked for, before the alias moves; says where."""
    if not params.publish_to:
        return {}
    address = Address.parse(params.publish_to) / params.registered_model / str(version)
    files = {f"model/{name}": model / name for name in (*files_in(model), FILE_NAME)} | {"report.html": report}
    facts = {"registered_model": params.registered_model, "version": version}
    publish(files, address, "publication", PUBLICATION_FORMAT, made_from, facts)
    print(f"Published at {address}", flush=True)
    return {"published": str(address)}


def held_back(params: Params, verdict: Verdict) -> Verdict:
    """The verdict; where a person decides, a model that won waits."""
    waits = params.promote_mode == "manual" and verdict.outcome == Outcome.PROMOTED
    return replace(verdict, outcome=Outcome.WAITING) if waits else verdict


def move_alias(
    name: str, version: int, verdict: Verdict, champion: ModelVersion | None, report: str
) -> promotion.History:
    """Make the model champion, or challenger where it waits, through the ledger; returns what this now says.

    Raises:
        ConflictError: another model has become champion since this one was judged.
        OvertakenError: an earlier attempt made it champion, and another model has become champion since.
        AliasMovedError: somebody moved the alias by hand.
    """
    against = champion.version if champion else None
    try:
        if verdict.outcome == Outcome.PROMOTED:
            promotion.promote(name, version, verdict.reason, against, report)
        elif verdict.outcome == Outcome.WAITING:
            promotion.propose(name, version, verdict.reason, against, report)
    except OvertakenError:  # it did win, as its tags say
        raise
    except LedgerError as error:  # its tags must not say that it won
        refusal = {"rankone.outcome": str(Outcome.REJECTED), "rankone.rule": NOT_MOVED, "rankone.reason": str(error)}
        registry.tag_version(name, version, refusal)
        raise
    past = promotion.history(name)
    for notice in past.notices:
        print(f"Mind: {notice}", flush=True)
    return past


def lineage(measured: Evaluation) -> dict[str, str]:
    """Where a version comes from, as tags."""
    tags = {
        "rankone.dataset_digest": measured.dataset_digest,
        "rankone.training_images": str(measured.training_images),
        "rankone.code_version": code_version(),
    }
    return tags | ({PIPELINE_RUN: pipeline_run()} if pipeline_run() else {})


def interval(measured: Evaluation) -> dict[str, str]:
    """Where R@1 lies, as tags."""
    ends = {"low": measured.recall_at_1_low, "high": measured.recall_at_1_high}
    return {f"rankone.recall_at_1_{end}": repr(share) for end, share in ends.items()}


def judgement(verdict: Verdict) -> dict[str, str]:
    """What was measured of a version and what the gate said, as tags."""
    against = verdict.champion.version if verdict.champion and verdict.outcome != Outcome.SKIPPED else ""
    return ({"rankone.judged_against": against} if against else {}) | {
        "rankone.recall_at_1": repr(verdict.candidate.recall_at_1),
        "rankone.evaluation_digest": verdict.candidate.evaluation_digest,
        "rankone.queries": str(verdict.candidate.queries),
        "rankone.floor": str(verdict.thresholds.floor),
        "rankone.minimum_gain": str(verdict.thresholds.minimum_gain),
        "rankone.outcome": str(verdict.outcome),
        "rankone.rule": str(verdict.rule),
        "rankone.reason": verdict.reason,
    }


def changed(verdict: Verdict, tags: dict[str, str], present: dict[str, str]) -> dict[str, str]:
    """Those tags that are not there yet; a champion that comes out again keeps the verdict that was found on it."""
    keeps = OF_THE_VERDICT if verdict.outcome == Outcome.SKIPPED and "rankone.outcome" in present else ()
    return {name: text for name, text in tags.items() if present.get(name) != text and name not in keeps}


def described(name: str, verdict: Verdict, version: ModelVersion) -> dict[str, Scalar]:
    """The decision as metadata of its artifact; a share that is no number is left out."""
    champion = verdict.champion.recall_at_1 if verdict.champion else math.nan
    shares = {"recall_at_1": verdict.candidate.recall_at_1, "champion_recall_at_1": champion}
    metadata: dict[str, Scalar] = {
        "outcome": str(verdict.outcome),
        "rule": str(verdict.rule),
        "reason": verdict.reason,
        "registered_model": name,
        "version": version.version,
        "alias": {Outcome.REJECTED: "", Outcome.WAITING: CHALLENGER}.get(verdict.outcome, CHAMPION),
        "minimum_recall_at_1": verdict.thresholds.floor,
    }
    if verdict.champion:
        metadata["champion_version"] = verdict.champion.version
    if found := verdict.comparison:
        metadata |= {"fixed": found.fixed, "broken": found.broken}
        shares |= {"gain": found.gain, "gain_low": found.low, "gain_high": found.high, "p_value": found.p_value}
    return metadata | {key: share for key, share in shares.items() if math.isfinite(share)}


def headline(metadata: dict[str, Scalar]) -> str:
    """The decision in a few words."""
    which = f"{metadata['registered_model']} version {metadata['version']}"
    return {
        Outcome.PROMOTED: f"Promoted: {which} is now {CHAMPION}",
        Outcome.WAITING: f"Waiting: {which} is now {CHALLENGER}; `rankone approve --reason ...` makes it {CHAMPION}",
        Outcome.REJECTED: f"Rejected ({metadata['rule']}): {which} is registered without the alias",
        Outcome.SKIPPED: f"Skipped ({metadata['rule']}): {which} stays {CHAMPION}",
    }[Outcome(str(metadata["outcome"]))]


def save_decision(
    folder: Path, facts: Mapping[str, Any], metadata: dict[str, Scalar], page: str, made_from: dict[str, str]
) -> None:
    """Write the decision folder: decision.json with every number, the page for people, and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, **metadata}, indent=2, sort_keys=True, allow_nan=False)
    (folder / DECISION).write_text(text + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page, encoding="utf-8")
    write_manifest(folder, KIND, FORMAT_VERSION, made_from)


def log_decision(
    run: StepRun, metadata: dict[str, Scalar], page: str, decision: Path, pages: Mapping[str, Path]
) -> None:
    """Put the decision where a person looks for it in MLflow: the page is the run's description."""
    run.log_metrics({key: value for key, value in metadata.items() if isinstance(value, float)})
    run.set_tags({f"rankone.{key}": value for key, value in metadata.items()} | {NOTE: page})
    run.tag_pipeline({f"rankone.{key}": metadata[key] for key in OF_THE_PIPELINE if metadata.get(key)})
    for name, path in pages.items():
        run.log_artifact(path, name=name)
    run.log_artifact(decision / DECISION)
    run.log_artifact(decision / PAGE)


if __name__ == "__main__":
    launch(promote, Params)
