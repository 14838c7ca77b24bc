"""Profiles: what each file says is what the compiled platform spec asks for; what cannot be is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from operations.compile import compile_pipeline, content_digest, write_resources
from operations.local_runner import ProcessTask, run_compiled
from operations.parameters import all_knobs, step_names
from operations.profiles import (
    ACCELERATED,
    PLAIN,
    Hardware,
    describe_profile,
    load_profile,
    parse_setting,
    parse_settings,
    profile_names,
    settings_of,
    size_of,
)

GPU_STEPS = {"pretrain", "finetune_metric", "finetune_softmax", "evaluate"}


class Compiled:
    """A compiled pipeline and what its platform spec says of each step."""

    def __init__(self, path: Path) -> None:
        self.specification, *platforms = yaml.safe_load_all(path.read_text())
        self.platform = platforms[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platforms else {}

    def executor(self, step: str) -> dict[str, Any]:
        return self.platform[f"exec-{step.replace('_', '-')}"]

    def resources(self, step: str) -> dict[str, Any]:
        executors = self.specification["deploymentSpec"]["executors"]
        return executors[f"exec-{step.replace('_', '-')}"]["container"]["resources"]

    def task(self, step: str) -> dict[str, Any]:
        root = self.specification["root"]["dag"]["tasks"]
        inside = self.specification["components"]["comp-exit-handler-1"]["dag"]["tasks"]
        return (root | inside)[step.replace("_", "-")]

    def default(self, parameter: str) -> Any:
        return self.specification["root"]["inputDefinitions"]["parameters"][parameter]["defaultValue"]

    def parameter_of(self, step: str, text: str) -> str:
        """The pipeline's parameter that a placeholder of a step's resources leads to."""
        channel = text.removeprefix("{{$.inputs.parameters['").removesuffix("']}}")
        return self.at_the_root(self.task(step)["inputs"]["parameters"][channel]["componentInputParameter"])

    def at_the_root(self, channel: str) -> str:
        """The pipeline's parameter that an input of a task is; the exit handler hands it on under another name."""
        handed_on = self.specification["root"]["dag"]["tasks"]["exit-handler-1"]["inputs"]["parameters"]
        return handed_on.get(channel, {}).get("componentInputParameter", channel)


@pytest.fixture(scope="module", params=profile_names())
def profile_and_compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    return request.param, Compiled(compile_pipeline(path, profile=load_profile(request.param)))


