import pytest
import yaml
from typer.testing import CliRunner

from components.descriptions import knob_descriptions
from components.launch import params_from, text_of
from operations.command_line import app
from operations.parameters import all_knobs, params_type, resolve, step_names
from operations.recipes import load_recipe, recipe_names


def test_a_shared_name_means_the_same_in_every_step() -> None:
    for name, knob in all_knobs().items():
        for step in knob.steps:
            field = params_type(step).__dataclass_fields__[name]
            assert (field.default, field.type) == (knob.default, knob.kind), (step, name)


def test_what_a_knob_does_is_told_for_every_step() -> None:
    for name, knob in all_knobs().items():
        for step in knob.steps:
            text = knob_descriptions(params_type(step))[name]
            assert text in knob.description, (step, name)
            assert "\n" not in knob.description or step in knob.description
        assert knob.steps == tuple(sorted(knob.steps))
    assert "\nprepare_data: of the choices of images" in all_knobs()["seed"].description
    assert all_knobs()["batch_size"].description == "images at once."


def test_every_parameter_has_its_line_where_no_terminal_shows_them(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = CliRunner().invoke(app, ["parameters"], catch_exceptions=False).output
    assert set(all_knobs()) <= {line.split()[0] for line in said.splitlines() if line.strip()}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("dimensions=3", "There is no parameter 'dimensions'; did you mean dimension or maximum_dimension"),
        ("zzz=3", "There is no parameter 'zzz'\\. `rankone parameters` lists all"),
        ("accelerator_count=2", "accelerator_count is no parameter but a setting of a profile; .* --profile"),
        ("accelerator_cuont=2", "'accelerator_cuont'; did you mean accelerator_count"),
        ("seed=many", "seed is 'many'; it must be a whole number\\.$"),
        ("dimension=nan", "dimension is 'nan'; it must be a whole number\\.$"),
        ("seed=9007199254740993", "seed is '9007199254740993'; Kubeflow Pipelines keeps numbers as floating point"),
        ("kernels=[3, 1e300, 3]", "kernels is '\\[3, 1e300, 3\\]'; Kubeflow Pipelines keeps numbers as floating point"),
        ("seed", "'seed' is no assignment; write -p name=value. `rankone parameters` lists all"),
    ],
)
def test_what_does_not_exist_or_parse_is_refused_in_one_line(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        resolve({}, [assignment])
    assert "\n" not in str(refused.value)


def test_values_that_a_step_refuses_are_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="source"):
        resolve({}, ["source=nowhere"])


def test_assignments_win_over_the_recipe_and_the_last_one_wins() -> None:
    assert resolve({"seed": 1, "dimension": 128}, ["seed=2", "seed=3"]) == {"seed": 3, "dimension": 128}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name: str) -> None:
    recipe = load_recipe(name)
    given = [] if recipe["source"] == "digits" else ["location=somewhere"]
    assert set(recipe) <= set(resolve(recipe, given))


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("command", ["parameters", "inspect"])
def test_what_reads_no_image_asks_for_no_location(command: str, name: str) -> None:
    done = CliRunner().invoke(app, [command, "--recipe", name, "-p", "dimension=96"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "96" in done.output
    assert "FOLDER" not in done.output


def test_a_pipeline_is_compiled_without_the_location_that_its_runs_name(tmp_path) -> None:
    output = tmp_path / "pipeline.yaml"
    arguments = ["compile", "--unpinned", "--recipe", "folder", "--output", str(output)]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    inputs = next(yaml.safe_load_all(output.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert (inputs["source"]["defaultValue"], inputs["location"]["defaultValue"]) == ("folder", "")


def test_a_run_of_a_folder_still_needs_its_location() -> None:
    with pytest.raises(ValueError, match="location is empty"):
        resolve({"source": "folder"}, [])


def test_an_unknown_recipe_lists_the_choices() -> None:
    with pytest.raises(
        ValueError, match="Unknown recipe 'digit'; choose one of: cifar100, digits, folder, imagenet200, omniglot"
    ):
        load_recipe("digit")
    with pytest.raises(ValueError, match=r"There is no file 'digits\.yaml'; give the path of a recipe, or one of"):
        load_recipe("digits.yaml")


def test_a_recipe_file_of_ones_own(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 7\n")
    assert load_recipe(str(path)) == {"seed": 7}
    path.write_text("- seed\n")
    with pytest.raises(ValueError, match="is no recipe"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("registered_model:", "mine.yaml: the parameter registered_model has no value; give one, or leave it out"),
        ("dimension: null", "mine.yaml: the parameter dimension has no value; give one, or leave it out"),
        ("kernels: [2026-01-01]", "kernels has 2026-01-01, which YAML reads as a date; quote it"),
        ("registered_model: 2026-01-01", "registered_model has 2026-01-01, which YAML reads as a date; quote it"),
        ("kernels: ['2026-01-01']", "kernels is '.*2026-01-01.*'; it must be a list like"),
    ],
)
def test_a_line_of_a_recipe_that_is_not_what_is_meant_is_refused(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        resolve(load_recipe(str(path)), [])


def test_a_recipe_says_the_same_as_the_command_line(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("force: true\nseed: 3\nalpha: .5\nkernels: [5, 3, 3]\nregistered_model: '2026-01-01'\n")
    said = ["force=true", "seed=3", "alpha=0.5", "kernels=[5, 3, 3]", "registered_model=2026-01-01"]
    assert resolve(load_recipe(str(path)), []) == resolve({}, said)


@pytest.mark.parametrize("step", step_names())
def test_the_defaults_of_every_step_survive_the_command_line(step: str) -> None:
    kind = params_type(step)
    texts = {name: text_of(field.default) for name, field in kind.__dataclass_fields__.items()}
    assert params_from(kind, texts) == kind()
