"""The program that starts a step: the right one, and with nothing to do none."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.__main__ import declared_arguments, without_work
from components.launch import PLAN, SKIP, PipelineParameters, artifact_arguments, text_arguments, text_of

ROOT = Path(__file__).parent.parent.parent
STEPS = sorted(path.parent.name for path in (ROOT / "components").glob("*/step.py"))
PLANNED = ["pretrain", "co_cluster", "finetune_metric", "finetune_softmax", "evaluate"]  # carried out by the launcher
REASON = "data, code and parameters are those of version 3"


def components(*arguments: str, module: str = "components") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, *arguments], capture_output=True, text=True, cwd=ROOT
    )


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def paths(step: str, folder: Path) -> list[str]:
    folder.mkdir()
    (folder / "earlier").mkdir()
    kinds = {name: kind for name, kind in declared_arguments(step).items() if kind.endswith("putPath")}
    return [f"--{name}={folder / ('earlier' if kind == 'InputPath' else name)}" for name, kind in kinds.items()]


@pytest.mark.parametrize("step", STEPS)
def test_the_source_tells_of_a_step_what_its_function_does(step: str) -> None:
    function = getattr(importlib.import_module(f"components.{step}.step"), step)
    assert artifact_arguments(without_work(step, declared_arguments(step))) == artifact_arguments(function)
    assert (PLAN in declared_arguments(step)) == (PLAN in text_arguments(function))


@pytest.mark.parametrize("step", PLANNED)
def test_a_step_that_is_skipped_imports_nothing_and_writes_what_it_would_write(step: str, tmp_path: Path) -> None:
    quick = components(step, *paths(step, tmp_path / "quick"), f"--plan={SKIP}{REASON}")
    assert quick.returncode == 0, quick.stderr
    packages = {name.partition(".")[0] for name in imported(quick)}
    assert "runpy" in packages  # that the list is one
    assert not packages & {"numpy", "torch", "mlflow", "retrieval"}
    slow = components(*paths(step, tmp_path / "slow"), f"--plan={SKIP}{REASON}", module=f"components.{step}.step")
    assert slow.returncode == 0, slow.stderr
    told = [json.loads(done.stdout.split("\n", 1)[1]) for done in (quick, slow)]
    for outputs in told:
        for metadata in outputs.values():
            assert metadata.pop("step_seconds") < 60
            assert metadata.pop("step_cpu_seconds") < 60
    assert told[0] == told[1]
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "quick", tmp_path / "slow")
    ]
    assert files[0] == files[1]
    assert files[0]


def test_a_step_that_is_skipped_checks_its_knobs_all_the_same(tmp_path: Path) -> None:
    done = components("pretrain", *paths("pretrain", tmp_path / "a"), f"--plan={SKIP}{REASON}", "--pretrain_epochs=-1")
    assert done.returncode == 1
    assert "pretrain: pretrain_epochs is -1" in done.stderr


def test_a_step_that_asks_for_the_plan_itself_is_run() -> None:
    done = components("promote", f"--plan={SKIP}{REASON}")
    assert done.returncode == 1
    assert "promote: No path for '" in done.stderr
    assert "components.promote.params" in imported(done)


@pytest.mark.parametrize("step", STEPS)
def test_help_lists_every_option_of_a_step_and_loads_nothing(step: str) -> None:
    done = components(step, "--seed=3", "--help")
    assert done.returncode == 0, done.stderr
    assert not {name.partition(".")[0] for name in imported(done)} & {"numpy", "torch", "mlflow", "retrieval"}
    listed = dict(re.findall(r"^  --([\w.]+)=(.*)$", done.stdout, re.MULTILINE))
    function = getattr(importlib.import_module(f"components.{step}.step"), step)
    params = importlib.import_module(f"components.{step}.params").Params
    knobs = {knob.name: text_of(knob.default) for knob in dataclasses.fields(params)}
    texts = {"run.NAME" if kind is PipelineParameters else name for name, kind in text_arguments(function).items()}
    assert set(listed) == {*knobs, *artifact_arguments(function), *texts}
    assert {name: listed[name] for name in knobs} == knobs


def test_help_without_a_step_lists_the_steps() -> None:
    done = components("--help")
    assert done.returncode == 0, done.stderr
    assert all(step in done.stdout for step in STEPS)


@pytest.mark.parametrize(
    ("arguments", "said"), [((), "No step is named"), (("pretrian",), "'pretrian' is no step"), (("../x",), "no step")]
)
def test_an_unknown_step_lists_the_choices(arguments: tuple[str, ...], said: str) -> None:
    done = components(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "one of: announce, co_cluster, detect_changes, evaluate," in done.stderr
    assert "Traceback" not in done.stderr
