"""Each image installs what its steps import, pinned as on one machine; the Dockerfiles keep to the rules."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from operations import image_lock
from operations.code_version import step_files

ROOT = Path(__file__).parents[1]
IMAGES = image_lock.steps_of_images()
# imported where it is there: torchvision reads CIFAR-100, and MLflow's store and pandas are for who registers
OPTIONAL = {("rankone-data", "torchvision"), *((image, "pandas") for image in IMAGES if image != "rankone-registry")}


def pins(path: Path) -> dict[str, str]:
    """The pinned version of each package, in the spelling of PEP 503."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", path.read_text(), flags=re.MULTILINE)
    return {normalised(name): version for name, version in found}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(image: str) -> dict[str, str]:
    names = image_lock.copied_requirements(image_lock.dockerfile(image).read_text())
    return {name: version for file in names for name, version in pins(ROOT / "requirements" / file).items()}


def imported(image: str) -> set[str]:
    """Top-level packages of others that the code of an image imports."""
    names = set[str]()
    for step in IMAGES[image]:
        for path in step_files(step):
            if path.suffix == ".py":
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.Import):
                        names |= {alias.name.partition(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.module:
                        names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"components", "retrieval"}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_what_its_steps_import(image: str) -> None:
    owners, packages = packages_distributions(), installed(image)
    for name in imported(image):
        if (image, name) not in OPTIONAL:
            assert {normalised(owner) for owner in owners[name]} & set(packages), f"{image} lacks {name}"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_the_versions_of_one_machine(image: str) -> None:
    here = pins(ROOT / "requirements" / "rankone.txt") | pins(ROOT / "requirements" / "uv.txt")
    for name, version in installed(image).items():
        if name not in {"psycopg", "psycopg-binary"}:  # of the MLflow server alone
            assert here[name] == version, name


def test_no_image_carries_kubeflow_and_only_two_carry_pytorch() -> None:
    assert not any("kfp" in installed(image) for image in IMAGES)
    assert {image for image in IMAGES if "torch" in installed(image)} == {"rankone-training", "rankone-evaluation"}


@pytest.mark.parametrize("image", IMAGES)
def test_requirements_are_hashed_and_name_no_index(image: str) -> None:
    for file in image_lock.copied_requirements(image_lock.dockerfile(image).read_text()):
        text = (ROOT / "requirements" / file).read_text()
        assert len(pins(ROOT / "requirements" / file)) == len(
            re.findall(r"^\S+==[^\n]*\\\n +--hash=", text, re.MULTILINE)
        )
        assert not re.search(r"^(--|-i|-f)", text, re.MULTILINE)


@pytest.mark.parametrize("image", IMAGES)
def test_a_dockerfile_keeps_the_rules(image: str) -> None:
    text = image_lock.dockerfile(image).read_text()
    stages = text.split("\nFROM ")
    last = stages[-1]
    assert f"ARG BASE_IMAGE={image_lock.USUAL_BASE}\n" in stages[0]
    assert last.startswith("${BASE_IMAGE}\n"), "the last stage begins anew: nothing that installs is left in it"
    assert "\nUSER 65532:65532\n" in last
    assert text.count("uv pip install") == text.count("--require-hashes --python")
    for label in ("source", "revision", "version"):
        assert f"org.opencontainers.image.{label}=" in last
    for setting in ("GOMP_SPINCOUNT=10000", "MLFLOW_DISABLE_TELEMETRY=true", "PYTHONDONTWRITEBYTECODE=1"):
        assert setting in last
    copies = re.findall(r"^COPY (.*)$", last, flags=re.MULTILINE)
    assert copies[-1] == "--from=code /app /app", "the code is the last and thinnest layer"
    assert all(copy.startswith("--from=") for copy in copies)
    assert "INDEX" not in last, "where packages came from is in no layer that is kept"


def test_the_images_with_pytorch_share_its_layer() -> None:
    """Engines reuse a layer when all instructions up to it are the same, and those of the stage that it copies."""
    training, evaluation = (image_lock.dockerfile(f"rankone-{name}").read_text() for name in ("training", "evaluation"))

    def instructions(text: str, start: str, end: str) -> str:
        kept = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
        return kept[kept.index(start) : kept.index(end)]

    for start, end in (("ARG BASE_IMAGE", "FROM torch AS"), ("\nFROM ${BASE_IMAGE}\n", "COPY --from=environment")):
        assert instructions(training, start, end) == instructions(evaluation, start, end)
