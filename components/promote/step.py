"""promote: from a judged model to a version in the registry, and to the champion if it earns it."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

from components.launch import InputPath, OutputPath, Outputs, Scalar, launch
from components.promote.params import Params
from retrieval import promotion, registry
from retrieval.evaluation import FORMAT_VERSION as EVALUATION_FORMAT
from retrieval.evaluation import KIND as EVALUATION_KIND
from retrieval.evaluation import Evaluation, load_evaluation
from retrieval.gate import Evidence, Verdict, decide
from retrieval.ledger import CHALLENGER, CHAMPION
from retrieval.manifest import FILE_NAME, file_digest, files_in, read_manifest, write_manifest
from retrieval.model_card import model_card
from retrieval.model_folder import read_model_manifest
from retrieval.object_store import Address
from retrieval.publication import publish
from retrieval.registry import ModelVersion
from retrieval.tracking import PIPELINE_RUN, code_version, pipeline_run, step_run

KIND, FORMAT_VERSION, DECISION = "decision", 1, "decision.json"
PUBLICATION_FORMAT = 1


def promote(
    params: Params, tuned_model: InputPath, evaluation: InputPath, report: InputPath, decision: OutputPath
) -> Outputs:
    """Register the model, judge it against the champion, and move the alias if the verdict says so.

    The same model again makes no second version. Where it is champion already, only what was measured is recorded anew,
    so that a champion that was measured on new test images can be compared on them.
    """
    name, model = params.registered_model, read_model_manifest(tuned_model)
    measured, numbers = load_evaluation(evaluation), read_manifest(evaluation, EVALUATION_KIND, EVALUATION_FORMAT)
    if measured.model_digest != model.digest:
        raise ValueError(
            f"{evaluation} was measured on the model {measured.model_digest[:12]}, and {tuned_model} holds "
            f"{model.digest[:12]}; evaluate this model, or promote that one."
        )
    made_from = {"tuned_model": model.digest, "evaluation": numbers.digest, "report": file_digest(report)}
    with step_run("promote", params) as run:
        champion = registry.champion(name)
        verdict = held_back(params, judge(params, model.digest, measured, champion))
        judged = interval(measured) | judgement(verdict)
        tags = lineage(measured) | registry.lineage(pipeline_run(), run.run_id) | judged
        card = model_card(name, tuned_model, model, measured, tags)
        version = registry.register(tuned_model, name, model.digest, tags, run.run_id, measured.versions, card)
        registry.tag_version(name, version.version, changed(judged, version.tags))
        published = publish_model(params, version.version, tuned_model, report, made_from)
        move_alias(name, version.version, verdict, champion, f"runs:/{run.run_id}/{DECISION}")
        metadata = described(name, verdict, version) | published
        print(f"{headline(metadata)}: {verdict.reason}", flush=True)
        print(
            f"Measured on {measured.queries:,} queries of {measured.classes:,} classes; {measured.protocol}", flush=True
        )
        save_decision(decision, metadata, verdict, made_from)
        run.log_metrics({key: value for key, value in metadata.items() if isinstance(value, float)})
        run.set_tags({f"rankone.{key}": value for key, value in metadata.items()})
        run.log_artifact(report, name="report.html")
        run.log_artifact(decision / DECISION)
    return {"decision": metadata}


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


def judge(params: Params, model_digest: str, measured: Evaluation, champion: ModelVersion | None) -> Verdict:
    """The gate's verdict; that nothing changes when the model is champion already."""
    candidate = Evidence(measured.recall_at_1, measured.evaluation_digest, measured.queries)
    if champion is None or champion.model_digest != model_digest:
        old = champion.evidence if champion else None
        return decide(candidate, old, params.minimum_recall_at_1, params.minimum_gain)
    share = f"{measured.recall_at_1:.2%}"
    reason = f"version {champion.version} holds this very model and is already champion, with R@1 {share}."
    return Verdict(
        "unchanged", "unchanged", reason, candidate, champion.evidence, params.minimum_recall_at_1, params.minimum_gain
    )


