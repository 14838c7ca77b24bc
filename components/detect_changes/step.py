"""Compares a run with the champion: is there anything to train on, which images are new, do they look different?"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from components.detect_changes.params import OPERATIONAL, Params
from components.launch import (
    AGAIN,
    SKIP,
    TRAIN,
    WITH,
    InputPath,
    OutputPath,
    Outputs,
    OutputText,
    PipelineParameters,
    Scalar,
    launch,
)
from retrieval import promotion, registry
from retrieval.changes import Differences, differences, image_list, sentence
from retrieval.changes_page import changes_page
from retrieval.dataset import Dataset
from retrieval.drift import Drift, drift, load_reference, some_of
from retrieval.evaluation import IMAGES, REFERENCE
from retrieval.model_folder import image_size_of, read_model_manifest, resize_of
from retrieval.object_store import Address, is_address, version_of
from retrieval.registry import ModelVersion
from retrieval.retraining import MadeFrom, Plan, parameters_digest, plan_of
from retrieval.tracking import TrackingError, code_version, exchange_folder, pipeline_run, step_run

BATCH_SIZE = 128
CODE = "RANKONE_PIPELINE_CODE"  # digest of the images of all steps, which compiling sets


def detect_changes(
    params: Params,
    dataset: InputPath,
    parameters: PipelineParameters,
    changes: OutputPath,
    plan: OutputText,
    made_from: OutputText,
) -> Outputs:
    """Say whether to train, what this run is made from, and what is new; write the page of it."""
    with step_run("detect_changes", params) as run:
        images = Dataset(dataset)
        code, weights = os.environ.get(CODE) or code_version(), weights_in_a_bucket(parameters)
        origin = MadeFrom(images.digest, parameters_digest({**parameters, **weights}, OPERATIONAL), code)
        champion = registry.champion(params.registered_model)
        planned = plan_of(
            origin,
            registry.versions_of(params.registered_model),
            champion,
            promotion.history(params.registered_model),
            time.time(),
            params.skip_unchanged,
            params.force,
            params.maximum_age_days,
            pipeline_run(),
        )
        print(f"{'Nothing to train on' if planned.skip else 'To train'}: {planned.reason}.", flush=True)
        found, versus = None, "there is no champion yet"
        if champion is not None:
            versus = f"the champion, {champion.name} version {champion.version}"
            found = compared(champion, images)
            if found is None:
                versus += ", of which no images are recorded"
            else:
                print(f"Images against those of {versus}: {sentence(found)}.", flush=True)
        drifted, without_drift = None, "nothing is trained" if planned.skip else versus
        if champion is not None and not planned.skip:
            drifted, without_drift = drift_of(champion, images, params)
        plan.write_text(plan_text(planned, **weights), encoding="utf-8")
        made_from.write_text(origin.text(), encoding="utf-8")
        changes.parent.mkdir(parents=True, exist_ok=True)
        changes.write_text(changes_page(planned, versus, found, drifted, without_drift), encoding="utf-8")
        metadata = described(planned, found, drifted)
        run.set_tags({f"rankone.{name}": value for name, value in metadata.items()})
        run.log_metrics({name: value for name, value in metadata.items() if isinstance(value, (int, float))})
        run.log_artifact(changes, name="changes.html")
    return {"changes": metadata}


def weights_in_a_bucket(parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameter `weights` as the object that lies there now; empty where it names none in a bucket.

    Raises:
        ValueError: the object is not there, or the store cannot be reached or refuses.
    """
    weights = parameters.get("weights", "")
    return {"weights": f"{weights}, etag {version_of(Address.parse(weights))}"} if is_address(weights) else {}


def plan_text(plan: Plan, weights: str = "") -> str:
    """The plan as all later steps are given it, see `components.launch`; `weights` as of `weights_in_a_bucket`."""
    if plan.skip:
        return SKIP + plan.reason
    if plan.again:
        return AGAIN + plan.again + (f", with {weights}" if weights else "")
    return WITH + weights if weights else TRAIN


def compared(champion: ModelVersion, images: Dataset) -> Differences | None:
    """How the images differ from the champion's; None where those are not recorded."""
    with exchange_folder() as temporary:
        path = registry.fetch_file(champion, f"data/{IMAGES}", Path(temporary))
        return differences(pq.read_table(path), image_list(images.index)) if path else None


