import json
from pathlib import Path

import pytest

from operations import image_lock
from operations.command_line import images_to_compile
from operations.image_lock import LockedImage


def locked(name: str, pushed: bool = False) -> LockedImage:
    content = image_lock.content_of(name)
    return LockedImage(f"there/{name}@sha256:1" if pushed else f"{name}:{content}", content, pushed)


def test_the_steps_of_each_image_are_read_from_their_declarations(project: Path) -> None:
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
def test_the_content_changes_with_whatever_the_image_is_built_from(project: Path, name: str) -> None:
    before = image_lock.content_of("rankone-learning")
    (project / name).write_text((project / name).read_text() + "\n# changed\n")
    assert image_lock.content_of("rankone-learning") != before


@pytest.mark.parametrize(
    "name",
    ["retrieval/unrelated.py", "components/keep/step.py", "requirements/registry.txt", "components/learn/new.py"],
)
def test_the_content_stays_when_something_else_changes(project: Path, name: str) -> None:
    before = image_lock.content_of("rankone-learning")
    (project / name).write_text("changed = True\n")
    assert image_lock.content_of("rankone-learning") == before


def test_the_registry_image_holds_all_of_the_library(project: Path) -> None:
    names = {path.relative_to(project).as_posix() for path in image_lock.content_files("rankone-registry")}
    assert {"retrieval/__init__.py", "retrieval/direct.py", "retrieval/unrelated.py"} <= names
    assert "components/learn/step.py" not in names


def test_an_unknown_image_is_refused(project: Path) -> None:
    with pytest.raises(ValueError, match="No step runs in an image 'other'; these exist: rankone-learning"):
        image_lock.content_files("other")


def test_a_lock_is_read_as_it_was_written(project: Path) -> None:
    lock = {"rankone-learning": locked("rankone-learning", pushed=True), "rankone-registry": locked("rankone-registry")}
    image_lock.write_lock(lock, project / "build" / "images.json")
    assert image_lock.read_lock(project / "build" / "images.json") == lock
    assert image_lock.images_of(lock) == {name: image.reference for name, image in lock.items()}


def test_a_lock_of_other_code_is_refused(project: Path) -> None:
    lock = {"rankone-learning": locked("rankone-learning")}
    (project / "retrieval/direct.py").write_text("changed = True\n")
    with pytest.raises(ValueError, match=r"rankone-learning is locked at .* built from the content .*`make images`"):
        image_lock.images_of(lock, ["rankone-learning"])


def test_a_lock_without_an_image_is_refused(project: Path) -> None:
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


def test_the_environment_names_another_lock(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKONE_IMAGE_LOCK", raising=False)
    assert image_lock.lock_path() == project / "build" / "images.json"
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", "elsewhere.json")
    assert image_lock.lock_path() == Path("elsewhere.json")


def lock_everything(pushed: bool = True) -> dict[str, LockedImage]:
    lock = {name: locked(name, pushed) for name in image_lock.steps_of_images()}
    image_lock.write_lock(lock, image_lock.lock_path())
    return lock


def test_compiling_takes_the_locked_images(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", str(project / "images.json"))
    lock = lock_everything()
    assert images_to_compile(None) == {name: image.reference for name, image in lock.items()}
    assert capsys.readouterr().err == ""


def test_compiling_says_which_images_no_cluster_can_have(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", str(project / "images.json"))
    lock_everything(pushed=False)
    assert images_to_compile(None)
    assert "only this machine holds rankone-learning, rankone-registry" in capsys.readouterr().err


def test_compiling_without_a_lock_says_so_and_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", str(project / "images.json"))
    assert images_to_compile(None) is None
    assert "`make images REGISTRY=" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):  # a lock that was named must be there
        images_to_compile(project / "images.json")


def test_compiling_refuses_a_lock_of_other_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", str(project / "images.json"))
    lock_everything()
    (project / "components/launch.py").write_text("changed = True\n")
    with pytest.raises(ValueError, match="built from the content"):
        images_to_compile(None)