def parts_of(name: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """For each step the name of its part and what the profile's file says, read without the loader."""
    parts = yaml.safe_load((Path(pipeline.__file__).parent / "profiles" / f"{name}.yaml").read_text())
    return {step: (part := "accelerated" if step in GPU_STEPS else "plain", parts[part]) for step in step_names()}


def test_there_are_these_profiles_and_each_says_what_it_is_for() -> None:
    assert profile_names() == ["a100", "cpu", "h200", "mig", "one-gpu"]
    assert all(describe_profile(name) for name in profile_names())
    assert set(pipeline.ACCELERATED) == GPU_STEPS


def test_processors_memory_and_accelerator_are_parameters_with_the_profiles_defaults(profile_and_compiled) -> None:
    name, compiled = profile_and_compiled
    for step, (part, said) in parts_of(name).items():
        resources = compiled.resources(step)
        for field, parameter, value in (
            ("resourceCpuRequest", f"{part}_cpu", said["cpu"]),
            ("resourceMemoryRequest", f"{part}_memory", said["memory"]),
            ("resourceMemoryLimit", f"{part}_memory", said["memory"]),
        ):
            assert compiled.parameter_of(step, resources[field]) == parameter
            assert compiled.default(parameter) == value
        assert "resourceCpuLimit" not in resources
        if "accelerator" not in said:
            assert "accelerator" not in resources, f"{step} must stay off the GPUs"
            continue
        accelerator = resources["accelerator"]
        assert compiled.parameter_of(step, accelerator["resourceType"]) == "accelerator_type"
        assert compiled.parameter_of(step, accelerator["resourceCount"]) == "accelerator_count"
        assert compiled.default("accelerator_type") == said["accelerator"]
        assert compiled.default("accelerator_count") == str(said["accelerators"])


def test_selectors_and_tolerations_are_parameters_with_the_profiles_defaults(profile_and_compiled) -> None:
    name, compiled = profile_and_compiled
    for step, (part, said) in parts_of(name).items():
        executor = compiled.executor(step)
        selector = compiled.at_the_root(executor["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"])
        assert selector == f"{part}_node_selector"
        assert compiled.default(selector) == said.get("node_selector", {})
        (toleration,) = executor["tolerations"]
        tolerations = compiled.at_the_root(toleration["tolerationJson"]["componentInputParameter"])
        assert tolerations == f"{part}_tolerations"
        assert compiled.default(tolerations) == said.get("tolerations", [])


def test_shared_memory_scratch_space_and_timeout_are_those_of_the_profile(profile_and_compiled) -> None:
    name, compiled = profile_and_compiled
    for step, (_, said) in parts_of(name).items():
        executor = compiled.executor(step)
        mounts = {mount["mountPath"]: mount for mount in executor["emptyDirMounts"]}
        assert set(mounts) == {"/dev/shm", "/tmp"}
        assert mounts["/dev/shm"]["medium"] == "Memory"
        assert mounts["/dev/shm"]["sizeLimit"] == said["shared_memory"]
        assert "medium" not in mounts["/tmp"]
        assert mounts["/tmp"]["sizeLimit"] == said["ephemeral_storage"]
        assert executor["activeDeadlineSeconds"] == str(said["timeout_minutes"] * 60)
        assert executor["securityContext"] == {"runAsNonRoot": True}
        assert executor["podMetadata"] == {"labels": {"rankone/step": "true"}}


def test_every_step_is_tried_again_ever_less_often(profile_and_compiled) -> None:
    name, compiled = profile_and_compiled
    for step, (_, said) in parts_of(name).items():
        assert compiled.task(step)["retryPolicy"] == {
            "maxRetryCount": said["retries"],
            "backoffDuration": f"{said['backoff_seconds']}s",
            "backoffFactor": float(said["backoff_factor"]),
            "backoffMaxDuration": f"{said['longest_backoff_seconds']}s",
        }


def test_what_looks_at_the_world_outside_is_never_taken_from_a_cache(profile_and_compiled) -> None:
    _, compiled = profile_and_compiled
    cached = {step for step in step_names() if compiled.task(step)["cachingOptions"].get("enableCache")}
    assert cached == set(step_names()) - {"detect_changes", "promote", "announce"}


def test_addresses_come_from_the_config_map_and_credentials_from_secrets_alone(profile_and_compiled) -> None:
    _, compiled = profile_and_compiled
    for step in step_names():
        executor = compiled.executor(step)
        plain = {key["envVar"]: entry for entry in executor["configMapAsEnv"] for key in entry["keyToEnv"]}
        secret = {key["envVar"]: entry for entry in executor["secretAsEnv"] for key in entry["keyToEnv"]}
        assert plain["MLFLOW_TRACKING_URI"]["optional"] is False, "without it runs would be lost with their pods"
        assert {"AWS_ENDPOINT_URL", "AWS_REGION"} <= set(plain)
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"} <= set(secret)
        assert not any(word in name for name in plain for word in ("SECRET", "KEY", "PASSWORD", "TOKEN", "WEBHOOK"))
        assert ("RANKONE_WEBHOOK_URL" in secret) == (step == "announce"), "no other step needs to know it"


def test_a_profile_adds_its_settings_and_no_knob_changes(profile_and_compiled) -> None:
    name, compiled = profile_and_compiled
    parameters = compiled.specification["root"]["inputDefinitions"]["parameters"]
    settings = settings_of(load_profile(name))
    assert set(parameters) == set(all_knobs()) | set(settings)
    assert ("accelerator_count" in settings) == (name != "cpu")
    assert all(parameters[setting]["description"] for setting in settings)


def test_without_a_profile_the_pipeline_asks_for_nothing(tmp_path: Path) -> None:
    compiled = Compiled(compile_pipeline(tmp_path / "pipeline.yaml"))
    assert compiled.platform == {}
    assert "retryPolicy" not in compiled.task("pretrain")


GOOD = {
    "cpu": "4",
    "memory": "16Gi",
    "ephemeral_storage": "50Gi",
    "shared_memory": "8Gi",
    "timeout_minutes": 60,
    "retries": 2,
    "backoff_seconds": 30,
    "backoff_factor": 2,
    "longest_backoff_seconds": 600,
    "node_selector": {"gpu.example/kind": "h200"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "accelerator": "nvidia.com/gpu",
    "accelerators": 1,
}

WITHOUT_ACCELERATOR = {name: value for name, value in GOOD.items() if not name.startswith("accelerator")}


def written(tmp_path: Path, **changes: Any) -> str:
    """A profile whose accelerated part differs from a good one; None leaves a key out."""
    part = {name: value for name, value in (GOOD | changes).items() if value is not None}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({ACCELERATED: part, PLAIN: WITHOUT_ACCELERATOR}))
    return str(path)


def test_a_profile_file_of_ones_own(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path))
    assert profile.name == "mine"
    assert profile.accelerated == Hardware(**GOOD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 1}, "mine.yaml, accelerated: there is no key 'gpus'"),
        ({"memori": "3Gi"}, "did you mean memory"),
        ({"memory": None}, "accelerated lacks memory"),
        ({"memory": 16}, "memory is 16; it must be a text. Quote it"),
        ({"memory": "16GB"}, "memory is '16GB'; it must be an amount like 16Gi"),
        ({"memory": "0Gi"}, "memory is '0Gi'"),
        ({"cpu": "four"}, "cpu is 'four'; it must be a number of processors"),
        ({"cpu": "0"}, "cpu is '0'"),
        ({"ephemeral_storage": "-5Gi"}, "ephemeral_storage is '-5Gi'"),
        ({"shared_memory": "32Gi"}, "shared_memory is 32Gi, more than memory, 16Gi"),
        ({"timeout_minutes": 0}, "timeout_minutes is 0"),
        ({"timeout_minutes": "1h"}, "timeout_minutes is '1h'; it must be a whole number"),
        ({"retries": -1}, "retries is -1"),
        ({"retries": True}, "retries is True; it must be a whole number"),
        ({"backoff_factor": 0.5}, "backoff_factor is 0.5; it must be 1 or more"),
        ({"longest_backoff_seconds": 10}, "longest_backoff_seconds is 10, less than backoff_seconds, 30"),
        ({"node_selector": {"a": True}}, "node_selector has 'a': True; labels are texts"),
        ({"node_selector": {"a b": "c"}}, "node_selector has 'a b': 'c', which is no label"),
        ({"tolerations": [{"keys": "a"}]}, "tolerations has {'keys': 'a'}"),
        ({"tolerations": [{"key": "a", "operator": "In"}]}, "operator 'In'; choose one of: Exists, Equal"),
        ({"tolerations": [{"key": "a", "effect": "Never"}]}, "effect 'Never'; choose one of"),
        ({"tolerations": [{"operator": "Exists", "value": "b"}]}, "value beside the operator Exists"),
        ({"tolerations": [{"value": "b"}]}, "tolerations has no key"),
        ({"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 3}]}, "tolerationSeconds"),
        ({"accelerator": "gpu"}, "accelerator is 'gpu'; it must name a resource like nvidia.com/gpu"),
        ({"accelerators": None}, "give both or neither"),
        ({"accelerator": None}, "give both or neither"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"mine\.yaml") as refused:
        load_profile(path)
    assert message in str(refused.value)


def test_an_unknown_profile_lists_the_choices_and_a_part_cannot_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown profile 'h100'; choose one of: a100, cpu, h200, mig, one-gpu"):
        load_profile("h100")
    with pytest.raises(ValueError, match=r"There is no file '.*none\.yml'; give the path of a profile, or one"):
        load_profile(str(tmp_path / "none.yml"))
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump({ACCELERATED: GOOD}))
    with pytest.raises(ValueError, match="must have two parts, accelerated and plain"):
        load_profile(str(path))


def test_plain_steps_stay_off_the_gpus_whatever_a_profile_says(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    plain = GOOD | {"accelerator": "nvidia.com/mig-1g.18gb"}
    path.write_text(yaml.safe_dump({ACCELERATED: GOOD | {"accelerators": 2}, PLAIN: plain}))
    message = r"mixed\.yaml: plain has an accelerator; only the accelerated steps take one: leave it out of plain\."
    with pytest.raises(ValueError, match=message):
        load_profile(str(path))
    path.write_text(yaml.safe_dump({ACCELERATED: GOOD | {"accelerators": 2}, PLAIN: WITHOUT_ACCELERATOR}))
    assert settings_of(load_profile(str(path)))["accelerator_count"].default == "2"


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("2K", 2_000), ("2Ki", 2_048), ("3Gi", 3 * 2**30), ("1T", 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("accelerated_node_selector", '{"a": "b"}', {"a": "b"}),
        ("plain_tolerations", "[]", []),
        ("accelerated_memory", "64Gi", "64Gi"),
        ("plain_cpu", "500m", "500m"),
        ("accelerator_count", "8", "8"),
        ("accelerator_type", "amd.com/gpu", "amd.com/gpu"),
    ],
)
def test_a_run_decides_on_its_hardware(name: str, text: str, value: Any) -> None:
    assert parse_setting(settings_of(load_profile("h200"))[name], text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("accelerated_node_selector", "h200", "accelerated_node_selector is 'h200'; it must be JSON like"),
        ("accelerated_node_selector", "[]", "it must be JSON like"),
        ("plain_tolerations", '[{"effect": "x"}]', "effect 'x'"),
        ("accelerated_memory", "64 GB", "accelerated_memory is '64 GB'"),
        ("accelerator_count", "0", "accelerator_count is '0'"),
        ("accelerator_count", "1.5", "accelerator_count is '1.5'"),
    ],
)
def test_a_run_cannot_decide_nonsense(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"(is|has) ") as refused:
        parse_setting(settings_of(load_profile("h200"))[name], text)
    assert message in str(refused.value)