def drift_of(champion: ModelVersion, images: Dataset, params: Params) -> tuple[Drift | None, str]:
    """What the champion makes of images that it was not trained or measured on; or why that was not looked at.

    Drift is a report: a champion that cannot be read does not stop the pipeline.
    """
    if params.drift_images == 0:
        return None, "drift_images is 0"
    try:
        with exchange_folder() as temporary:
            folder = Path(temporary)
            path = registry.fetch_file(champion, f"data/{REFERENCE}", folder)
            listed = registry.fetch_file(champion, f"data/{IMAGES}", folder)
            if path is None or listed is None:
                return None, "no reference is recorded with the champion"
            reference = load_reference(path)
            own = pq.read_table(listed, columns=["sha256", "class_name"])
            rows = unknown_to(set(own["sha256"].to_pylist()), images)
            if len(rows) == 0:
                return None, "every image is one that the champion knows"
            rows = rows[some_of(images.index["sha256"].take(rows).to_pylist(), params.drift_images)]
            model = registry.fetch_model(champion, folder / "model")
            fitted = resize_of(read_model_manifest(model))
            if fitted != images.resize:
                return None, f"the champion knows images of resize={fitted}, these are of resize={images.resize}"
            if (size := image_size_of(model)) > images.image_size:
                return None, f"the champion knows images of {size} px, these are stored at {images.image_size} px"
            embeddings = embedded(model, images, rows, params.device)
            classes = np.asarray(images.index["class_name"].to_pylist(), object)[rows]
            found = drift(reference, embeddings, classes, set(own["class_name"].to_pylist()))
    except (TrackingError, ValueError, OSError) as error:
        print(f"Drift was not looked at: {error}", flush=True)
        return None, str(error)
    print(f"Drift: {drift_sentence(found)}.", flush=True)
    return found, ""


def embedded(model: Path, images: Dataset, rows: np.ndarray, device: str) -> np.ndarray:
    """What a model makes of rows of a dataset, resized as it knows images: (m, d) float32."""
    from retrieval.devices import pick_device  # loads PyTorch: seconds, which most runs have no use for
    from retrieval.embedder import Embedder
    from retrieval.robustness import resized

    embedder = Embedder("champion", model, images, pick_device(device), BATCH_SIZE)
    return embedder.changed(rows, resized(embedder.model.config.image_size)).numpy()


def drift_sentence(found: Drift) -> str:
    """The findings in one sentence."""
    parts = []
    if found.seen.value is not None and found.usual.value is not None and found.excess_interval is not None:
        low, high = (100 * end for end in found.excess_interval)
        parts.append(
            f"{found.seen.value:.1%} of {found.seen.images:,} new images of known classes have no near neighbour among "
            f"those of the champion, where {found.usual.value:.1%} are usual ({low:+.1f} to {high:+.1f} points)"
        )
    if found.unseen.value is not None:
        classes = len(found.unseen_classes)
        parts.append(f"{found.unseen.value:.1%} of {found.unseen.images:,} of {classes:,} classes it has never had")
    parts.append(f"{len(found.shifted):,} of {len(found.shifts):,} classes have moved beyond chance")
    return "; ".join(parts)


def unknown_to(known: set[str], images: Dataset) -> np.ndarray:
    """Rows of the images that are not among those of known digests."""
    return np.flatnonzero([sha256 not in known for sha256 in images.index["sha256"].to_pylist()])


def described(plan: Plan, found: Differences | None, drifted: Drift | None) -> Mapping[str, Scalar]:
    """The findings as metadata of the page."""
    metadata: dict[str, Scalar] = {"plan": "skip" if plan.skip else "train", "plan_reason": plan.reason}
    if plan.version is not None:
        metadata["same_as_version"] = plan.version
    if found is not None:
        counted = ("new", "changed", "removed", "moved", "other_class", "other_split")
        metadata |= {f"images_{name}": getattr(found, name) for name in counted}
        metadata |= {"classes_new": len(found.new_classes), "classes_removed": len(found.removed_classes)}
    if drifted is not None:
        shares = {"": drifted.seen, "_usual": drifted.usual, "_unseen": drifted.unseen}
        found_shares = {f"drift_share{name}": share.value for name, share in shares.items()}
        found_shares["drift_excess"] = drifted.excess
        metadata |= {name: value for name, value in found_shares.items() if value is not None}
        if drifted.excess_interval is not None:
            metadata |= dict(zip(("drift_excess_low", "drift_excess_high"), drifted.excess_interval, strict=True))
        metadata |= {"drift_images": drifted.images, "drift_classes_unseen": len(drifted.unseen_classes)}
        metadata |= {"drift_classes_compared": len(drifted.shifts), "drift_classes_shifted": len(drifted.shifted)}
    return metadata


if __name__ == "__main__":
    launch(detect_changes, Params)
