"""A training that was stopped at any moment ends as if it had not been."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retrieval import checkpoints, object_store
from retrieval.checkpoints import Checkpoint, Checkpoints, State, checkpoint_place, code_digest, open_checkpoints
from retrieval.dataset import Dataset
from retrieval.losses import MetricObjective
from retrieval.object_store import Address
from retrieval.training import ByLabel, Schedule
from tests.retrieval.test_training import CPU, dataset, train, weights  # noqa: F401  a fixture

EVERY_STEP = 1e-9  # seconds


class PowerFailureError(Exception):
    """What stops a training here."""


class Fails(nn.Module):
    """An objective that ends the training when it is asked for the loss of a step."""

    def __init__(self, objective: nn.Module, step: int | None) -> None:
        super().__init__()
        self.objective, self._step, self.asked = objective, step, 0

    def forward(self, *given: Tensor) -> Tensor:
        if self.asked == self._step:
            raise PowerFailureError
        self.asked += 1
        return self.objective(*given)


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)
    return nn.Sequential(*parts, nn.Linear(512, 16))


def objective(step: int | None = None) -> Fails:
    torch.manual_seed(1)
    return Fails(ByLabel(MetricObjective("normalised_softmax", 4, 16)), step)


def at(folder: Path | str, made_by: str = "this", seconds: float = EVERY_STEP) -> Checkpoint:
    return Checkpoint(str(folder), "training", made_by, seconds)


class Waits(Checkpoint):
    """Keeps every state, whatever the time it takes: which one is found does not depend on speed."""

    def write(self, state: State, wait: bool = False) -> None:
        super().write(state, wait=True)


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "balanced": {"balanced": (4, 4)},
    "streamed": {"memory_limit": 0},
    "averaged": {"averaged_from": 0.3},
}


@pytest.mark.parametrize("stopped_at", range(9))
@pytest.mark.parametrize("way", WAYS)
def test_stopped_at_any_step_it_ends_with_the_same_bytes(
    dataset: Dataset,  # noqa: F811
    tmp_path: Path,
    way: str,
    stopped_at: int,
) -> None:
    schedule = Schedule(3, 0.05)  # of 3 steps each
    told: list[tuple[int, float]] = []
    whole = objective()
    expected, history = train(dataset, network=network(), objective=whole, schedule=schedule, **WAYS[way])
    kept = Waits(str(tmp_path), "training", "this", EVERY_STEP)
    with pytest.raises(PowerFailureError):
        train(
            dataset, network=network(), objective=objective(stopped_at), schedule=schedule, checkpoint=kept, **WAYS[way]
        )
    again = objective()
    resumed, after = train(
        dataset,
        network=network(),
        objective=again,
        schedule=schedule,
        checkpoint=at(tmp_path),
        on_epoch=lambda epoch, numbers: told.append((epoch, numbers["loss"])),
        **WAYS[way],
    )
    assert again.asked == 9 - stopped_at, "no step is repeated when every state was kept"
    assert torch.equal(weights(resumed), weights(expected))
    assert torch.equal(weights(again), weights(whole))
    assert told == [(epoch, numbers["loss"]) for epoch, numbers in enumerate(history.epochs)]
    assert after.images == history.images


def test_a_training_that_ended_is_not_done_again(dataset: Dataset, tmp_path: Path) -> None:  # noqa: F811
    first, _ = train(dataset, network=network(), objective=objective(), checkpoint=at(tmp_path, seconds=1e9))
    again = objective()
    second, history = train(dataset, network=network(), objective=again, checkpoint=at(tmp_path))
    assert again.asked == 0
    assert torch.equal(weights(first), weights(second))
    assert len(history.epochs) == 2


def test_channels_last_weights_and_their_momentum_come_back_in_place(tmp_path: Path, dataset: Dataset) -> None:  # noqa: F811
    """The fused optimiser walks memory: a momentum laid out otherwise than its weights would move the wrong ones."""

    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 16))

    expected, _ = train(dataset, network=wide(), objective=objective())
    kept = Waits(str(tmp_path), "training", "this", EVERY_STEP)
    with pytest.raises(PowerFailureError):
        train(dataset, network=wide(), objective=objective(4), checkpoint=kept)
    resumed, _ = train(dataset, network=wide(), objective=objective(), checkpoint=at(tmp_path))
    assert resumed[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weights(resumed), weights(expected))


def stopped(data: Dataset, checkpoint: Checkpoint) -> None:
    with pytest.raises(PowerFailureError):
        train(data, network=network(), objective=objective(4), checkpoint=checkpoint)


def altered(path: Path) -> None:
    tensors = load_file(path)
    tensors["network.0.bias"] += 1
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "it cannot be read"),
        (lambda path: path.write_bytes(b""), "it cannot be read"),
        (
            lambda path: save_file({"x": torch.ones(1)}, path),
            "it is of other parameters, data, code, devices or processes",
        ),
        (altered, "it was altered"),
    ],
)
def test_a_damaged_checkpoint_is_not_taken_and_said(
    dataset: Dataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
    why: str,
) -> None:
    stopped(dataset, Waits(str(tmp_path), "training", "this", EVERY_STEP))
    harm(tmp_path / "training.safetensors")
    again = objective()
    train(dataset, network=network(), objective=again, checkpoint=at(tmp_path))
    assert again.asked == 6
    assert f"is not taken: {why}" in capsys.readouterr().out


def test_a_checkpoint_of_something_else_is_not_taken(
    dataset: Dataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped(dataset, Waits(str(tmp_path), "training", "this", EVERY_STEP))
    assert at(tmp_path, made_by="that").read() is None
    assert "is not taken: it is of other parameters, data, code, devices or processes. Training begins anew." in (
        capsys.readouterr().out
    )
    assert at(tmp_path).read() is not None


def test_what_cannot_be_written_does_not_end_the_training(
    dataset: Dataset,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    trained, _ = train(dataset, network=network(), objective=objective(), checkpoint=at(tmp_path / "file"))
    assert "A checkpoint could not be written" in capsys.readouterr().out
    assert torch.equal(weights(trained), weights(train(dataset, network=network(), objective=objective())[0]))


def test_a_state_is_copied_when_it_is_kept(tmp_path: Path) -> None:
    moving, checkpoint = torch.zeros(3), at(tmp_path)
    checkpoint.write(State({"moving": moving}, {"text": "ü", "number": 0.1}))
    moving += 1
    checkpoint.close()
    state = checkpoint.read()
    assert state is not None
    assert state.tensors["moving"].tolist() == [0, 0, 0]
    assert state.facts == {"text": "ü", "number": 0.1}
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"], "nothing half-written stays"


def test_a_state_is_due_after_so_many_seconds_and_when_the_last_one_is_written(tmp_path: Path) -> None:
    assert not at(tmp_path, seconds=1e9).due(CPU)
    checkpoint = at(tmp_path)
    assert checkpoint.due(CPU)
    checkpoint.close()


def test_they_go_when_the_step_ends_well_and_stay_when_it_fails(tmp_path: Path) -> None:
    place = tmp_path / "run" / "task"
    with pytest.raises(PowerFailureError), Checkpoints(str(place), "this", 1) as checkpoints:  # noqa: PT012
        for name in ("one", "two"):
            checkpoint = checkpoints.of(name)
            assert checkpoint is not None
            checkpoint.write(State({}, {}))
        raise PowerFailureError
    assert sorted(path.name for path in place.iterdir()) == ["one.safetensors", "two.safetensors"]
    (place / "two.partial").write_text("half")
    with Checkpoints(str(place), "this", 1) as checkpoints:
        assert [checkpoints.of(name).read() is not None for name in ("one", "two")] == [True, True]  # type: ignore[union-attr]
    assert not (tmp_path / "run").exists()
    assert Checkpoints("", "this", 1).of("one") is None


def test_in_a_bucket(dataset: Dataset, bucket: Any) -> None:  # noqa: F811
    expected, _ = train(dataset, network=network(), objective=objective())
    stopped(dataset, Waits("s3://bucket/checkpoints/run/task", "training", "this", EVERY_STEP))
    keys = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="bucket")["Contents"]]
    assert keys == ["checkpoints/run/task/training.safetensors"]
    again, checkpoint = objective(), at("s3://bucket/checkpoints/run/task", seconds=1e9)
    resumed, _ = train(dataset, network=network(), objective=again, checkpoint=checkpoint)
    assert again.asked == 2
    assert torch.equal(weights(resumed), weights(expected))
    checkpoint.remove()
    assert "Contents" not in bucket.list_objects_v2(Bucket="bucket")


def one(value: float) -> State:
    return State({"x": torch.full((1_000,), value)}, {})


def test_an_object_that_was_altered_is_not_taken_and_said(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = at("s3://bucket/task")
    checkpoint.write(one(1), wait=True)
    found = bucket.get_object(Bucket="bucket", Key="task/training.safetensors")
    content = bytearray(found["Body"].read())
    content[-5] ^= 1
    bucket.put_object(Bucket="bucket", Key="task/training.safetensors", Body=bytes(content), Metadata=found["Metadata"])
    assert checkpoint.read() is None
    assert "is not taken: s3://bucket/task/training.safetensors was truncated or altered" in capsys.readouterr().out
    checkpoint.write(one(2), wait=True)
    state = checkpoint.read()
    assert state is not None
    assert state.tensors["x"][0] == 2


def test_an_object_that_another_attempt_replaces_meanwhile_is_read_again(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, other, real = at("s3://bucket/task"), at("s3://bucket/task"), object_store._head
    checkpoint.write(one(1), wait=True)
    replaced = []

    def head(client: Any, address: Address, action: str) -> dict[str, Any]:
        found = real(client, address, action)
        if action == "fetching" and not replaced:
            replaced.append(address)
            other.write(one(2), wait=True)
        return found

    monkeypatch.setattr(object_store, "_head", head)
    state = checkpoint.read()
    assert replaced
    assert state is not None
    assert state.tensors["x"][0] == 2


def test_an_object_that_another_attempt_removes_meanwhile_is_not_there(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, other, real = at("s3://bucket/task"), at("s3://bucket/task"), checkpoints.has_object
    checkpoint.write(one(1), wait=True)

    def then_removed(address: Address) -> bool:
        found = real(address)
        other.remove()
        return found

    monkeypatch.setattr(checkpoints, "has_object", then_removed)
    assert checkpoint.read() is None


@dataclasses.dataclass(frozen=True)
class Params:
    epochs: int = 3
    checkpoints: str = ""
    checkpoint_seconds: float = 60.0
    device: str = "cpu"


def digest_in(params: Params, place: Path, made_from: dict[str, str], step_file: Path) -> str:
    with pytest.raises(PowerFailureError), open_checkpoints(params, made_from, str(step_file)) as opened:  # noqa: PT012
        checkpoint = opened.of("training")
        assert checkpoint is not None
        checkpoint.write(State({}, {}), wait=True)
        raise PowerFailureError
    from safetensors import safe_open

    with safe_open(next(place.rglob("*.safetensors")), "pt") as file:
        return str(json.loads(file.metadata()["rankone"])["made_by"])


def test_knobs_inputs_and_code_decide_whose_a_checkpoint_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKONE_CHECKPOINTS", raising=False)
    place, code, other = tmp_path / "place", tmp_path / "step.py", tmp_path / "other" / "step.py"
    other.parent.mkdir()
    code.write_text("1")
    other.write_text("2")
    params, data = Params(checkpoints=str(place)), {"dataset": "d"}
    usual = digest_in(params, place, data, code)
    assert usual == digest_in(dataclasses.replace(params, checkpoint_seconds=5.0), place, data, code)
    assert usual != digest_in(dataclasses.replace(params, epochs=4), place, data, code)
    assert usual != digest_in(params, place, {"dataset": "e"}, code)
    assert usual != digest_in(params, place, data, other)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(checkpoints, "pick_device", lambda _: torch.device("cuda", 0))
        assert usual != digest_in(params, place, data, code)
    assert code_digest(code) != code_digest(other)
    assert open_checkpoints(dataclasses.replace(params, checkpoint_seconds=0.0), data, str(code)).of("x") is None


@pytest.mark.parametrize(
    ("given", "root", "run", "task", "place"),
    [
        ("", "", "run", "task", ""),
        ("", "s3://bucket/kept/", "run", "task", "s3://bucket/kept/run/task"),
        ("", "folder", "", "task", "folder/task"),
        ("/home/kept/1", "s3://bucket", "run", "task", "/home/kept/1/task"),
    ],
)
def test_every_attempt_at_a_task_finds_the_same_place(
    given: str, root: str, run: str, task: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKONE_CHECKPOINTS", given)
    monkeypatch.setenv("RANKONE_PIPELINE_RUN", run)
    monkeypatch.setenv("RANKONE_PIPELINE_TASK", task)
    assert checkpoint_place(root) == place