def test_a_run_cannot_have_less_memory_than_the_part_of_it_that_is_shared() -> None:
    profile = load_profile("one-gpu")
    assert parse_settings(profile, {"accelerated_memory": "8Gi"}) == {"accelerated_memory": "8Gi"}
    with pytest.raises(ValueError, match="accelerated_memory is '8G', less than the profile's shared_memory, 8Gi, "):
        parse_settings(profile, {"accelerated_memory": "8G"})
    with pytest.raises(ValueError, match=r"plain_memory is '1Gi', .* Give 2Gi or more"):
        parse_settings(profile, {"plain_memory": "1Gi"})


@pytest.mark.filterwarnings("ignore:Task .* have no effect in the current local runner")  # which is as it should be
def test_what_is_compiled_for_a_cluster_runs_here_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order, the inputs and the parameters are kfp.local's; only the work of each step is left out."""
    path = compile_pipeline(tmp_path / "pipeline.yaml", profile=load_profile("h200"))
    commands: list[list[str]] = []

    def work(task: ProcessTask) -> int:
        command = task._command
        commands.append(command)
        outputs = json.loads(command[command.index("--executor-input") + 1])["outputs"]
        artifacts = outputs.get("artifacts", {})
        for listed in artifacts.values():
            Path(listed["artifacts"][0]["uri"]).mkdir(parents=True)
        for text in outputs.get("parameters", {}).values():
            Path(text["outputFile"]).write_text("train")
        Path(outputs["outputFile"]).parent.mkdir(parents=True, exist_ok=True)
        Path(outputs["outputFile"]).write_text(json.dumps({"artifacts": artifacts}))
        return 0

    monkeypatch.setattr(ProcessTask, "_run_program", work)
    assert run_compiled(path, {"accelerator_count": "2"}, tmp_path / "artifacts", tmp_path / "cache", Silent())
    assert sorted(command[3] for command in commands) == step_names()
    options = {option.partition("=")[0] for command in commands for option in command if option[:2] == "--"}
    assert not {name for name in options if "accelerat" in name or "node_selector" in name}, "no step is told of them"


