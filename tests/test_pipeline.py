"""The compiled pipeline: as text against the golden file, and in what it means."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from operations.compile import compile_pipeline
from operations.parameters import all_knobs, params_type, step_names

GOLDEN = Path(__file__).parent / "golden" / "pipeline.yaml"
EDGES = {
    ("prepare_data", "detect_changes"),
    ("prepare_data", "pretrain"),
    ("prepare_data", "co_cluster"),
    ("prepare_data", "finetune_metric"),
    ("prepare_data", "finetune_softmax"),
    ("prepare_data", "evaluate"),
    ("pretrain", "co_cluster"),
    ("pretrain", "finetune_softmax"),
    ("pretrain", "evaluate"),
    ("co_cluster", "finetune_metric"),
    ("co_cluster", "evaluate"),
    ("finetune_metric", "finetune_softmax"),
    ("finetune_metric", "evaluate"),
    ("finetune_softmax", "evaluate"),
    ("finetune_softmax", "promote"),
    ("evaluate", "promote"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return yaml.safe_load(compile_pipeline(tmp_path_factory.mktemp("compiled") / "pipeline.yaml").read_text())


def tasks(compiled: dict[str, Any]) -> dict[str, Any]:
    """Those that the exit handler waits for, and itself."""
    inside = compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    outside = {name: task for name, task in compiled["root"]["dag"]["tasks"].items() if name != "exit-handler-1"}
    return {name.replace("-", "_"): task for name, task in (inside | outside).items()}


def test_is_the_golden_pipeline(tmp_path: Path) -> None:
    text = compile_pipeline(tmp_path / "pipeline.yaml", pinned=False).read_text()
    assert text == GOLDEN.read_text(), (
        "the compiled pipeline changed; if it should, run `make golden` and review the diff"
    )


def test_every_step_is_a_task_and_feeds_the_next(compiled: dict[str, Any]) -> None:
    assert sorted(tasks(compiled)) == step_names()
    edges = {
        (artifact["taskOutputArtifact"]["producerTask"].replace("-", "_"), consumer)
        for consumer, task in tasks(compiled).items()
        for artifact in task["inputs"].get("artifacts", {}).values()
    }
    assert edges == EDGES


def test_every_knob_is_a_parameter_that_reaches_its_steps(compiled: dict[str, Any]) -> None:
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == set(all_knobs())
    handed_on = compiled["root"]["dag"]["tasks"]["exit-handler-1"]["inputs"]["parameters"]
    for step, task in tasks(compiled).items():
        for name in params_type(step).__dataclass_fields__:
            channel = task["inputs"]["parameters"][name]["componentInputParameter"]
            assert name == channel or handed_on[channel] == {"componentInputParameter": name}
    assert all(parameter.get("description") for parameter in parameters.values())


def test_all_that_does_not_look_at_the_registry_may_come_from_a_cache(compiled: dict[str, Any]) -> None:
    cached = {step for step, task in tasks(compiled).items() if task["cachingOptions"].get("enableCache")}
    assert cached == set(step_names()) - {"detect_changes", "promote", "announce"}


def test_every_step_behind_it_is_given_the_plan(compiled: dict[str, Any]) -> None:
    follow = set(step_names()) - {"prepare_data", "detect_changes", "announce"}
    for step, task in tasks(compiled).items():
        plan = task["inputs"]["parameters"].get("plan")
        producer = {"outputParameterKey": "plan", "producerTask": "detect-changes"}
        assert plan == ({"taskOutputParameter": producer} if step in follow else None)


def test_changes_are_looked_for_in_every_parameter_and_in_the_code_of_every_step(tmp_path: Path) -> None:
    def container(**images: str) -> dict[str, Any]:
        names = {f"rankone-{name}": f"there/{name}@sha256:1" for name in ("data", "training", "evaluation", "registry")}
        path = compile_pipeline(tmp_path / "pipeline.yaml", images=names | images)
        return yaml.safe_load(path.read_text())["deploymentSpec"]["executors"]["exec-detect-changes"]["container"]

    found = container()
    given = {name.partition("=")[0].removeprefix("--run.") for name in found["args"]}
    given = {name.removeprefix("--") for name in given}
    assert set(all_knobs()) <= given
    code = told(found)["RANKONE_PIPELINE_CODE"]
    assert told(container())["RANKONE_PIPELINE_CODE"] == code
    for name in ("data", "training", "evaluation", "registry"):
        other = {f"rankone-{name}": f"there/{name}@sha256:2"}
        assert told(container(**other))["RANKONE_PIPELINE_CODE"] != code


def told(container: dict[str, Any]) -> dict[str, str]:
    """The variables that a container is given."""
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_announce_is_told_how_all_the_others_ended_and_waits_for_nothing_else(compiled: dict[str, Any]) -> None:
    told = compiled["root"]["dag"]["tasks"]["announce"]
    assert told["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert told["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}
    assert told["dependentTasks"] == ["exit-handler-1"]
    options = compiled["deploymentSpec"]["executors"]["exec-announce"]["container"]["args"]
    assert not [option for option in options if "status" in option], "it reads that where KFP's own executors do"


def test_every_image_has_a_tag_of_its_code(compiled: dict[str, Any]) -> None:
    images = [executor["container"]["image"] for executor in compiled["deploymentSpec"]["executors"].values()]
    assert len(images) == 9
    for image in images:
        name, _, tag = image.partition(":")
        assert name in {"rankone-data", "rankone-training", "rankone-evaluation", "rankone-registry"}
        assert len(tag) == 12


def test_given_values_become_defaults(tmp_path: Path) -> None:
    path = compile_pipeline(tmp_path / "pipeline.yaml", {"dimension": 128, "channels": (8, 8, 8)})
    parameters = yaml.safe_load(path.read_text())["root"]["inputDefinitions"]["parameters"]
    assert parameters["dimension"]["defaultValue"] == 128
    assert parameters["channels"]["defaultValue"] == [8, 8, 8]


def test_a_step_runs_in_the_image_that_is_given(tmp_path: Path) -> None:
    images = {f"rankone-{name}": f"there/{name}@sha256:1" for name in ("data", "training", "evaluation", "registry")}
    compiled = yaml.safe_load(compile_pipeline(tmp_path / "pipeline.yaml", images=images).read_text())
    found = [executor["container"]["image"] for executor in compiled["deploymentSpec"]["executors"].values()]
    assert set(found) == set(images.values())
    for executor in compiled["deploymentSpec"]["executors"].values():
        image = executor["container"]["image"]
        assert told(executor["container"])["RANKONE_IMAGE"] == image, "an image cannot know its own digest"
    del images["rankone-registry"]
    with pytest.raises(ValueError, match="announce runs in rankone-registry, which is not among the images"):
        compile_pipeline(tmp_path / "pipeline.yaml", images=images)
