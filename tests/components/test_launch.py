import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.launch import (
    AGAIN,
    LARGEST_WHOLE_NUMBER,
    SKIP,
    SKIPPED_FORMAT,
    SKIPPED_KIND,
    TRAIN,
    WITH,
    InputPath,
    InputText,
    OutputPath,
    Outputs,
    OutputText,
    PipelineParameters,
    launch,
    params_from,
    parse,
    text_of,
)


@dataclasses.dataclass(frozen=True)
class Params:
    epochs: int = 3
    rate: float = 0.1
    name: str = "auto"
    flag: bool = False
    channels: tuple[int, ...] = (64, 128)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; train at least one.")


def copy_text(params: Params, source: InputPath, copied: OutputPath) -> Outputs:
    copied.mkdir(parents=True)
    (copied / "text").write_text(source.read_text() * params.epochs)
    return {"copied": {"epochs": params.epochs, "rate": params.rate}}


def executor_input(folder: Path) -> dict:
    artifact = {"name": "copied", "uri": str(folder / "copied"), "type": {"schemaTitle": "system.Artifact"}}
    return {
        "inputs": {},
        "outputs": {
            "artifacts": {"copied": {"artifacts": [artifact]}},
            "outputFile": str(folder / "deep" / "executor_output.json"),
        },
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_text("ab")
    return path


values = st.builds(
    Params,
    epochs=st.integers(1, LARGEST_WHOLE_NUMBER),
    rate=st.floats(allow_nan=False),
    name=st.text(),
    flag=st.booleans(),
    channels=st.lists(st.integers(-LARGEST_WHOLE_NUMBER, LARGEST_WHOLE_NUMBER)).map(tuple),
)


@given(values)
def test_every_value_survives_the_command_line(params: Params) -> None:
    texts = {field.name: text_of(getattr(params, field.name)) for field in dataclasses.fields(params)}
    assert params_from(Params, texts) == params


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3.0", int, 3),
        ("True", bool, True),
        ("false", bool, False),
        ("[1.0, 2.0]", tuple[int, ...], (1, 2)),
        ("-1e-05", float, -1e-5),
    ],
)
def test_reads_what_kfp_writes(text: str, kind: type, value: object) -> None:
    assert parse("knob", text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("3.5", int, "a whole number"),
        ("yes", bool, "true or false"),
        ("x", float, "a number"),
        ("7", tuple[int, ...], "a list"),
    ],
)
def test_refuses_another_type_and_names_the_one_it_wants(text: str, kind: type, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"knob is '{text}'; it must be {wanted}"):
        parse("knob", text, kind)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("9007199254740993", int),
        ("-9007199254740993", int),
        ("9_007_199_254_740_993", int),
        ("9223372036854775808.0", int),
        ("1e300", int),
        ("[8, 9007199254740993]", tuple[int, ...]),
    ],
)
def test_refuses_a_whole_number_that_kfp_would_hand_on_as_another(text: str, kind: type) -> None:
    assert LARGEST_WHOLE_NUMBER == 9007199254740992
    assert float(LARGEST_WHOLE_NUMBER) == float(LARGEST_WHOLE_NUMBER + 1)
    message = f"^knob is '{re.escape(text)}'; .* floating point.* from -9007199254740992 to 9007199254740992"
    with pytest.raises(ValueError, match=message):
        parse("knob", text, kind)


@pytest.mark.parametrize("number", [LARGEST_WHOLE_NUMBER, -LARGEST_WHOLE_NUMBER])
def test_the_largest_whole_number_survives_kfp(number: int) -> None:
    assert parse("knob", str(number), int) == parse("knob", str(float(number)), int) == number


def test_an_unknown_option_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"Unknown option 'epoch'; choose from: channels, epochs, flag, name, rate"):
        params_from(Params, {"epoch": "3"})


def test_reports_every_output_with_uri_type_and_metadata(source: Path, tmp_path: Path) -> None:
    asked = executor_input(tmp_path)
    line = [
        f"--source={source}",
        f"--copied={tmp_path / 'copied'}",
        "--epochs=2",
        "--executor-input",
        json.dumps(asked),
    ]
    launch(copy_text, Params, arguments=line)
    assert (tmp_path / "copied" / "text").read_text() == "abab"
    report = json.loads((tmp_path / "deep" / "executor_output.json").read_text())
    [artifact] = report["artifacts"]["copied"]["artifacts"]
    assert 0 <= artifact["metadata"].pop("step_seconds") < 60
    assert 0 <= artifact["metadata"].pop("step_cpu_seconds") < 60
    assert [artifact] == [
        {
            "name": "copied",
            "uri": str(tmp_path / "copied"),
            "type": {"schemaTitle": "system.Artifact"},
            "metadata": {"epochs": 2, "rate": 0.1},
        }
    ]