def held_back(params: Params, verdict: Verdict) -> Verdict:
    """The verdict; where a person decides, a model that won waits."""
    waits = params.promote_mode == "manual" and verdict.outcome == "promoted"
    return replace(verdict, outcome="waiting") if waits else verdict


def move_alias(name: str, version: int, verdict: Verdict, champion: ModelVersion | None, report: str) -> None:
    """Make the model champion, or challenger where it waits, through the ledger.

    Raises:
        ConflictError: another model has become champion since this one was judged.
        AliasMovedError: somebody moved the alias by hand.
    """
    against = champion.version if champion else None
    if verdict.outcome == "promoted":
        promotion.promote(name, version, verdict.reason, against, report)
    elif verdict.outcome == "waiting":
        promotion.propose(name, version, verdict.reason, against, report)
    for notice in promotion.history(name).notices:
        print(f"Mind: {notice}", flush=True)


def lineage(measured: Evaluation) -> dict[str, str]:
    """Where a version comes from, as tags."""
    tags = {"rankone.dataset_digest": measured.dataset_digest, "rankone.code_version": code_version()}
    return tags | ({PIPELINE_RUN: pipeline_run()} if pipeline_run() else {})


def interval(measured: Evaluation) -> dict[str, str]:
    """Where R@1 lies, as tags."""
    ends = {"low": measured.recall_at_1_low, "high": measured.recall_at_1_high}
    return {f"rankone.recall_at_1_{end}": repr(share) for end, share in ends.items()}


def judgement(verdict: Verdict) -> dict[str, str]:
    """What was measured of a version and what the gate said, as tags."""
    return {
        "rankone.recall_at_1": repr(verdict.candidate.recall_at_1),
        "rankone.evaluation_digest": verdict.candidate.evaluation_digest,
        "rankone.queries": str(verdict.candidate.queries),
        "rankone.floor": str(verdict.floor),
        "rankone.minimum_gain": str(verdict.minimum_gain),
        "rankone.outcome": verdict.outcome,
        "rankone.rule": verdict.rule,
        "rankone.reason": verdict.reason,
    }


def changed(tags: dict[str, str], present: dict[str, str]) -> dict[str, str]:
    """Those tags that are not there yet."""
    return {name: text for name, text in tags.items() if present.get(name) != text}


def described(name: str, verdict: Verdict, version: ModelVersion) -> dict[str, Scalar]:
    """The decision as metadata of its artifact; a share that is no number is left out."""
    champion = verdict.champion.recall_at_1 if verdict.champion else math.nan
    shares = {"recall_at_1": verdict.candidate.recall_at_1, "champion_recall_at_1": champion}
    metadata: dict[str, Scalar] = {
        "outcome": verdict.outcome,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "registered_model": name,
        "version": version.version,
        "alias": {"rejected": "", "waiting": CHALLENGER}.get(verdict.outcome, CHAMPION),
        "minimum_recall_at_1": verdict.floor,
    }
    return metadata | {key: share for key, share in shares.items() if math.isfinite(share)}


def headline(metadata: dict[str, Scalar]) -> str:
    """The decision in a few words."""
    which = f"{metadata['registered_model']} version {metadata['version']}"
    return {
        "promoted": f"Promoted: {which} is now {CHAMPION}",
        "waiting": f"Waiting: {which} is now {CHALLENGER}; `rankone approve --reason ...` makes it {CHAMPION}",
        "rejected": f"Rejected: {which} is registered without the alias",
        "unchanged": f"Unchanged: {which} stays {CHAMPION}",
    }[str(metadata["outcome"])]


def save_decision(folder: Path, metadata: dict[str, Scalar], verdict: Verdict, made_from: dict[str, str]) -> None:
    """Write the decision folder: decision.json and manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(verdict) | metadata, indent=2, sort_keys=True)
    (folder / DECISION).write_text(text + "\n")
    write_manifest(folder, KIND, FORMAT_VERSION, made_from)


if __name__ == "__main__":
    launch(promote, Params)
