import contextlib
import gc
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations import container_task
from operations.container_task import (
    Containers,
    ContainerTask,
    known_as,
    lines_of,
    mount_point,
    passed_environment,
)
from operations.run import absolute, containers_of, refuse_what_images_lack


class Ear:
    def step_started(self, step: str) -> None: ...

    def step_said(self, step: str, line: str) -> None: ...

    def step_ended(self, result: object) -> None: ...


def settings(containers: Containers, scratch: Path, artifacts: Path = Path("/home/artifacts")) -> dict[str, Any]:
    command = ["python", "-m", "components", "learn"]
    task = ContainerTask(
        Ear(), containers, "an-image", str(artifacts), full_command=command, env_vars={"SEEN": "1"}, runner=None
    )
    return task._settings(scratch)


def mounts(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    return {mount["Target"]: (mount["Source"], mount["ReadOnly"]) for mount in found["mounts"]}


def test_a_container_sees_its_artifacts_its_sources_and_a_tmp_of_its_own(tmp_path: Path) -> None:
    containers = Containers("run", sources=(Path("/data"),), written=(Path("/kept"),))
    assert mounts(settings(containers, tmp_path)) == {
        "/data": ("/data", True),
        "/kept": ("/kept", False),
        "/home/artifacts": ("/home/artifacts", False),
        "/tmp": (str(tmp_path), False),
    }


def test_a_container_is_bound_as_tightly_as_a_pod(tmp_path: Path) -> None:
    found = settings(Containers("run-7"), tmp_path)
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges"]
    assert found["user"] == f"{os.getuid()}:{os.getgid()}"
    assert found["shm_size"] == "8g"
    assert found["labels"] == {"rankone.run": "run-7", "rankone.step": "learn"}
    assert found["device_requests"] == []
    assert found["environment"] == {"SEEN": "1"}


def test_the_socket_of_the_tracking_process_is_mounted_at_a_place_of_its_own(tmp_path: Path) -> None:
    found = settings(Containers("run", tracking_socket=Path("/tmp/rankone-x/socket")), tmp_path)
    assert mounts(found)["/run/rankone"] == ("/tmp/rankone-x", False)
    assert found["environment"]["RANKONE_TRACKING_SOCKET"] == "/run/rankone/socket"


def test_every_gpu_is_passed_on(tmp_path: Path) -> None:
    (request,) = settings(Containers("run", gpu=True), tmp_path)["device_requests"]
    assert request["Count"] == -1
    assert request["Capabilities"] == [["gpu"]]


def test_the_environment_is_passed_by_name() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "secret",
        "MLFLOW_TRACKING_URI": "http://server",
        "RANKONE_PIPELINE_RUN": "run",
        "OMP_NUM_THREADS": "1",
        "https_proxy": "http://proxy",
    }
    of_this_machine = {"PATH": "/bin", "HOME": "/root", "RANKONE_HOME": "/here", "RANKONE_TRACKING_SOCKET": "/tmp/s"}
    of_this_machine |= {"RANKONE_IMAGE": "of whoever runs this"}
    assert passed_environment(environment | of_this_machine) == environment


def test_the_address_of_the_receiver_is_given_to_the_step_that_posts_alone(tmp_path: Path) -> None:
    containers = Containers("run", environment={"RANKONE_WEBHOOK_URL": "https://a/token", "AWS_REGION": "here"})
    assert settings(containers, tmp_path)["environment"] == {"SEEN": "1", "AWS_REGION": "here"}
    command = ["python", "-m", "components", "announce"]
    task = ContainerTask(Ear(), containers, "an-image", str(tmp_path), full_command=command, env_vars={}, runner=None)
    assert task._settings(tmp_path)["environment"]["RANKONE_WEBHOOK_URL"] == "https://a/token"


def test_an_image_is_named_so_that_it_cannot_be_another() -> None:
    assert known_as("registry.example/a@sha256:1", "sha256:2") == "registry.example/a@sha256:1"
    assert known_as("rankone-data:c0de", "sha256:2") == "rankone-data:c0de sha256:2"


def test_no_value_of_the_environment_is_shown() -> None:
    assert "secret" not in repr(Containers("run", environment={"AWS_SECRET_ACCESS_KEY": "secret"}))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))), st.data())
def test_lines_are_whole_wherever_the_stream_is_cut(lines: list[str], data: st.DataObject) -> None:
    stream = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(lines_of(chunks)) == lines


def test_the_last_line_may_lack_its_end() -> None:
    assert list(lines_of([b"one\r\ntw", b"o"])) == ["one", "two"]


def test_a_mount_below_tmp_finds_its_place_made_by_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_task, "TEMPORARY", str(tmp_path / "tmp"))
    folder, file = tmp_path / "tmp" / "a" / "data", tmp_path / "tmp" / "weights.safetensors"
    folder.mkdir(parents=True)
    file.touch()
    scratch = tmp_path / "scratch"
    for path in (folder, file, tmp_path / "elsewhere"):
        mount_point(path, scratch)
    assert {path.relative_to(scratch).as_posix() for path in scratch.rglob("*")} == {"a", "a/data", file.name}
    assert (scratch / file.name).is_file()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the engine's client leaves a socket
def test_no_engine_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(OSError, match="No container engine answers"), container_task.engine():
        pass
    gc.collect()


def test_a_source_that_the_image_cannot_read_is_refused_before_anything_runs() -> None:
    refuse_what_images_lack({"source": "folder"})
    with pytest.raises(ValueError, match="'cifar100' is read by torchvision, which rankone-data does not hold"):
        refuse_what_images_lack({"source": "cifar100"})


def test_paths_that_exist_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    assert absolute("weights.safetensors") == str(tmp_path / "weights.safetensors")
    assert absolute("weights.safetensors, elsewhere") == f"{tmp_path}/weights.safetensors,elsewhere"
    assert [absolute(text) for text in ("", "none", "s3://bucket/key")] == ["", "none", "s3://bucket/key"]


def test_a_container_is_made_for_what_the_environment_and_the_parameters_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def info(self) -> dict[str, Any]:
            return {"Runtimes": {"runc": {}}}

    monkeypatch.setattr(container_task, "engine", lambda: contextlib.nullcontext(Client()))
    for name in list(passed_environment(os.environ)):
        monkeypatch.delenv(name)
    bundle = tmp_path / "bundle.crt"
    bundle.touch()
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("RANKONE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("RANKONE_TRACKING_SOCKET", "/tmp/rankone-x/socket")
    made = containers_of("run", {"location": str(tmp_path), "weights": "none", "further_datasets": "/no/such"})
    assert made.sources == (tmp_path, bundle)
    assert made.written == (tmp_path / "checkpoints",)
    assert made.written[0].is_dir()
    assert made.tracking_socket == Path("/tmp/rankone-x/socket")
    assert not made.gpu or container_task.GPU_DEVICE.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert containers_of("run", {}).tracking_socket is None, "each step reaches the server itself"
