import json
from pathlib import Path

import pytest

from operations import code_version, image_lock
from operations.image_lock import LockedImage

DECLARED = '@container_component(image="rankone-{}", params=Params)\ndef step(): ...\n'
FILES = {
    "components/__init__.py": "",
    "components/launch.py": "",
    "components/learn/__init__.py": "",
    "components/learn/component.py": DECLARED.format("learning"),
    "components/learn/step.py": "from components.launch import launch\nfrom retrieval import direct\n",
    "components/keep/__init__.py": "",
    "components/keep/component.py": DECLARED.format("registry"),
    "components/keep/step.py": "from components.launch import launch\n",
    "retrieval/__init__.py": "",
    "retrieval/direct.py": "",
    "retrieval/unrelated.py": "",
    "requirements/uv.txt": "uv==1",
    "requirements/learning.txt": "torch==1",
    "requirements/registry.txt": "mlflow==1",
    "images/learning.Dockerfile": "FROM base\nCOPY requirements/uv.txt /\nCOPY requirements/learning.txt /\n",
    "images/registry.Dockerfile": "FROM base\nCOPY requirements/registry.txt /\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of two steps, each in an image of its own."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    return tmp_path


def locked(name: str, pushed: bool = False) -> LockedImage:
    content = image_lock.content_of(name)
    return LockedImage(f"there/{name}@sha256:1" if pushed else f"{name}:{content}", content, pushed)


def test_the_steps_of_each_image_are_read_from_their_declarations(tree: Path) -> None:
    assert image_lock.steps_of_images() == {"rankone-learning": ["learn"], "rankone-registry": ["keep"]}


@pytest.mark.parametrize(
    "name",
    [
        "images/learning.Dockerfile",
        "requirements/uv.txt",
        "requirements/learning.txt",
        "components/__init__.py",
        "components/launch.py",
        "components/learn/step.py",
        "retrieval/direct.py",
    ],
)
def test_the_content_changes_with_whatever_the_image_is_built_from(tree: Path, name: str) -> None:
    before = image_lock.content_of("rankone-learning")
    (tree / name).write_text((tree / name).read_text() + "\n# changed\n")
    assert image_lock.content_of("rankone-learning") != before


@pytest.mark.parametrize(
    "name",
    ["retrieval/unrelated.py", "components/keep/step.py", "requirements/registry.txt", "components/learn/new.py"],
)
def test_the_content_stays_when_something_else_changes(tree: Path, name: str) -> None:
    before = image_lock.content_of("rankone-learning")
    (tree / name).write_text("changed = True\n")
    assert image_lock.content_of("rankone-learning") == before


def test_the_registry_image_holds_all_of_the_library(tree: Path) -> None:
    names = {path.relative_to(tree).as_posix() for path in image_lock.content_files("rankone-registry")}
    assert {"retrieval/__init__.py", "retrieval/direct.py", "retrieval/unrelated.py"} <= names
    assert "components/learn/step.py" not in names


def test_an_unknown_image_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match="No step runs in an image 'other'; these exist: rankone-learning"):
        image_lock.content_files("other")


def test_a_lock_is_read_as_it_was_written(tree: Path) -> None:
    lock = {"rankone-learning": locked("rankone-learning", pushed=True), "rankone-registry": locked("rankone-registry")}
    image_lock.write_lock(lock, tree / "build" / "images.json")
    assert image_lock.read_lock(tree / "build" / "images.json") == lock
    assert image_lock.images_of(lock) == {name: image.reference for name, image in lock.items()}


def test_a_lock_of_other_code_is_refused(tree: Path) -> None:
    lock = {"rankone-learning": locked("rankone-learning")}
    (tree / "retrieval/direct.py").write_text("changed = True\n")
    with pytest.raises(ValueError, match=r"rankone-learning is locked at .* built from the content .*`make images`"):
        image_lock.images_of(lock, ["rankone-learning"])


def test_a_lock_without_an_image_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match="has no rankone-registry; `make images`"):
        image_lock.images_of({"rankone-learning": locked("rankone-learning")})


def test_a_missing_lock_says_how_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image lock .*images.json; `make images` builds"):
        image_lock.read_lock(tmp_path / "images.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', json.dumps({"a": {"reference": "b"}})])
def test_a_file_that_is_no_lock_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(ValueError, match="is no image lock"):
        image_lock.read_lock(tmp_path / "images.json")


def test_the_environment_names_another_lock(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKONE_IMAGE_LOCK", raising=False)
    assert image_lock.lock_path() == tree / "build" / "images.json"
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", "elsewhere.json")
    assert image_lock.lock_path() == Path("elsewhere.json")
