"""Two real processes over gloo on the loopback must train as one does."""

import os
import socket
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from retrieval import distributed
from retrieval.adjusting import ADJUSTING, adjusting_objective
from retrieval.augmentation import named_augmentation
from retrieval.checkpoints import Checkpoint
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.image_batches import ImageBatches
from retrieval.losses import MetricObjective
from retrieval.training import ByLabel, Schedule, fit

CPU = torch.device("cpu")
CASES = ["normalised_softmax", "multi_similarity", "plain", *ADJUSTING]


def make_dataset(folder: Path) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)
    names = np.arange(30).astype(str)
    values = [np.arange(30), np.arange(30) % 5, names, ["train"] * 30, names, ["0"] * 30, *[[6] * 30] * 2]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    return save_dataset(folder, [pixels], index, list("abcde"), {})


def train(case: str, dataset: Dataset, seed_of_weights: int = 0) -> dict[str, torch.Tensor]:
    """A few steps in float32 on batches of which each process takes its share; no batch norm.

    In bfloat16 a half batch rounds differently than a whole one, on machines that have it.
    """
    with mock.patch("retrieval.training.autocast", return_value=nullcontext()):
        return train_in_float32(case, dataset, seed_of_weights)


def train_in_float32(case: str, dataset: Dataset, seed_of_weights: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed_of_weights)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8))
    labels = torch.arange(30) % 5
    objective: nn.Module
    if case in ADJUSTING:
        targets = torch.randn((30, 5), generator=torch.Generator().manual_seed(1))
        objective = adjusting_objective(case, targets, labels, 8)
    else:
        objective = ByLabel(MetricObjective("normalised_softmax" if case == "plain" else case, 5, 8))
    told: list[int] = []
    history = fit(
        network,
        objective,
        ImageBatches(dataset, np.arange(30), CPU),
        labels,
        Schedule(2, 0.05),
        batch_size=10,
        seed=3,
        augment=named_augmentation("none"),
        device=CPU,
        name="test",
        balanced=None if case in ("plain", *ADJUSTING) else (5, 2),
        on_epoch=lambda epoch, _: told.append(epoch),
    )
    assert told == ([0, 1] if distributed.is_first() else [])
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    state |= {f"objective.{name}": value for name, value in objective.state_dict().items()}
    losses = torch.tensor([numbers["loss"] for numbers in history.epochs])
    return {name: value.clone() for name, value in (state | {"losses": losses}).items()}


def process(rank: int, folder: Path, port: int) -> None:
    """One of two processes: joins, trains all cases from weights of its own, writes what came out."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.setup(CPU)
    distributed.setup(CPU)  # a second call changes nothing
    dataset = Dataset(folder / "dataset")
    results = {case: train(case, dataset, seed_of_weights=rank) for case in CASES}
    results["labels"] = {"gathered": distributed.gather(torch.tensor([rank, rank + 10]))}
    torch.save(results, folder / f"result-{rank}.pt")
    try:
        distributed.own_share(torch.zeros((2, 5)))
    except ValueError as error:
        (folder / f"error-{rank}").write_text(str(error))
    dist.barrier()
    distributed.close()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, dict[str, torch.Tensor]]]]:
    folder = tmp_path_factory.mktemp("processes")
    make_dataset(folder / "dataset")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (folder, port), nprocs=2)
    return folder, [torch.load(folder / f"result-{rank}.pt") for rank in range(2)]


Together = tuple[Path, list[dict[str, dict[str, torch.Tensor]]]]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(together: Together, case: str) -> None:
    folder, results = together
    alone = train(case, Dataset(folder / "dataset"))
    for result in results:
        assert set(result[case]) == set(alone)
        for name, value in alone.items():
            assert torch.allclose(result[case][name], value, rtol=1e-5, atol=1e-5), name
    start = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert not torch.allclose(alone["network.0.weight"], start[0].weight, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_processes_stay_equal(together: Together, case: str) -> None:
    first, second = (result[case] for result in together[1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_labels_are_gathered_in_the_order_of_the_ranks(together: Together) -> None:
    for result in together[1]:
        assert result["labels"]["gathered"].tolist() == [0, 10, 1, 11]


def test_a_batch_that_cannot_be_shared_is_refused(together: Together) -> None:
    for rank in range(2):
        assert "A batch of 5 images cannot be shared equally among 2" in (together[0] / f"error-{rank}").read_text()


def test_alone_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.setup(CPU)
    tensor = torch.rand((4, 2), requires_grad=True)
    network = nn.Linear(2, 2)
    assert distributed.gather_with_gradient(tensor) is tensor
    assert distributed.gather(tensor) is tensor
    assert distributed.share_network(network, CPU) is network
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
    assert torch.equal(distributed.own_share(tensor), tensor)
    distributed.close()


class PowerFailureError(Exception):
    """What stops a training in the test below."""


def train_or_fail(dataset: Dataset, kept: str, fail_in: int, anew: bool = False) -> torch.Tensor:
    """Weights after two epochs; fails in step `fail_in`. What was kept must be gone on with, or begun anew."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 8))
    asked: list[int] = []

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = ByLabel(MetricObjective("normalised_softmax", 5, 8))

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            asked.append(1)
            if len(asked) == fail_in:
                raise PowerFailureError
            return self.loss(*given)

    objective = Failing()
    checkpoint = Checkpoint(kept, "training", "this", 1e-9) if kept else None
    fit(
        network,
        objective,
        ImageBatches(dataset, np.arange(30), CPU),
        torch.arange(30) % 5,
        Schedule(2, 0.05),
        batch_size=6,
        seed=0,
        augment=named_augmentation("shift"),
        device=CPU,
        name="test",
        checkpoint=checkpoint,
    )
    if kept:
        assert (len(asked) == 10) == anew
    return torch.cat([value.flatten().float() for module in (network, objective) for value in module.parameters()])


def resume_in_one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.setup(CPU)
    dataset, kept = Dataset(Path(folder) / "dataset"), str(Path(folder) / "kept")
    with mock.patch("retrieval.checkpoints.STEPS_BETWEEN_AGREEMENTS", 2):
        whole = train_or_fail(dataset, "", 0)
        try:
            train_or_fail(dataset, kept, fail_in=9)
        except PowerFailureError:
            dist.barrier()
        assert distributed.rank() or (Path(kept) / "training.safetensors").exists()
        resumed = train_or_fail(dataset, kept, 0)
        assert torch.equal(whole, resumed)
        own = f"{kept} by {rank}"  # as on disks of their own: one process finds a state and the other none
        try:
            train_or_fail(dataset, own, fail_in=9)
        except PowerFailureError:
            dist.barrier()
        assert torch.equal(whole, train_or_fail(dataset, own, 0, anew=True))
    distributed.close()


def test_two_processes_agree_on_a_state_and_resume_with_the_same_bytes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "dataset")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(resume_in_one_of_two, args=(port, str(tmp_path)), nprocs=2)
