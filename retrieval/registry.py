"""The model registry in MLflow: versions with their lineage, one for each model; retrieval/promotion.py says who leads.

Aliases only; MLflow's stages are deprecated, and its `latest` is the highest version, judged or not. Every call goes
through `retrieval.tracking`, which knows where MLflow is.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from retrieval.evidence import Evidence
from retrieval.ledger import CHAMPION, look
from retrieval.ledger_store import Ledger, experiment_of
from retrieval.manifest import digest_of
from retrieval.model_folder import CONFIG, read_model_manifest
from retrieval.tracking import PIPELINE_RUN, client, error_code, loading, open_channel, server_address, tracking_uri

KEY = "rankone.key"  # tag that makes a second registration of the same model find the first
CARD = "model_card.md"
RUNS_LOOKED_AT = 200  # of a step, newest first
JUDGED = ("rankone.outcome", "rankone.rule", "rankone.reason")  # tags of a version that hold in its own registry only
ANSWERS, PICTURES = "answers", "pictures"  # folders of what is kept with the run of a version
OF_STEPS = {  # tags of a version, each told by its steps under another tag, where they know
    "rankone.image_digests": "rankone.image",
    "rankone.devices": "rankone.device",
}
SERVED_MODEL = Path(__file__).with_name("served_model.py")
SERVED_WITH = ("mlflow", "torch", "torchvision", "safetensors", "numpy", "pillow", "pandas", "simplejpeg")
GREY_PNG = (  # 8 x 8 pixels, in base64: the example of an input
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNsYIAAJgaKGAAmCACQtTEKkQAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model.

    Attributes:
        name: of the registered model.
        version: its number.
        run_id: of the run that registered it.
        tags: lineage, evidence and verdict.
        created: when it was registered, in seconds since 1970.
    """

    name: str
    version: int
    run_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    created: float = 0.0

    @property
    def model_digest(self) -> str:
        """Of the model folder; empty when it was registered by hand."""
        return self.tags.get("rankone.model_digest", "")

    @property
    def evidence(self) -> Evidence:
        """What is recorded of how well it finds; not a number where nothing is."""
        return Evidence(
            recall_at_1=_number(self.tags.get("rankone.recall_at_1", "nan")),
            evaluation_digest=self.tags.get("rankone.evaluation_digest", ""),
            queries=int(self.tags.get("rankone.queries", "0")),
            version=str(self.version),
        )


@dataclass(frozen=True)
class TrackedRun:
    """A run of a step, as MLflow has it.

    Attributes:
        run_id: of MLflow.
        status: FINISHED, FAILED, KILLED or RUNNING.
        ended: when it ended, or started where it has not ended; in seconds since 1970.
        tags: all of them.
    """

    run_id: str
    status: str
    ended: float
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def pipeline_run(self) -> str:
        """Key of the pipeline run that it belongs to; empty for none."""
        return self.tags.get(PIPELINE_RUN, "")


def champion(name: str) -> ModelVersion | None:
    """The version that carries the alias `champion`; None where the model or the alias is missing.

    Where a process stopped between the ledger and the alias, it is the ledger's: the alias follows at the next move.
    """
    return _version_or_none("find_champion", name=name)


def register(
    model_folder: Path,
    name: str,
    model_digest: str,
    tags: Mapping[str, str],
    run_id: str,
    versions: Mapping[str, str] | None = None,
    card: str = "",
) -> ModelVersion:
    """Register a model folder as a new version, or find the version that holds the same model already.

    Args:
        model_folder: weights.safetensors, config.json and manifest.json; copied.
        name: of the registered model; made when missing.
        model_digest: of the folder's manifest. With the name it is the key: one model, one version.
        tags: lineage and evidence; a version that is found keeps its own.
        run_id: the run that the model is logged in.
        versions: of the packages it was trained with, where they are not installed here.
        card: the model card, in Markdown: description of the version and a file of the model.

    Raises:
        TrackingError: MLflow refused it.
    """
    found = _version_or_none(
        "register",
        model_folder=str(model_folder.resolve()),
        name=name,
        model_digest=model_digest,
        tags=dict(tags),
        run_id=run_id,
        versions=dict(versions or {}),
        card=card,
    )
    assert found is not None
    return found


