from pathlib import Path

import pytest

from retrieval import registry
from retrieval.manifest import write_manifest
from retrieval.model_folder import read_model_manifest
from retrieval.promotion import promote
from retrieval.registry import (
    ModelVersion,
    champion,
    data_read,
    fetch_file,
    fetch_model,
    keep_file,
    register,
    runs_of,
    tag_version,
)
from retrieval.tracking import PIPELINE_RUN, TrackingError, client, experiment_id, step_run
from tests.processes import at_once

pytestmark = pytest.mark.usefixtures("mlflow_home")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder by its files; registering reads none of them."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    write_manifest(folder, "model", 1)
    return folder


def version_of(model_folder: Path, name: str, digest: str = "a" * 64, **tags: str) -> ModelVersion:
    with step_run("promote", {}) as run:
        return register(model_folder, name, digest, {f"rankone.{key}": text for key, text in tags.items()}, run.run_id)


def versions(name: str) -> list[int]:
    return sorted(int(found.version) for found in client().search_model_versions(f"name = '{name}'"))


def test_a_registry_without_the_model_or_the_alias_has_no_champion(model_folder: Path) -> None:
    assert champion("nobody") is None
    version_of(model_folder, "without-alias")
    assert champion("without-alias") is None


def test_a_version_carries_its_lineage_and_its_files(model_folder: Path) -> None:
    found = version_of(model_folder, "lineage", recall_at_1="0.95", evaluation_digest="e" * 64, queries="540")
    assert (found.name, found.version, found.model_digest) == ("lineage", 1, "a" * 64)
    assert (found.evidence.recall_at_1, found.evidence.queries, found.evidence.version) == (0.95, 540, "1")
    files = Path(client().get_model_version_download_uri("lineage", "1").removeprefix("file://").replace("%20", " "))
    assert [path.read_bytes() for path in files.rglob("weights.safetensors")] == [b"weights"]
    assert not list(files.rglob("*.pkl"))


def test_a_version_that_was_registered_by_hand_has_no_evidence() -> None:
    by_hand = ModelVersion("rankone", 3, tags={"rankone.recall_at_1": "good"})
    assert by_hand.evidence.recall_at_1 != by_hand.evidence.recall_at_1
    assert by_hand.evidence.evaluation_digest == ""
    assert by_hand.model_digest == ""


def test_a_retried_registration_leaves_one_version(model_folder: Path) -> None:
    first = version_of(model_folder, "retried", outcome="promoted")
    assert version_of(model_folder, "retried", outcome="rejected") == first
    assert versions("retried") == [1]
    assert version_of(model_folder, "retried", "b" * 64).version == 2
    assert version_of(model_folder, "retried") == first
    assert version_of(model_folder, "retried-elsewhere").version == 1


def test_a_registration_that_broke_off_halfway_is_made_again(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_log_files", broken)
        with pytest.raises(TrackingError, match="disk full"):
            version_of(model_folder, "halfway")
    assert versions("halfway") == []
    assert version_of(model_folder, "halfway").version == 1


def test_tags_of_a_version_are_renewed(model_folder: Path) -> None:
    version_of(model_folder, "tags", recall_at_1="0.5")
    promote("tags", 1, "It is the first.")
    tag_version("tags", 1, {"rankone.recall_at_1": "0.75"})
    assert champion("tags").evidence.recall_at_1 == 0.75


def register_once(folder: Path) -> int:
    return version_of(folder, "at-once").version


def test_registrations_at_once_leave_one_version(model_folder: Path) -> None:
    client()
    numbers = at_once(register_once, [model_folder] * 4)
    assert len(set(numbers)) == 1
    assert versions("at-once") == sorted(set(numbers))


@pytest.mark.parametrize(
    ("trained_with", "line"),
    [({"absent": "2.1.0+cpu"}, "absent==2.1.0"), ({}, "absent"), ({"mlflow": "0.1"}, None)],
)
def test_requirements_are_pinned_to_what_is_here_or_to_what_trained(
    trained_with: dict[str, str], line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SERVED_WITH", ("mlflow", "absent"))
    lines = registry.requirements(trained_with)
    assert lines[0].startswith("mlflow==3.")
    assert line is None or lines[1] == line


def test_the_model_of_a_version_comes_back_as_it_was_registered(model_folder: Path, tmp_path: Path) -> None:
    digest = write_manifest(model_folder, "model", 2).digest
    found = version_of(model_folder, "fetched", digest)
    fetched = fetch_model(found, tmp_path / "here")
    assert {path.name for path in fetched.iterdir()} == {"weights.safetensors", "config.json", "manifest.json"}
    assert read_model_manifest(fetched).digest == digest
    other = version_of(model_folder, "fetched", "b" * 64)
    with pytest.raises(ValueError, match="was registered as model bbbbbbbbbbbb and its files are of model"):
        fetch_model(other, tmp_path / "there")
    with pytest.raises(TrackingError):
        fetch_model(ModelVersion("nobody", 1), tmp_path / "nowhere")


def test_a_version_without_a_model_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"")
    found = version_of(tmp_path / "model", "strange")
    with pytest.raises(ValueError, match="holds 0 model folders and must hold one"):
        fetch_model(found, tmp_path / "here")


def test_a_file_is_kept_with_a_version_and_found_again(model_folder: Path, tmp_path: Path) -> None:
    found = version_of(model_folder, "files")
    (tmp_path / "note").write_text("one")
    keep_file(found, tmp_path / "note", "notes/first.txt")
    fetched = fetch_file(found, "notes/first.txt", tmp_path)
    assert fetched is not None
    assert fetched.read_text() == "one"
    assert fetch_file(found, "notes/second.txt", tmp_path) is None
    assert fetch_file(found, "nothing/first.txt", tmp_path) is None


def test_the_runs_of_a_step_come_newest_first_and_only_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", "p1")
    other = client().create_experiment("runs-of-another-experiment")
    for number, (place, step, name, status) in enumerate(
        [
            (experiment_id(), "promote", "runs-of", "FINISHED"),
            (other, "promote", "runs-of", "FAILED"),
            (experiment_id(), "promote", "runs-of-2", "FINISHED"),
            (experiment_id(), "evaluate", "runs-of", "FINISHED"),
        ]
    ):
        tags = {"rankone.step": step, PIPELINE_RUN: f"p{number}"}
        made = client().create_run(place, 1_000 * (number + 1), tags, step).info.run_id
        client().log_param(made, "registered_model", name)
        client().set_terminated(made, status, 1_000 * (number + 1) + 500)
    found = runs_of("runs-of", "promote")
    assert [(run.status, run.ended, run.pipeline_run) for run in found] == [
        ("FAILED", 2.5, "p1"),
        ("FINISHED", 1.5, "p0"),
    ]
    assert runs_of("o'clock", "promote") == []


def test_when_data_were_read_is_when_prepare_data_began(model_folder: Path) -> None:
    version = version_of(model_folder, "data-read", pipeline_run="read-1")
    assert version.tags[PIPELINE_RUN] == "read-1"
    assert data_read(version) is None  # taken from the step cache
    for seconds, key in ((7, "read-1"), (9, "read-1"), (11, "read-2")):
        tags = {"rankone.step": "prepare_data", PIPELINE_RUN: key}
        client().create_run(experiment_id(), seconds * 1_000, tags, "prepare_data")
    assert data_read(version) == 9  # of the last attempt
    assert data_read(ModelVersion("data-read", 2)) is None
    gone = ModelVersion("data-read", 3, "0" * 32, {PIPELINE_RUN: "read-1"})
    assert data_read(gone) is None