class Silent:
    def step_started(self, step: str) -> None: ...

    def step_said(self, step: str, line: str) -> None: ...

    def step_ended(self, result: object) -> None: ...


def test_resources_hold_the_same_pipeline_under_the_digest_of_its_content(tmp_path: Path) -> None:
    package = compile_pipeline(tmp_path / "pipeline.yaml", profile=load_profile("h200"))
    specification, platform = yaml.safe_load_all(package.read_text())
    made = write_resources(package, tmp_path / "resources.yaml", namespace="rankone")
    parent, version = yaml.safe_load_all(made.read_text())
    assert {parent["apiVersion"], version["apiVersion"]} == {"pipelines.kubeflow.org/v2beta1"}
    assert (parent["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert parent["metadata"] == {"name": "rankone", "namespace": "rankone"}
    assert version["metadata"] == {"name": f"rankone-{content_digest(package)}", "namespace": "rankone"}
    assert version["spec"]["pipelineName"] == "rankone"
    assert json.loads(json.dumps(version["spec"]["pipelineSpec"])) == specification
    assert version["spec"]["platformSpec"] == platform


def test_the_digest_is_of_what_a_pipeline_does(tmp_path: Path) -> None:
    one = compile_pipeline(tmp_path / "one.yaml", profile=load_profile("h200"))
    again = tmp_path / "again.yaml"
    again.write_text("# another comment\n" + one.read_text())
    assert content_digest(again) == content_digest(one)
    other = tmp_path / "other.yaml"
    for changed in (("sizeLimit: 48Gi", "sizeLimit: 49Gi"), ("maxRetryCount: 3", "maxRetryCount: 4")):
        other.write_text(one.read_text().replace(*changed))
        assert content_digest(other) != content_digest(one), changed