def lineage(pipeline_run: str, run_id: str) -> dict[str, str]:
    """What MLflow knows of a pipeline run, as tags of a version.

    Args:
        pipeline_run: its key; nothing is known without.
        run_id: of one of its steps.

    Returns:
        As JSON by step: the version of its code, which is the content of its image; the image that it ran in, where it
        ran in one; the device it used; how long it took. The digest of all parameters; and the address of the run's
        page: RANKONE_PIPELINE_ADDRESS, with the key for "{run}" in it, or MLflow's.
    """
    return _ask("lineage", pipeline_run=pipeline_run, run_id=run_id) if pipeline_run else {}


def tag_version(name: str, number: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    _ask("tag_version", name=name, number=number, tags=dict(tags))


def fetch_model(found: ModelVersion, folder: Path) -> Path:
    """Download a version's model, and check it.

    Args:
        found: the version.
        folder: where to; made when missing.

    Returns:
        The model folder, somewhere below `folder`: weights.safetensors, config.json and manifest.json.

    Raises:
        TrackingError: its files are gone or cannot be reached.
        ValueError: it holds no model folder, or another model than the one that was registered.
    """
    _ask("fetch_model", name=found.name, number=found.version, folder=str(folder.resolve()))
    holding = sorted(path.parent for path in folder.rglob(CONFIG))
    if len(holding) != 1:
        raise ValueError(
            f"{found.name} version {found.version} holds {len(holding)} model folders and must hold one, as those that "
            "promote registers do."
        )
    digest = read_model_manifest(holding[0]).digest
    if found.model_digest not in ("", digest):
        raise ValueError(
            f"{found.name} version {found.version} was registered as model {found.model_digest[:12]} and its files are "
            f"of model {digest[:12]}: they were replaced. Move the alias to a version that is whole."
        )
    return holding[0]


def keep_file(found: ModelVersion, path: Path, name: str) -> None:
    """Keep a file, as `name` ("folder/file"), with the run that registered a version; nothing where it has none."""
    if found.run_id:
        folder, _, name = name.rpartition("/")
        _ask("keep_file", run_id=found.run_id, path=str(path.resolve()), folder=folder, name=name)


def fetch_file(found: ModelVersion, name: str, folder: Path) -> Path | None:
    """Download what `keep_file` kept into an existing folder; None where there is no such file."""
    if not found.run_id:
        return None
    fetched = _ask("fetch_file", run_id=found.run_id, name=name, folder=str(folder.resolve()))
    return Path(fetched) if fetched else None


def kept_files(found: ModelVersion, folder: str) -> list[str]:
    """Names ("folder/file") of what `keep_file` kept in a folder; none where the run is gone."""
    return _ask("kept_files", run_id=found.run_id, folder=folder) if found.run_id else []


def page_address(name: str, number: int) -> str:
    """Address of a version's page in MLflow, without credentials; empty on the embedded store, which has none."""
    server = server_address()
    return f"{server}/#/models/{name}/versions/{number}" if server else ""


def _ask(action: str, **arguments: Any) -> Any:
    channel = open_channel()
    try:
        return channel.ask(action, **arguments)
    finally:
        channel.close()


def _version_or_none(action: str, **arguments: Any) -> ModelVersion | None:
    found = _ask(action, **arguments)
    return ModelVersion(**found) if found else None


def registered_models() -> list[str]:
    """Names of all registered models."""
    return _ask("registered_models")


def versions_of(name: str) -> list[ModelVersion]:
    """All versions of a registered model, newest first; none where it is missing."""
    return [ModelVersion(**found) for found in _ask("versions_of", name=name)]


def runs_of(name: str, step: str) -> list[TrackedRun]:
    """The latest runs of a step that has the knob registered_model, for a model; newest first, 200 at most."""
    return [TrackedRun(**found) for found in _ask("runs_of", name=name, step=step)]


def data_read(version: ModelVersion) -> float | None:
    """When the images of a version were read: the start of prepare_data, in seconds since 1970.

    None where its pipeline run took them from the step cache, or is not known.
    """
    found: float | None = _ask("data_read", pipeline_run=version.tags.get(PIPELINE_RUN, ""), run_id=version.run_id)
    return found


def _find_champion(name: str) -> dict[str, Any] | None:
    state = look(Ledger(name), CHAMPION)
    number = state.version if state.astray and state.explained else state.found
    return _described(client().get_model_version(name, str(number))) if number is not None else None


def _registered_models() -> list[str]:
    return sorted(found.name for found in _all_pages(lambda token: client().search_registered_models(page_token=token)))


def _versions_of(name: str) -> list[dict[str, Any]]:
    query = f"name = {_quoted(name)}"
    found = _all_pages(lambda token: client().search_model_versions(query, page_token=token))
    return [_described(version) for version in sorted(found, key=lambda found: -int(found.version))]


def _quoted(name: str) -> str:
    """A name in MLflow's filters, which know no escape; one that Rankone made holds no quotes, others may."""
    return f'"{name}"' if "'" in name else f"'{name}'"


def _all_pages(page: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        found = page(token)
        yield from found
        token = found.token
        if not token:
            return


def _runs_of(name: str, step: str) -> list[dict[str, Any]]:
    if "'" in name:  # no name that a step takes
        return []
    query = f"params.registered_model = '{name}' and tags.`rankone.step` = '{step}'"
    newest = ["attributes.start_time DESC"]
    places = [found.experiment_id for found in _all_pages(lambda token: client().search_experiments(page_token=token))]
    found = client().search_runs(places, query, max_results=RUNS_LOOKED_AT, order_by=newest)
    runs = [
        TrackedRun(
            run.info.run_id, run.info.status, (run.info.end_time or run.info.start_time) / 1_000, dict(run.data.tags)
        )
        for run in found
    ]
    return [asdict(run) for run in runs]


def _data_read(pipeline_run: str, run_id: str) -> float | None:
    from mlflow.exceptions import MlflowException

    if not pipeline_run or not run_id:
        return None
    try:
        experiment = client().get_run(run_id).info.experiment_id
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good
            return None
        raise
    query = f"tags.`{PIPELINE_RUN}` = '{pipeline_run}' and tags.`rankone.step` = 'prepare_data'"
    found = client().search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0].info.start_time / 1_000 if found else None


def _register(
    model_folder: str,
    name: str,
    model_digest: str,
    tags: dict[str, str],
    run_id: str,
    versions: dict[str, str],
    card: str,
) -> dict[str, Any]:
    key = digest_of([name, model_digest])
    _make_registered_model(name)
    found = _of_key(name, key)
    if not found:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            logged = _new_logged_model(run_id)
            from mlflow.models import Model

            served = Model(run_id=run_id, model_id=logged.model_id)
            save_served_model(folder, Path(model_folder), versions, served, model_digest, card)
            _log_files(logged, folder)
        tags = tags | {KEY: key, "rankone.model_digest": model_digest}
        found = [_create_version(name, logged, run_id, tags, card)]
    return _described(found[0])


def _create_version(name: str, logged: Any, run_id: str, tags: dict[str, str], card: str) -> Any:
    """Make a version of a logged model; of several made at once for one key the lowest stays and the others go."""
    source = logged.artifact_location  # models:/ is looked up in MLflow's global store, which may be another
    mine = client().create_model_version(name, source, run_id, tags, description=card, model_id=logged.model_id)
    first = _of_key(name, tags[KEY])[0]
    if int(first.version) != int(mine.version):  # another process was first
        client().delete_model_version(name, mine.version)
    return first


def _tag_version(name: str, number: int, tags: dict[str, str]) -> None:
    for label, text in tags.items():
        client().set_model_version_tag(name, str(number), label, text)


def _fetch_model(name: str, number: int, folder: str) -> None:
    with loading():
        from mlflow.artifacts import download_artifacts
    source = client().get_model_version_download_uri(name, str(number))
    download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=tracking_uri())


