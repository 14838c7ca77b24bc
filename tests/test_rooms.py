"""Who may import whom, and the contract that every step keeps; steps are found by listing folders."""

import ast
import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_origin, get_type_hints

import pytest

from components.descriptions import knob_descriptions
from components.launch import PLAN, FinalStatus, InputPath, InputText, OutputText, artifact_arguments, text_arguments
from operations.parameters import all_knobs, params_type, step_names

ROOT = Path(__file__).parents[1]
STEPS = step_names()
MLFLOW_ROOMS = {"retrieval/tracking.py", "retrieval/registry.py", "retrieval/served_model.py"}
# what operations may call
TORCH_FREE = {
    "fingerprint",
    "home",
    "layer_shapes",
    "manifest",
    "object_store",
    "progress",
    "tracking",
    "tracking_process",
    "registry",
}
TORCH_FREE |= {"ledger", "promotion", "comparison", "gate", "version_comparison"}
TORCH_FREE |= {"announcement", "news", "redaction", "run_records", "webhook"}


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(path)}


def sources(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))


def test_there_are_nine_steps() -> None:
    assert len(STEPS) == 9


@pytest.mark.parametrize("path", list(sources("retrieval")), ids=lambda path: path.name)
def test_the_library_knows_nothing_of_kubeflow(path: Path) -> None:
    assert not packages_of(path) & {"kfp", "components", "operations", "pipeline"}


@pytest.mark.parametrize("path", list(sources("retrieval")), ids=lambda path: path.name)
def test_mlflow_is_imported_in_one_place(path: Path) -> None:
    assert "mlflow" not in packages_of(path) or str(path.relative_to(ROOT)) in MLFLOW_ROOMS


@pytest.mark.parametrize("step", STEPS)
def test_a_step_keeps_to_its_room(step: str) -> None:
    folder = ROOT / "components" / step
    own = {"components", "components.launch", "components.knobs", f"components.{step}", f"components.{step}.params"}
    for name in imports_of(folder / "step.py"):
        if name.partition(".")[0] == "components":
            assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in own - {"components"}), name
    assert not packages_of(folder / "step.py") & {"kfp", "mlflow", "operations", "pipeline"}
    imported = imports_of(folder / "params.py")
    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "components"}
    assert all(name.startswith("components.knobs") for name in imported if name.partition(".")[0] == "components")
    assert packages_of(folder / "component.py") <= {"kfp", "components"}


@pytest.mark.parametrize("name", ["__main__.py", "launch.py", "knobs.py", "freed_memory.py"])
def test_what_every_image_carries_is_standard_library_only(name: str) -> None:
    assert packages_of(ROOT / "components" / name) <= {*sys.stdlib_module_names, "components"}
    ours = {each for each in imports_of(ROOT / "components" / name) if each.partition(".")[0] == "components"}
    assert all(each.startswith(("components.launch", "components.freed_memory")) for each in ours)


@pytest.mark.parametrize("path", list(sources("operations")), ids=lambda path: path.name)
def test_operations_call_only_what_needs_no_torch(path: Path) -> None:
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("retrieval.")}
    assert rooms <= TORCH_FREE
    assert not packages_of(path) & {"torch", "torchvision", "faiss", "sklearn"}


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    program = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_pipeline_loads_without_torch() -> None:
    loaded = loaded_by(
        "import pipeline, operations.run, operations.display, operations.local_runner, operations.command_line"
    )
    assert "kfp" in loaded
    assert not loaded & {"torch", "mlflow", "sklearn"}


def test_steps_load_without_kfp() -> None:
    loaded = loaded_by("; ".join(f"import components.{step}.step" for step in STEPS))
    assert "torch" in loaded
    assert "kfp" not in loaded


def test_data_and_registry_steps_load_without_torch() -> None:
    assert "torch" not in loaded_by(
        "import components.prepare_data.step, components.detect_changes.step, components.promote.step, "
        "components.announce.step"
    )


@pytest.mark.parametrize("step", STEPS)
def test_the_declared_artifacts_are_the_steps_arguments(step: str) -> None:
    component = getattr(importlib.import_module(f"components.{step}.component"), step)
    function = getattr(importlib.import_module(f"components.{step}.step"), step)
    arguments, texts = artifact_arguments(function), text_arguments(function)
    read = {name for name, kind in texts.items() if kind is InputText}
    written = {name for name, kind in texts.items() if kind is OutputText}
    read |= {name for name, kind in get_type_hints(function).items() if kind is FinalStatus}
    if arguments and "dataset" not in component.component_spec.outputs and PLAN not in written:
        read.add(PLAN)  # which the launcher reads
    knobs = {field.name for field in dataclasses.fields(params_type(step))}
    inputs = {name for name, kind in arguments.items() if kind is InputPath}
    assert not knobs & (set(arguments) | set(texts)), "a knob and an artifact of one name are one option"
    if len(texts) - len(read) > len(written):  # it is given every parameter of the pipeline
        knobs |= set(all_knobs())
    assert set(component.component_spec.inputs or {}) - knobs == inputs | read
    assert set(component.component_spec.outputs or {}) == (set(arguments) - inputs) | written
    assert component.component_spec.name == step.replace("_", "-")
    assert component.component_spec.description


@pytest.mark.parametrize("step", STEPS)
def test_every_knob_has_a_default_a_plain_type_and_a_description(step: str) -> None:
    kind = params_type(step)
    assert dataclasses.is_dataclass(kind)
    kinds = get_type_hints(kind).values()
    assert all(kind in (str, int, float, bool) or get_origin(kind) is tuple for kind in kinds)
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))
    assert kind.__dataclass_params__.frozen
    assert set(knob_descriptions(kind)) == {field.name for field in dataclasses.fields(kind)}


def test_no_file_is_called_after_nothing() -> None:
    empty = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "base"}
    names = {
        path.stem for folder in ("components", "retrieval", "operations", "benchmarks") for path in sources(folder)
    }
    assert not names & empty
