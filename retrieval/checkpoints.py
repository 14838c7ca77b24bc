"""States of a training that outlive its process: whoever is tried again goes on where the last attempt was stopped.

A checkpoint is one file, tensors and JSON as safetensors (never pickle), in a folder or an object store. It appears as
a whole: a file by being renamed, an object by its nature. It carries the digest of what it is of (code, knobs, inputs,
the kind of device, processes); one of anything else is not taken.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retrieval import distributed
from retrieval.devices import pick_device
from retrieval.manifest import digest_of
from retrieval.object_store import (
    Address,
    AlteredObjectError,
    MissingObjectError,
    download,
    has_object,
    is_address,
    remove_object,
    upload,
)
from retrieval.tracking import code_version, pipeline_run

STEPS_BETWEEN_AGREEMENTS = 50  # of several processes on whether a checkpoint is due: they wait for one another
OWN_KNOBS = ("checkpoints", "checkpoint_seconds")  # where and how often: they change nothing in what is trained
PARTIAL = ".partial"  # the ending of a file that is being written
FACTS = "rankone"  # the entry in the file's metadata


@dataclass(frozen=True)
class State:
    """All that a training needs to go on.

    Attributes:
        tensors: by name; on any device when written, on the CPU when read.
        facts: the rest, plain JSON.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Checkpoint:
    """The checkpoint of one training: the latest state alone is kept.

    Written by a thread, so that the training waits only until its state is copied. What cannot be written is said, and
    the training goes on without.
    """

    def __init__(self, place: str, name: str, made_by: str, seconds: float) -> None:
        """Say where.

        Args:
            place: folder, or `s3://bucket/prefix`.
            name: of the file in there, without its ending.
            made_by: digest of all that decides what is trained.
            seconds: between two states.
        """
        self._place, self._file, self._made_by, self._seconds = place, f"{name}.safetensors", made_by, seconds
        self._last, self._checks = time.monotonic(), 0
        self._thread = ThreadPoolExecutor(1, "write-checkpoint")
        self._writing: Future[None] | None = None

    def due(self, device: torch.device) -> bool:
        """Whether it is time for another state; the same answer in all processes, which must all ask at every step."""
        late = time.monotonic() - self._last >= self._seconds and (self._writing is None or self._writing.done())
        if distributed.world_size() == 1:
            return late
        self._checks += 1
        return self._checks % STEPS_BETWEEN_AGREEMENTS == 0 and distributed.as_the_first_says(late, device)

    def write(self, state: State, wait: bool = False) -> None:
        """Keep a state in the place of the one before. Only the first process writes.

        Args:
            state: copied before this returns.
            wait: return when it is written.
        """
        if distributed.is_first():
            tensors = {
                name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.tensors.items()
            }
            self._writing = self._thread.submit(self._write, State(tensors, state.facts))
            if wait:
                self._writing.result()
        self._last = time.monotonic()

    def read(self) -> State | None:
        """The state to go on from; None when there is none, or it is of something else or damaged, which is said.

        Raises:
            ValueError: the object store cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(self._place) / self._file
            path = self._fetch(Path(folder) / self._file) if is_address(self._place) else kept
            return self._read(path) if path.is_file() else None

    def remove(self) -> None:
        """Remove the file, if there is one; not said when it cannot be: it is taken by nobody else."""
        self.close()
        with contextlib.suppress(OSError, ValueError):
            if is_address(self._place):
                remove_object(Address.parse(self._place) / self._file)
            else:
                path = Path(self._place) / self._file
                for file in (path, path.with_suffix(PARTIAL)):
                    file.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown()

    def _write(self, state: State) -> None:
        facts = {"made_by": self._made_by, "sha256": _tensors_digest(state.tensors), **state.facts}
        metadata = {FACTS: json.dumps(facts)}
        try:
            if is_address(self._place):
                with tempfile.TemporaryDirectory() as folder:
                    save_file(state.tensors, path := Path(folder) / self._file, metadata)
                    upload({path: Address.parse(self._place) / self._file})
                return
            path = Path(self._place) / self._file
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(PARTIAL)
            save_file(state.tensors, partial, metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)  # whole or not there
        except (OSError, ValueError, SafetensorError) as error:
            print(f"A checkpoint could not be written to {self._place}: {error} Training goes on.", flush=True)

    def _fetch(self, path: Path) -> Path:
        """Fetch the object to a path, which stays empty where there is none or it is damaged.

        Another attempt at the task may put the next one in its place meanwhile, or remove it.
        """
        address = Address.parse(self._place) / self._file
        for attempt in ("first", "last"):
            try:
                if has_object(address):
                    download({path: address})
            except MissingObjectError:
                pass
            except AlteredObjectError as error:
                if attempt == "first":
                    continue
                self._say_not_taken(str(error).rstrip("."))
            break
        return path

    def _read(self, path: Path) -> State | None:
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError, ValueError) as error:
            facts, tensors, why = {}, {}, f"it cannot be read ({error})"
        else:
            why = ""
            if facts.pop("made_by", "") != self._made_by:
                why = "it is of other parameters, data, code, devices or processes"
            elif facts.pop("sha256", "") != _tensors_digest(tensors):
                why = "it was altered: its sha256 is another"
        if not why:
            return State(tensors, facts)
        self._say_not_taken(why)
        return None

    def _say_not_taken(self, why: str) -> None:
        distributed.say(f"The checkpoint {self._place}/{self._file} is not taken: {why}. Training begins anew.")


class Checkpoints:
    """The checkpoints of one step, one for each of its trainings; they are removed when the step ends well.

        with open_checkpoints(params, {"dataset": digest}, __file__) as checkpoints:
            fit(..., checkpoint=checkpoints.of("adjust"))

    Args:
        place: folder, or `s3://bucket/prefix`; empty for no checkpoints.
        made_by: digest of all that decides what the step trains.
        seconds: between two states.
    """

    def __init__(self, place: str, made_by: str, seconds: float) -> None:
        self._place, self._made_by, self._seconds = place, made_by, seconds
        self._opened: list[Checkpoint] = []

    def depend_on(self, **digests: str) -> None:
        """Name what else decides what is trained, where it is known only later: before any is asked for."""
        self._made_by = digest_of([self._made_by, digests])

    def of(self, training: str) -> Checkpoint | None:
        """The checkpoint of one training, by its name; None when none are kept."""
        if not self._place:
            return None
        self._opened.append(Checkpoint(self._place, training, digest_of([self._made_by, training]), self._seconds))
        return self._opened[-1]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for checkpoint in self._opened:
            if kind is None and distributed.is_first():
                checkpoint.remove()
            else:
                checkpoint.close()
        if kind is None and self._place and not is_address(self._place):
            with contextlib.suppress(OSError):  # not empty, or not there
                Path(self._place).rmdir()
                Path(self._place).parent.rmdir()


def open_checkpoints(params: Any, made_from: Mapping[str, str], step_file: str) -> Checkpoints:
    """The checkpoints of a step.

    Args:
        params: dataclass of its knobs, `checkpoints`, `checkpoint_seconds` and `device` among them.
        made_from: digest of each input, by name.
        step_file: the step's source.
    """
    knobs = {name: value for name, value in dataclasses.asdict(params).items() if name not in OWN_KNOBS}
    device = pick_device(params.device).type  # each keeps generators of its own kind
    made_by = digest_of(
        [knobs, dict(made_from), code_digest(Path(step_file)), torch.__version__, device, distributed.world_size()]
    )
    place = checkpoint_place(params.checkpoints) if params.checkpoint_seconds else ""
    return Checkpoints(place, made_by, params.checkpoint_seconds)


def checkpoint_place(root: str) -> str:
    """Where this task keeps its checkpoints, the same for every attempt at it; empty for nowhere.

    $RANKONE_CHECKPOINTS is the place of all tasks of this run, as whoever started it says; else it is the place of this
    run under `root`.
    """
    task = os.environ.get("RANKONE_PIPELINE_TASK", "")
    given = os.environ.get("RANKONE_CHECKPOINTS", "")
    parts = [given, task] if given else [root.rstrip("/"), pipeline_run(), task]
    return "/".join(part for part in parts if part) if parts[0] else ""


def code_digest(step_file: Path) -> str:
    """sha256 over the version of the code, the library's files and the step's: each may change what is trained."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), step_file]
    return digest_of([code_version(), [[path.name, path.read_text()] for path in files]])


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