def _keep_file(run_id: str, path: str, folder: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        named = Path(temporary) / name
        named.symlink_to(path)
        client().log_artifact(run_id, str(named), folder or None)


def _fetch_file(run_id: str, name: str, folder: str) -> str:
    kept = _kept_files(run_id, name.rpartition("/")[0])
    return str(client().download_artifacts(run_id, name, folder)) if name in kept else ""


def _kept_files(run_id: str, folder: str) -> list[str]:
    from mlflow.exceptions import MlflowException

    try:
        return sorted(file.path for file in client().list_artifacts(run_id, folder or None))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good
            return []
        raise


def _lineage(pipeline_run: str, run_id: str) -> dict[str, str]:
    experiment = client().get_run(run_id).info.experiment_id
    query, oldest = f"tags.`{PIPELINE_RUN}` = '{pipeline_run}'", ["attributes.start_time ASC"]
    runs = client().search_runs([experiment], query, max_results=1_000, order_by=oldest)
    steps = {run.data.tags["rankone.step"]: run for run in runs if "rankone.step" in run.data.tags}  # the last attempt
    seconds = {
        step: (run.info.end_time - run.info.start_time) / 1000 for step, run in steps.items() if run.info.end_time
    }
    tags = {
        "rankone.images": json.dumps({step: run.data.tags["rankone.code_version"] for step, run in steps.items()}),
        "rankone.parameters_digest": digest_of({step: dict(run.data.params) for step, run in steps.items()}),
        "rankone.step_seconds": json.dumps(seconds),
    }
    for tag, label in OF_STEPS.items():
        if known := {step: run.data.tags[label] for step, run in steps.items() if run.data.tags.get(label)}:
            tags[tag] = json.dumps(known)
    address = os.environ.get("RANKONE_PIPELINE_ADDRESS", "").replace("{run}", pipeline_run)
    parent = next((run.info for run in runs if run.data.tags.get("rankone.kind") == "pipeline"), None)
    if parent and not address and (server := server_address()):
        address = f"{server}/#/experiments/{parent.experiment_id}/runs/{parent.run_id}"
    return tags | ({"rankone.pipeline_address": address} if address else {})


def _make_registered_model(name: str) -> None:
    try:
        client().create_registered_model(name, description="Image embeddings for retrieval, by Rankone.")
    except Exception as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise


def _of_key(name: str, key: str) -> list[Any]:
    """Versions that hold the same model, lowest first."""
    found = client().search_model_versions(f"name = {_quoted(name)} and tags.`{KEY}` = '{key}'")
    return sorted(found, key=lambda found: int(found.version))


def _described(found: Any) -> dict[str, Any]:
    created = (found.creation_timestamp or 0) / 1000
    return asdict(ModelVersion(found.name, int(found.version), found.run_id or "", dict(found.tags), created))


def _new_logged_model(run_id: str) -> Any:
    experiment = client().get_run(run_id).info.experiment_id
    return client().create_logged_model(experiment, name="embedder", source_run_id=run_id)


def _log_files(logged: Any, folder: Path) -> None:
    client().log_model_artifacts(logged.model_id, str(folder))
    client().finalize_logged_model(logged.model_id, "READY")


def copy_version(name: str, number: int, into: str) -> ModelVersion:
    """Copy a version into another registered model, files and all, or find the copy that is there.

    MLflow's own copy shares the files, and its garbage collection deletes them when the run that made them is deleted,
    whatever production serves. Here the copy belongs to a run in the ledger's experiment of `into`.

    Raises:
        ValueError: there is no such version, it was not registered by Rankone, or its files were altered.
    """
    found = _version_or_none("copy_version", name=name, number=number, into=into)
    assert found is not None
    return found


def _copy_version(name: str, number: int, into: str) -> dict[str, Any]:
    if name == into:
        raise ValueError(f"--into names {into}, where version {number} is already; leave it out.")
    version = client().get_model_version(name, str(number))
    digest = version.tags.get("rankone.model_digest")
    if not digest:
        raise ValueError(f"{name} version {number} was registered by hand, so that its files cannot be verified.")
    key = digest_of([into, digest])
    if found := _of_key(into, key):
        return _described(found[0])
    origin = {"rankone.copied_from": f"models:/{name}/{number}", KEY: key}
    with tempfile.TemporaryDirectory() as temporary:
        folder = _download(name, number, Path(temporary))
        check_served_model(folder, digest)
        _make_registered_model(into)  # only now: one without a version would be in the way of every command
        label = f"copy of {name} version {number}"
        run = client().create_run(experiment_of(into), tags={"rankone.kind": "copy"} | origin, run_name=label)
        logged = _new_logged_model(run.info.run_id)
        _log_files(logged, folder)
        for kept in (ANSWERS, PICTURES):
            _copy_kept(version.run_id or "", run.info.run_id, kept)
        client().set_terminated(run.info.run_id)
    tags = {label: text for label, text in version.tags.items() if label not in JUDGED} | origin
    return _described(_create_version(into, logged, run.info.run_id, tags, version.description or ""))


def _copy_kept(run_id: str, into: str, folder: str) -> None:
    for name in _kept_files(run_id, folder) if run_id else []:
        with tempfile.TemporaryDirectory() as temporary:
            client().log_artifact(into, _fetch_file(run_id, name, temporary), folder)


def _download(name: str, number: int, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    source = client().get_model_version_download_uri(name, str(number))
    return Path(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=tracking_uri()))


def check_served_model(folder: Path, digest: str) -> None:
    """Refuse the files of a version whose model is not the one that was registered.

    Raises:
        ValueError: a file is missing or was altered, or it is another model.
    """
    from retrieval.model_folder import read_model_manifest

    place = next(iter(sorted(folder.rglob("weights.safetensors"))), folder).parent
    if (manifest := read_model_manifest(place)).digest != digest:
        raise ValueError(f"{place} holds the model {manifest.digest[:12]}, and {digest[:12]} was registered.")


def save_served_model(
    folder: Path,
    model_folder: Path,
    versions: Mapping[str, str],
    mlflow_model: Any = None,
    model_digest: str = "",
    card: str = "",
) -> None:
    """Write a folder that `mlflow models serve` and `mlflow.pyfunc.load_model` take: code and weights, no pickle.

    The code is `retrieval/served_model.py` with a copy of this library. Signature, example and requirements are given,
    so that nothing is run to find them out; torch is not imported. Whoever loads it checks the files against
    `model_digest`.
    """
    with loading():
        import mlflow.pyfunc
        import pandas
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema
        from mlflow.types.schema import Array

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]), outputs=Schema([ColSpec(Array(DataType.double))])
    )
    columns = pandas.Index(["image"], dtype=object)  # MLflow compares them in a way that pandas 3 warns of otherwise
    with _plain_environment():
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(SERVED_MODEL),
            artifacts={"model": str(model_folder)},
            code_paths=[str(SERVED_MODEL.parent)],
            pip_requirements=requirements(versions),
            signature=signature,
            input_example=pandas.DataFrame([[GREY_PNG]], columns=columns),
            mlflow_model=mlflow_model,
            model_config={"model_digest": model_digest} if model_digest else None,
        )
    if card:
        (folder / CARD).write_text(card, encoding="utf-8")