def test_the_work_of_a_step_is_told_in_seconds_of_wall_and_of_cpu_with_those_of_its_children(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"

    def work(params: Params, source: InputPath, copied: OutputPath) -> Outputs:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        subprocess.run([sys.executable, "-S", "-c", spin], check=True)
        return copy_text(params, source, copied)

    started = [time.process_time(), sum(os.times()[2:4])]
    launch(work, Params, arguments=[f"--source={source}", f"--copied={tmp_path / 'copied'}"])
    spent = time.process_time() - started[0] + sum(os.times()[2:4]) - started[1]
    told = json.loads(capsys.readouterr().out)["copied"]
    assert 0.48 <= told["step_cpu_seconds"] <= spent + 0.02
    assert told["step_seconds"] >= 0.48


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_step_that_ended_leaves_the_handler_of_signals_as_it_was(ends: str, source: Path, tmp_path: Path) -> None:
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        rate = "0.1" if ends == "well" else "fast"
        with contextlib.suppress(SystemExit):
            launch(
                copy_text,
                Params,
                arguments=[f"--source={source}", f"--copied={tmp_path / 'copied'}", f"--rate={rate}"],
            )
        assert (tmp_path / "copied").exists() == (ends == "well")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_failed_attempt_left_is_cleared_under_kfp(source: Path, tmp_path: Path) -> None:
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "stale").touch()
    asked = json.dumps(executor_input(tmp_path))
    launch(
        copy_text,
        Params,
        arguments=[f"--source={source}", f"--copied={tmp_path / 'copied'}", f"--executor-input={asked}"],
    )
    assert [path.name for path in (tmp_path / "copied").iterdir()] == ["text"]


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        launch(copy_text, Params, arguments=arguments)
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_a_persons_files_are_kept(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure([f"--source={source}", f"--copied={source}"], capsys)
    assert "exists already; remove it or name another place" in message
    assert source.read_text() == "ab"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--copied=b"], "No path for 'source'; give --source=PATH"),
        (["--source=nowhere", "--copied=b"], "--source=nowhere does not exist"),
        (["--source=.", "--copied=b", "--epochs=0"], "epochs is 0; train at least one"),
        (["--source=.", "--copied=b", "--epochs"], "Option '--epochs' has no value"),
        (["--source=.", "--source=.", "--copied=b"], "Option '--source' is given twice"),
        (["source"], "write every option as --name=value"),
    ],
)
def test_bad_input_ends_in_one_clear_message(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = failure(arguments, capsys)
    assert expected in message
    assert "Traceback" not in message


def test_a_step_that_forgets_an_output_is_our_own_mistake(source: Path, tmp_path: Path) -> None:
    def forget(params: Params, source: InputPath, copied: OutputPath) -> Outputs:
        return {"copied": {}}

    with pytest.raises(AssertionError, match="did not write"):
        launch(forget, Params, arguments=[f"--source={source}", f"--copied={tmp_path / 'copied'}"])


def test_only_the_first_process_of_torchrun_works_unless_the_step_wants_all(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    launch(copy_text, Params, arguments=[f"--source={source}", f"--copied={tmp_path / 'copied'}"])
    assert not (tmp_path / "copied").exists()
    launch(copy_text, Params, every_rank=True, arguments=[f"--source={source}", f"--copied={tmp_path / 'copied'}"])
    assert (tmp_path / "copied").exists()


def never(params: Params, source: InputPath, copied: OutputPath, page: OutputPath) -> Outputs:
    raise AssertionError("a step was called that has nothing to do")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_step_with_nothing_to_do_is_not_called_and_leaves_what_says_so(
    rank: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    asked = executor_input(tmp_path)
    page = {"name": "page", "uri": str(tmp_path / "deep" / "page"), "type": {"schemaTitle": "system.HTML"}}
    asked["outputs"]["artifacts"]["page"] = {"artifacts": [page]}
    reason = "data and code are those of version 3 of <b>"
    line = [f"--source={source}", f"--copied={tmp_path / 'copied'}", f"--page={tmp_path / 'deep' / 'page'}"]
    line += [f"--plan={SKIP}{reason}", "--epochs=2", "--executor-input", json.dumps(asked)]
    launch(never, Params, every_rank=True, arguments=line)
    if rank == "1":
        assert list(tmp_path.iterdir()) == [source]
        return
    assert capsys.readouterr().out == f"Skipped: {reason}\n"
    manifest = json.loads((tmp_path / "copied" / "manifest.json").read_text())
    assert manifest == {"kind": SKIPPED_KIND, "format_version": SKIPPED_FORMAT, "reason": reason}
    shown = (tmp_path / "deep" / "page").read_text()
    assert "Skipped: data and code are those of version 3 of &lt;b&gt;." in shown
    report = json.loads((tmp_path / "deep" / "executor_output.json").read_text())["artifacts"]
    assert set(report) == {"copied", "page"}
    for name in report:
        (artifact,) = report[name]["artifacts"]
        assert artifact["metadata"]["skipped"] == reason
        assert artifact["uri"] == asked["outputs"]["artifacts"][name]["artifacts"][0]["uri"]


def test_a_step_with_nothing_to_do_checks_its_knobs_all_the_same(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [f"--source={source}", f"--copied={tmp_path / 'copied'}", f"--plan={SKIP}unchanged", "--epochs=0"]
    assert "epochs is 0" in failure(line, capsys)


@pytest.mark.parametrize("plan", [TRAIN, f"{WITH}weights", f"{AGAIN}version 3, trained yesterday"])
def test_a_plan_to_train_is_none_of_the_steps_business(plan: str, source: Path, tmp_path: Path) -> None:
    launch(copy_text, Params, arguments=[f"--source={source}", f"--copied={tmp_path / 'copied'}", f"--plan={plan}"])
    assert (tmp_path / "copied" / "text").read_text() == "ababab"


@pytest.mark.parametrize("plan", ["", "skip", "trains", "Skip: no"])
def test_a_plan_that_is_none_is_refused(
    plan: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [f"--source={source}", f"--copied={tmp_path / 'copied'}", f"--plan={plan}"]
    assert f"plan is '{plan}'; it must be 'train', 'train with ...', 'train again: ...' or 'skip: ...'" in failure(
        line, capsys
    )
    assert not (tmp_path / "copied").exists()


def test_a_step_that_takes_the_plan_is_always_called(source: Path, tmp_path: Path) -> None:
    heard: list[str] = []

    def listen(params: Params, copied: OutputPath, plan: InputText, note: InputText) -> Outputs:
        heard.extend([plan, note])
        copied.mkdir()
        return {"copied": {}}

    for number, given_ in enumerate((["--plan=skip: no"], ["--note=a note"])):
        launch(listen, Params, arguments=[f"--copied={tmp_path / str(number)}", *given_])
    assert heard == ["skip: no", "", TRAIN, "a note"]


def test_texts_and_every_parameter_of_the_pipeline_pass_by_the_command_line(tmp_path: Path) -> None:
    def write(params: Params, parameters: PipelineParameters, plan: OutputText) -> Outputs:
        plan.write_text(json.dumps(parameters))
        return {}

    place = tmp_path / "deep" / "plan"
    launch(write, Params, arguments=["--run.loss=auto", "--run.channels=[8.0]", f"--plan={place}", "--epochs=2"])
    assert json.loads(place.read_text()) == {"loss": "auto", "channels": "[8.0]"}


def test_a_text_without_a_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def write(params: Params, plan: OutputText) -> Outputs:
        return {}

    with pytest.raises(SystemExit):
        launch(write, Params, arguments=[])
    assert "No path for 'plan'; give --plan=PATH." in capsys.readouterr().err


def test_sigterm_ends_a_step_without_outputs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import dataclasses, time
        from components.launch import InputPath, OutputPath, Outputs, launch
        @dataclasses.dataclass(frozen=True)
        class Params: pass
        def wait(params: Params, source: InputPath, copied: OutputPath) -> Outputs:
            print("ready", flush=True)
            time.sleep(60)
            return {}
        launch(wait, Params)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, program, f"--source={program}", f"--copied={tmp_path / 'copied'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - started < 10
    assert "Traceback" not in error
