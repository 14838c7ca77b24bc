import json
import subprocess
import sys
from pathlib import Path

import pytest

from operations import code_version, image_build, image_contents
from operations.image_build import Engine, build_images, list_contents
from operations.image_lock import content_of, read_lock

STUB = """#!{python}
import json, sys
from pathlib import Path
here, arguments = Path(__file__).parent, sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
images = set((here / "images").read_text().split()) if (here / "images").exists() else set()
if arguments[0] == "build":
    folder = Path(arguments[-1])
    sent = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    (here / "sent").write_text(json.dumps(sent))
    images.add(arguments[arguments.index("--tag") + 1])
    (here / "images").write_text(" ".join(images))
if arguments[:2] == ["image", "inspect"]:
    if arguments[-1] not in images:
        sys.exit("no such image")
    size = arguments[-2] == "{{{{.Size}}}}"
    print("2000000" if size else arguments[-1].rpartition(":")[0] + "@sha256:" + "0" * 64)
if arguments[0] == "run":
    print(json.dumps({{"components": [{{"name": "python"}}, {{"name": "torch", "properties": [{{"value": "1"}}]}}]}}))
if arguments[0] == "push" and "refused" in arguments[-1]:
    sys.exit("denied: no rights")
"""


class Docker:
    """A program that takes docker's commands and writes them down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.program = folder, folder / "docker"
        self.program.write_text(STUB.format(python=sys.executable))
        self.program.chmod(0o755)

    def calls(self, command: str) -> list[list[str]]:
        path = self.folder / "calls"
        every = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return [call for call in every if call[0] == command]


@pytest.fixture
def docker(tmp_path_factory: pytest.TempPathFactory) -> Docker:
    return Docker(tmp_path_factory.mktemp("engine"))


def test_an_image_is_built_of_its_content_and_locked_by_it(project: Path, docker: Docker) -> None:
    lock = project / "build" / "images.json"
    build_images(Engine(str(docker.program)), ["rankone-learning"], lock)
    content = content_of("rankone-learning")
    (call,) = docker.calls("build")
    assert call[call.index("--tag") + 1] == f"rankone-learning:{content}"
    assert f"VERSION={content}" in call
    assert json.loads((docker.folder / "sent").read_text()) == [
        "components/__init__.py",
        "components/launch.py",
        "components/learn/__init__.py",
        "components/learn/step.py",
        "images/learning.Dockerfile",
        "requirements/learning.txt",
        "requirements/uv.txt",
        "retrieval/__init__.py",
        "retrieval/direct.py",
    ]
    locked = read_lock(lock)["rankone-learning"]
    assert (locked.reference, locked.content, locked.pushed) == (f"rankone-learning:{content}", content, False)


def test_what_has_not_changed_is_not_built_again(project: Path, docker: Docker) -> None:
    engine, names, lock = Engine(str(docker.program)), ["rankone-learning", "rankone-registry"], project / "lock.json"
    build_images(engine, names, lock)
    assert len(docker.calls("build")) == 2
    build_images(engine, names, lock)
    assert not docker.calls("build")
    (project / "components/keep/step.py").write_text("changed = True\n")
    build_images(engine, names, lock)
    assert len(docker.calls("build")) == 1
    (docker.folder / "images").unlink()
    build_images(engine, names, lock)
    assert len(docker.calls("build")) == 2, "what the engine has lost is built again"


def test_a_pushed_image_is_locked_by_the_digest_of_the_registry(project: Path, docker: Docker) -> None:
    engine, names, lock = Engine(str(docker.program)), ["rankone-learning"], project / "lock.json"
    build_images(engine, names, lock)
    build_images(engine, names, lock, "registry.example/team", push=True)
    locked = read_lock(lock)["rankone-learning"]
    assert locked.reference == f"registry.example/team/rankone-learning@sha256:{'0' * 64}"
    assert locked.pushed
    assert len(docker.calls("push")) == 1
    build_images(engine, names, lock, "registry.example/team", push=True)
    assert not docker.calls("push")


def test_another_base_image_builds_anew_and_has_a_tag_of_its_own(project: Path, docker: Docker) -> None:
    names, lock = ["rankone-learning"], project / "lock.json"
    usual, hardened = Engine(str(docker.program)), Engine(str(docker.program), "hardened-python:3.11")
    build_images(usual, names, lock)
    docker.calls("build")
    before = read_lock(lock)["rankone-learning"]
    build_images(hardened, names, lock)
    (call,) = docker.calls("build")
    assert "BASE_IMAGE=hardened-python:3.11" in call
    after = read_lock(lock)["rankone-learning"]
    assert (before.base_image, after.base_image) == ("python:3.11-slim", "hardened-python:3.11")
    assert before.content == after.content
    assert call[call.index("--tag") + 1] == after.reference != before.reference
    build_images(hardened, names, lock)
    assert not docker.calls("build")
    build_images(Engine(str(docker.program), "other-python:3.11"), names, lock)
    assert read_lock(lock)["rankone-learning"].reference not in (before.reference, after.reference)
    build_images(usual, names, lock)
    assert read_lock(lock)["rankone-learning"] == before


def test_a_lock_never_finds_the_image_of_another_base_under_its_tag(project: Path, docker: Docker) -> None:
    """Two checkouts of the same code share an engine, and one has another base."""
    names, here, there = ["rankone-learning"], project / "here.json", project / "there.json"
    build_images(Engine(str(docker.program)), names, here)
    build_images(Engine(str(docker.program), "hardened-python:3.11"), names, there)
    tags = [call[call.index("--tag") + 1] for call in docker.calls("build")]
    assert len(set(tags)) == 2
    assert [read_lock(lock)["rankone-learning"].reference for lock in (here, there)] == tags


def test_another_base_image_is_pushed_anew(project: Path, docker: Docker) -> None:
    names, lock = ["rankone-learning"], project / "lock.json"
    build_images(Engine(str(docker.program)), names, lock, "registry.example/team", push=True)
    (first,) = docker.calls("push")
    hardened = Engine(str(docker.program), "hardened-python:3.11")
    build_images(hardened, names, lock, "registry.example/team", push=True)
    (second,) = docker.calls("push")
    assert first[-1] != second[-1]
    assert read_lock(lock)["rankone-learning"].base_image == "hardened-python:3.11"
    build_images(hardened, names, lock, "registry.example/team", push=True)
    assert not docker.calls("push")


def test_a_lock_of_before_is_of_the_usual_base(project: Path, docker: Docker) -> None:
    names, lock = ["rankone-learning"], project / "lock.json"
    build_images(Engine(str(docker.program)), names, lock)
    entries = json.loads(lock.read_text())
    del entries["rankone-learning"]["base_image"]
    lock.write_text(json.dumps(entries))
    docker.calls("build")
    for base in ("", "python:3.11-slim"):
        build_images(Engine(str(docker.program), base), names, lock)
        assert not docker.calls("build")
    build_images(Engine(str(docker.program), "hardened-python:3.11"), names, lock)
    assert len(docker.calls("build")) == 1


def test_a_failed_push_locks_nothing_and_says_why(project: Path, docker: Docker) -> None:
    with pytest.raises(OSError, match=r"push` failed:\n.*denied: no rights"):
        build_images(Engine(str(docker.program)), ["rankone-learning"], project / "lock.json", "refused", push=True)
    assert not (project / "lock.json").exists()


def test_a_push_needs_a_registry(project: Path) -> None:
    with pytest.raises(ValueError, match="PUSH=1 needs a registry: REGISTRY="):
        build_images(Engine(), ["rankone-learning"], project / "lock.json", push=True)


def test_a_missing_engine_is_named(project: Path) -> None:
    with pytest.raises(OSError, match="There is no 'no-such-engine' here; install Docker"):
        Engine("no-such-engine").build("rankone-learning", "1", "a:1")


def test_the_index_of_packages_is_passed_without_its_value(
    project: Path,
    docker: Docker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://user:secret@packages.example/simple")
    engine = Engine(str(docker.program), "debian-python:1", ["--network=host"])
    engine.build("rankone-learning", "1", "a:1")
    (call,) = docker.calls("build")
    assert call[call.index("UV_DEFAULT_INDEX") - 1] == "--build-arg"
    assert "BASE_IMAGE=debian-python:1" in call
    assert "--network=host" in call
    assert not any("secret" in argument for argument in call)


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("https://user:secret@code.example/team/rankone.git", "https://code.example/team/rankone.git"),
        ("git@code.example:team/rankone.git", ""),
    ],
)
def test_a_label_names_the_source_without_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str, shown: str
) -> None:
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    assert image_build.source() == ""
    for command in (["init", "--quiet"], ["remote", "add", "origin", origin]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert image_build.source() == shown


def test_what_an_image_holds_is_written_and_the_biggest_told(
    project: Path,
    docker: Docker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine, names = Engine(str(docker.program)), ["rankone-learning"]
    build_images(engine, names, project / "lock.json")
    list_contents(engine, names, project / "lock.json", project / "sbom")
    assert json.loads((project / "sbom" / "rankone-learning.json").read_text())["components"][1]["name"] == "torch"
    assert "torch 0 MB" in capsys.readouterr().out


def test_the_contents_are_what_is_installed() -> None:
    listed = image_contents.bill_of_materials()["components"]
    packages = {entry["name"]: entry for entry in listed if entry.get("purl", "").startswith("pkg:pypi/")}
    assert packages["numpy"]["purl"] == f"pkg:pypi/numpy@{packages['numpy']['version']}"
    assert int(packages["numpy"]["properties"][0]["value"]) > 1e7
    sizes = [int(entry["properties"][0]["value"]) for entry in listed if "properties" in entry]
    assert sizes == sorted(sizes, reverse=True)


def test_debian_packages_are_those_that_are_installed(tmp_path: Path) -> None:
    entry = "Package: {}\nStatus: {}\nInstalled-Size: 3\nVersion: 1.2-3\nDescription: a\n continued: line\n\n"
    status = tmp_path / "status"
    status.write_text(entry.format("kept", "install ok installed") + entry.format("gone", "deinstall ok config-files"))
    assert image_contents.debian_packages(status) == [("kept", "1.2-3", 3072)]
    assert image_contents.debian_packages(tmp_path / "nothing") == []