ACTIONS: dict[str, Callable[..., Any]] = {
    "find_champion": _find_champion,
    "register": _register,
    "lineage": _lineage,
    "tag_version": _tag_version,
    "registered_models": _registered_models,
    "versions_of": _versions_of,
    "runs_of": _runs_of,
    "data_read": _data_read,
    "copy_version": _copy_version,
    "fetch_model": _fetch_model,
    "keep_file": _keep_file,
    "fetch_file": _fetch_file,
    "kept_files": _kept_files,
}


def requirements(versions: Mapping[str, str]) -> list[str]:
    """What serving needs, each at the version that is installed here or else that trained the model."""
    lines = []
    for package in SERVED_WITH:
        with contextlib.suppress(PackageNotFoundError):
            versions = {**versions, package: version(package)}
        pinned = versions.get(package, "").partition("+")[0]  # "+cpu" is no version that an index has
        lines.append(f"{package}=={pinned}" if pinned else package)
    return lines


@contextlib.contextmanager
def _plain_environment() -> Iterator[None]:
    """MLflow looks for a uv project in the current folder and would log its files."""
    from mlflow.environment_variables import MLFLOW_UV_AUTO_DETECT

    with contextlib.ExitStack() as stack:
        if not MLFLOW_UV_AUTO_DETECT.is_set():
            MLFLOW_UV_AUTO_DETECT.set(False)
            stack.callback(MLFLOW_UV_AUTO_DETECT.unset)
        yield


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
