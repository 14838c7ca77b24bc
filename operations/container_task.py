"""One step in one container: what it may see of this machine, and how it ends.

The container has the step's image with a read-only root, the calling user's id, no capabilities, and four things of
this machine: the folder of artifacts at its own path, the sources that the run names (read-only), a `/tmp` that goes
afterwards, and the network, so that an address means the same inside and outside. Of the environment it gets what
PASSED, PROXIES and FILES name; the values are in no command line, log or cache key.
"""

import codecs
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from docker.types import DeviceRequest, Mount

from operations.local_runner import Observer, StepTask
from operations.step_processes import SECONDS_TO_STOP
from retrieval.tracking import IMAGE
from retrieval.tracking_process import SOCKET

PASSED = ("AWS_", "MLFLOW_", "RANKONE_", "OMP_", "GOMP_", "MALLOC_", "CUDA_VISIBLE_DEVICES", "NCCL_", "TORCH_LOGS")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # in either case
OF_ONE_STEP = {"RANKONE_WEBHOOK_URL": "announce"}  # secrets that no other step is given
KEPT_BACK = ("RANKONE_HOME", "RANKONE_CODE_VERSION", IMAGE, SOCKET)  # the image has its own, or the container another
WRITTEN = ("RANKONE_CHECKPOINTS",)  # variables that may name a folder, which is mounted to be written to
FILES = (  # variables that name a file, which is mounted at its own path
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "REQUESTS_CA_BUNDLE",
)
SHARED_MEMORY = "8g"  # most of /dev/shm: batches pass through it between processes
TEMPORARY = "/tmp"  # in the container
SOCKET_FOLDER = "/run/rankone"
GPU_DEVICE, GPU_HOOK = Path("/dev/nvidiactl"), "nvidia-container-runtime-hook"


@dataclass(frozen=True)
class Containers:
    """How the containers of one run are made.

    Attributes:
        run: key of the run; a label of its containers.
        sources: files and folders of this machine that steps read; mounted at their own paths, read-only.
        written: folders that steps write to beside the artifacts; mounted at their own paths.
        environment: variables that steps get, with their values.
        tracking_socket: where the process listens that holds MLflow open; None when steps reach a server themselves.
        gpu: whether the GPUs of this machine are passed on.
    """

    run: str
    sources: tuple[Path, ...] = ()
    written: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    tracking_socket: Path | None = None
    gpu: bool = False


def containers_here(run: str, sources: Iterable[Path]) -> Containers:
    """How containers are made on this machine with this environment.

    Raises:
        OSError: no engine answers.
    """
    named = [Path(os.environ[name]) for name in FILES if os.environ.get(name)]
    read = [*sources, *(path.absolute() for path in named if path.is_file())]
    written = tuple(Path(value) for name in WRITTEN if (value := os.environ.get(name, "")).startswith("/"))
    for folder in written:
        folder.mkdir(parents=True, exist_ok=True)  # as this user: the engine would make it as root
    has_server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).scheme in ("http", "https")
    socket = os.environ.get(SOCKET) if not has_server else None
    with engine() as client:
        gpu = GPU_DEVICE.exists() and ("nvidia" in client.info().get("Runtimes", {}) or bool(shutil.which(GPU_HOOK)))
    return Containers(
        run, tuple(dict.fromkeys(read)), written, passed_environment(os.environ), Path(socket) if socket else None, gpu
    )


@contextlib.contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """A client of the engine that DOCKER_HOST names, or of this machine's.

    Raises:
        OSError: none answers.
    """
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        raise OSError(
            f"No container engine answers ({error}); start Docker, let this user reach it, or name it in DOCKER_HOST."
        ) from None
    with contextlib.closing(client):
        yield client


def passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a step is given."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(PASSED) or name in FILES or name.upper() in PROXIES) and name not in KEPT_BACK
    }


class ContainerTask(StepTask):
    """Runs the command of a step in its image."""

    def __init__(
        self, observer: Observer, containers: Containers, image: str, pipeline_root: str, **arguments: Any
    ) -> None:
        super().__init__(observer, image=image, **arguments)
        self._containers, self._artifacts = containers, Path(pipeline_root)

    def _run_program(self) -> int:
        with engine() as client, tempfile.TemporaryDirectory(prefix="rankone-tmp-") as scratch:
            for path in (*self._containers.sources, *self._containers.written, self._artifacts):
                mount_point(path, Path(scratch))
            try:
                identity = present(client, self._image)
                settings = self._settings(Path(scratch))
                settings["environment"][IMAGE] = known_as(self._image, identity)
                container = client.containers.create(self._image, self._command, **settings)
            except (APIError, OSError) as error:
                self._observer.step_said(self._step, f"{self._image} cannot be run: {error}")
                return 1
            return self._follow(container)

    def _follow(self, container: Any) -> int:
        """Start a container, tell what it says, wait for its end, and remove it."""
        try:
            container.start()
            with contextlib.closing(container.logs(stream=True, follow=True)) as output:
                for line in lines_of(output):
                    self._observer.step_said(self._step, line)
            return int(container.wait()["StatusCode"])
        except APIError as error:
            self._observer.step_said(self._step, f"{self._image} cannot be started: {error.explanation or error}")
            return 1
        finally:
            with contextlib.suppress(APIError):  # it has ended already
                container.stop(timeout=int(SECONDS_TO_STOP))
            container.remove(force=True, v=True)

    def _settings(self, scratch: Path) -> dict[str, Any]:
        """What the container may see and do, as the engine's client takes it."""
        mounts = [Mount(str(path), str(path), "bind", read_only=True) for path in self._containers.sources]
        mounts += [Mount(str(path), str(path), "bind") for path in (*self._containers.written, self._artifacts)]
        mounts.append(Mount(TEMPORARY, str(scratch), "bind"))
        passed = {
            name: value
            for name, value in self._containers.environment.items()
            if OF_ONE_STEP.get(name, self._step) == self._step
        }
        environment = {**passed, **self._environment}
        if self._containers.tracking_socket:
            mounts.append(Mount(SOCKET_FOLDER, str(self._containers.tracking_socket.parent), "bind"))
            environment[SOCKET] = f"{SOCKET_FOLDER}/{self._containers.tracking_socket.name}"
        return {
            "mounts": mounts,
            "environment": environment,
            "user": f"{os.getuid()}:{os.getgid()}",
            "network_mode": "host",
            "read_only": True,
            "shm_size": SHARED_MEMORY,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "labels": {"rankone.run": self._containers.run, "rankone.step": self._step},
            "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])] if self._containers.gpu else [],
        }


def mount_point(path: Path, scratch: Path) -> None:
    """Make the place of a mount below `/tmp`: the engine would make it as root, and nobody could remove it."""
    if path.is_relative_to(TEMPORARY):
        place = scratch / path.relative_to(TEMPORARY)
        (place if path.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            place.touch()


def known_as(image: str, identity: str) -> str:
    """An image as a run's tags name it: a reference by digest as it is, another one with the engine's id of it."""
    return image if "@" in image else f"{image} {identity}"


def present(client: docker.DockerClient, image: str) -> str:
    """Have the engine hold an image, and tell its id: one that was pushed is pulled by its digest.

    Raises:
        OSError: it is neither here nor in a registry.
    """
    try:
        return str(client.images.get(image).id)
    except ImageNotFound:
        if "@" not in image:
            raise OSError("this engine does not hold it, and it was not pushed; `make images` builds it.") from None
        return str(client.images.pull(image).id)


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream whose pieces end anywhere, inside of a character too."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for chunk in chunks:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (line.rstrip("\r") for line in lines)
    if rest:
        yield rest
