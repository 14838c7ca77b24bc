"""The model registry in MLflow: versions with their lineage, and the alias that says which one is champion.

Aliases only; MLflow's stages are deprecated, and its `latest` is the highest version, judged or not. Every call goes
through `retrieval.tracking`, which knows where MLflow is.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from retrieval.evidence import Evidence
from retrieval.manifest import digest_of
from retrieval.model_folder import CONFIG, read_model_manifest
from retrieval.tracking import TrackingError, client, loading, open_channel, tracking_uri

CHAMPION = "champion"
KEY = "rankone.key"  # tag that makes a second registration of the same model find the first
SERVED_MODEL = Path(__file__).with_name("served_model.py")
SERVED_WITH = ("mlflow", "torch", "torchvision", "safetensors", "numpy", "pillow", "pandas")
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
    """

    name: str
    version: int
    run_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)

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


def champion(name: str) -> ModelVersion | None:
    """The version that carries the alias `champion`; None where the model or the alias is missing."""
    return _version_or_none("find_champion", name=name)


def register(
    model_folder: Path,
    name: str,
    model_digest: str,
    tags: Mapping[str, str],
    run_id: str,
    versions: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register a model folder as a new version, or find the version that holds the same model already.

    Args:
        model_folder: weights.safetensors, config.json and manifest.json; copied.
        name: of the registered model; made when missing.
        model_digest: of the folder's manifest. With the name it is the key: one model, one version.
        tags: lineage and evidence; a version that is found keeps its own.
        run_id: the run that the model is logged in.
        versions: of the packages it was trained with, where they are not installed here.

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
    )
    assert found is not None
    return found


def set_champion(name: str, number: int) -> None:
    """Move the alias `champion`, and read it back.

    Raises:
        TrackingError: the alias is elsewhere afterwards: somebody else moved it at the same time.
    """
    _ask("move_champion", name=name, number=number)


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


def _ask(action: str, **arguments: Any) -> Any:
    channel = open_channel()
    try:
        return channel.ask(action, **arguments)
    finally:
        channel.close()


def _version_or_none(action: str, **arguments: Any) -> ModelVersion | None:
    found = _ask(action, **arguments)
    return ModelVersion(**found) if found else None


def _find_champion(name: str) -> dict[str, Any] | None:
    from mlflow.exceptions import MlflowException

    try:
        aliases = client().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return _described(client().get_model_version(name, str(aliases[CHAMPION]))) if CHAMPION in aliases else None


def _register(
    model_folder: str, name: str, model_digest: str, tags: dict[str, str], run_id: str, versions: dict[str, str]
) -> dict[str, Any]:
    key = digest_of([name, model_digest])
    _make_registered_model(name)
    found = _of_key(name, key)
    if not found:
        logged = _log_model(Path(model_folder), run_id, versions)
        tags = tags | {KEY: key, "rankone.model_digest": model_digest}
        source = logged.artifact_location  # models:/ is looked up in MLflow's global store, which may be another
        mine = client().create_model_version(name, source, run_id, tags, model_id=logged.model_id)
        found = _of_key(name, key)
        if int(found[0].version) != int(mine.version):  # another process was first
            client().delete_model_version(name, mine.version)
    return _described(found[0])


def _move_champion(name: str, number: int) -> None:
    client().set_registered_model_alias(name, CHAMPION, str(number))
    now = client().get_registered_model(name).aliases.get(CHAMPION)
    if str(now) != str(number):
        raise TrackingError(
            f"alias '{CHAMPION}' of {name} was set to version {number} and is at {now}: somebody else moved it at the "
            "same time. Look at both, and promote again."
        )


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
    from mlflow.exceptions import MlflowException

    try:
        kept = {file.path for file in client().list_artifacts(run_id, name.rpartition("/")[0] or None)}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good
            return ""
        raise
    return str(client().download_artifacts(run_id, name, folder)) if name in kept else ""


ACTIONS: dict[str, Callable[..., Any]] = {
    "find_champion": _find_champion,
    "register": _register,
    "move_champion": _move_champion,
    "tag_version": _tag_version,
    "fetch_model": _fetch_model,
    "keep_file": _keep_file,
    "fetch_file": _fetch_file,
}


def _make_registered_model(name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client().create_registered_model(name, description="Image embeddings for retrieval, by Rankone.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _of_key(name: str, key: str) -> list[Any]:
    """Versions that hold the same model, lowest first."""
    found = client().search_model_versions(f"name = '{name}' and tags.`{KEY}` = '{key}'")
    return sorted(found, key=lambda found: int(found.version))


def _described(found: Any) -> dict[str, Any]:
    return asdict(ModelVersion(found.name, int(found.version), found.run_id or "", dict(found.tags)))


def _log_model(model_folder: Path, run_id: str, versions: Mapping[str, str]) -> Any:
    """Log the folder with the code that serves it as a model of the run."""
    from mlflow.models import Model

    experiment = client().get_run(run_id).info.experiment_id
    logged = client().create_logged_model(experiment, name="embedder", source_run_id=run_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_served_model(folder, model_folder, versions, Model(run_id=run_id, model_id=logged.model_id))
        client().log_model_artifacts(logged.model_id, str(folder))
    client().finalize_logged_model(logged.model_id, "READY")
    return logged


def save_served_model(folder: Path, model_folder: Path, versions: Mapping[str, str], mlflow_model: Any = None) -> None:
    """Write a folder that `mlflow models serve` and `mlflow.pyfunc.load_model` take: code and weights, no pickle.

    The code is `retrieval/served_model.py` with a copy of this library. Signature, example and requirements are given,
    so that nothing is run to find them out; torch is not imported.
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
        )


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
