import io
import math
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from retrieval import crowding, training
from retrieval.augmentation import named_augmentation
from retrieval.checkpoints import Checkpoint
from retrieval.crowding import Crowding
from retrieval.dataset import INDEX_SCHEMA, Dataset, save_dataset
from retrieval.image_batches import ImageBatches
from retrieval.losses import MetricObjective
from retrieval.relations import Relations
from retrieval.training import SHAPES, ByLabel, History, Schedule, decayed_and_not, fit

CPU = torch.device("cpu")
LABELS = torch.arange(48) % 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """48 images of four classes, each with a bright quarter of its own."""
    pixels = np.random.default_rng(0).integers(0, 128, (48, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        row, column = divmod(number % 4, 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
    names = np.arange(48).astype(str)
    values = [np.arange(48), LABELS.numpy(), names, ["train"] * 48, names, ["0"] * 48, *[[8] * 48] * 2]
    index = pa.table([pa.array(value) for value in values], names=INDEX_SCHEMA.names)
    return save_dataset(tmp_path_factory.mktemp("data") / "dataset", [pixels], index, list("abcd"), {})


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16))


def train(dataset: Dataset, **changes: Any) -> tuple[nn.Module, History]:
    network = changes.pop("network", None) or small_network()
    objective = changes.pop("objective", None) or ByLabel(MetricObjective("normalised_softmax", 4, 16))
    images = ImageBatches(dataset, np.arange(48), CPU, changes.pop("memory_limit", None))
    schedule = changes.pop("schedule", Schedule(2, 0.05))
    given = {
        "batch_size": 16,
        "seed": 0,
        "augment": named_augmentation("shift"),
        "device": CPU,
        "name": "test",
    } | changes
    return network, fit(network, objective, images, LABELS, schedule, **given)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def test_it_learns(dataset: Dataset) -> None:
    _, history = train(dataset, schedule=Schedule(8, 0.05))
    losses = [numbers["loss"] for numbers in history.epochs]
    assert len(losses) == 8
    assert losses[-1] < 0.6 * losses[0]
    assert history.images == 8 * 48
    assert history.images_per_second > 0


@pytest.mark.parametrize("balanced", [None, (4, 3)])
def test_the_same_seed_gives_the_same_bytes(dataset: Dataset, balanced: tuple[int, int] | None) -> None:
    torch.manual_seed(11)
    first, one = train(dataset, balanced=balanced)
    torch.rand(5)
    second, two = train(dataset, balanced=balanced)
    other, _ = train(dataset, balanced=balanced, seed=1)
    assert torch.equal(weights(first), weights(second))
    assert [e["loss"] for e in one.epochs] == [e["loss"] for e in two.epochs]
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("seed", [20_261_128_123_456, 2**63 - 1, 2**64 - 1])
def test_a_seed_may_be_as_long_as_the_knob_takes_it(dataset: Dataset, seed: int) -> None:
    """Steps pass twice the knob's number and one."""
    first, _ = train(dataset, seed=seed, schedule=Schedule(1, 0.05))
    second, _ = train(dataset, seed=seed, schedule=Schedule(1, 0.05))
    assert torch.equal(weights(first), weights(second))


def test_dropout_is_seeded_too_and_the_global_state_is_left_alone(dataset: Dataset) -> None:
    network = lambda: nn.Sequential(small_network(), nn.Dropout(0.5))  # noqa: E731
    objective = ByLabel(MetricObjective("normalised_softmax", 4, 16))
    state = torch.random.get_rng_state()
    initial = {name: value.clone() for name, value in objective.state_dict().items()}
    first, _ = train(dataset, network=(built := network()), objective=objective)
    after = torch.random.get_rng_state()
    objective.load_state_dict(initial)
    torch.manual_seed(99)
    second, _ = train(dataset, network=network(), objective=objective)
    assert torch.equal(weights(first), weights(second))
    assert first is built
    assert not torch.equal(state, after)  # building drew numbers; training did not, see below
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    train(dataset, network=first, objective=objective)
    assert torch.equal(state, torch.random.get_rng_state())


def test_streamed_images_train_to_the_same_bytes_as_resident_ones(dataset: Dataset) -> None:
    resident, _ = train(dataset)
    streamed, _ = train(dataset, memory_limit=0)
    assert torch.equal(weights(resident), weights(streamed))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gather-images")]


class TurnsBad(nn.Module):
    """Finite until a step, from then on not a number."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        self.calls += 1
        return outputs.square().mean() * (math.nan if self.calls >= self.step else 1.0)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"test: the loss is nan at step 5 of 9 \(epoch 2 of 3\).*0\.07: try a lower"):
        train(dataset, objective=TurnsBad(5), schedule=Schedule(3, 0.07))


def test_it_stops_within_an_epoch(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_READS", 0.0)
    objective = TurnsBad(1)
    with pytest.raises(ValueError, match="at step 1 of 9"):
        train(dataset, objective=objective, schedule=Schedule(3, 0.1))
    assert objective.calls == 1


def test_the_losses_are_read_once_an_epoch_when_epochs_are_short(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_READS", 1e9)
    reads: list[int] = []
    read = training._Losses._read

    def counted(self: Any) -> float:
        reads.append(self._done)
        return read(self)

    monkeypatch.setattr(training._Losses, "_read", counted)
    train(dataset)
    assert reads == [3, 3]


class Notes(nn.Module):
    """Notes what the objective is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        assert len(outputs) == len(labels) == len(positions)
        self.seen.append((labels, positions))
        return outputs.square().mean()


def test_the_objective_gets_the_labels_of_the_positions_it_gets(dataset: Dataset) -> None:
    notes = Notes()
    train(dataset, objective=notes)
    assert len(notes.seen) == 6
    for labels, positions in notes.seen:
        assert torch.equal(labels, LABELS[positions])
    assert torch.equal(torch.cat([positions for _, positions in notes.seen[:3]]).sort().values, torch.arange(48))


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(1, 0.4, warmup_fraction=0.25)
    rates = [schedule.rate(step, 8) for step in range(8)]
    assert rates[:2] == pytest.approx([0.4 * 0.25, 0.4 * 0.75])
    assert rates[2] == pytest.approx(0.2 * (1 + math.cos(math.pi * 0.0625 / 0.75)))
    assert rates[7] == pytest.approx(0.2 * (1 + math.cos(math.pi * (0.9375 - 0.25) / 0.75)))
    line = Schedule(1, 1.0, warmup_fraction=0.5, shape="one_cycle")
    assert [line.rate(step, 4) for step in range(4)] == pytest.approx([0.4, 0.8, 0.75, 0.25])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_every_rate_is_above_zero_and_at_most_the_highest(shape: str, warmup: float) -> None:
    for steps in (1, 2, 7, 100):
        rates = [Schedule(1, 0.3, warmup_fraction=warmup, shape=shape).rate(step, steps) for step in range(steps)]
        assert all(0 < rate <= 0.3 for rate in rates)
    assert rates[-1] < 0.1 * max(rates) or warmup == 0.9


def test_a_schedule_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="Unknown schedule 'step'; choose one of: cosine, one_cycle"):
        Schedule(1, 0.1, shape="step")
    with pytest.raises(ValueError, match="epochs 0"):
        Schedule(0, 0.1)


def test_weights_decay_and_norms_and_biases_do_not() -> None:
    network = small_network()
    decayed, others = decayed_and_not(network)
    assert [tuple(p.shape) for p in decayed] == [(8, 3, 3, 3), (16, 512)]
    assert len(others) == 4


def test_proxies_train_at_their_own_rate_and_do_not_decay(dataset: Dataset) -> None:
    moved = []
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        objective = ByLabel(MetricObjective("normalised_softmax", 4, 16))
        before = objective.loss.proxies.detach().clone()
        schedule = Schedule(1, 1e-4, weight_decay=0.5)
        train(dataset, objective=objective, schedule=schedule, objective_learning_rate_factor=factor)
        moved.append(float((objective.loss.proxies.detach() - before).norm()))
    assert moved[1] / moved[0] == pytest.approx(10, rel=0.05)


def test_epochs_are_reported_and_shown(dataset: Dataset) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    with redirect_stdout(io.StringIO()) as shown:
        _, history = train(dataset, on_epoch=lambda epoch, numbers: told.append((epoch, numbers)))
    assert [epoch for epoch, _ in told] == [0, 1]
    assert told[1][1] == history.epochs[1]
    assert set(told[0][1]) == {"loss", "learning_rate", "images_per_second"}
    assert "test: epoch 2 of 2, step 3 of 3: 96 of 96 images, loss" in shown.getvalue()


def test_what_is_done_about_crowded_processors_is_shown_beside_the_progress(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crowding, "relieve", lambda _: "2 threads were given 0.6 processors")
    with redirect_stdout(io.StringIO()) as shown:
        train(dataset)
    assert "\ntest: 2 threads were given 0.6 processors\n" in shown.getvalue()


@pytest.fixture
def two_threads_of_which_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A crowded machine, seen at once."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(crowding, "SECONDS", 0.0)
    monkeypatch.setattr(crowding, "threads_for", lambda *_: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads_of_which_one_is_taken")
def test_threads_that_a_training_gave_up_are_back_when_it_has_ended(dataset: Dataset) -> None:
    during: list[int] = []
    train(dataset, on_epoch=lambda *_: during.append(torch.get_num_threads()))
    assert during == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads_of_which_one_is_taken")
def test_threads_that_a_training_gave_up_are_back_when_it_has_failed(dataset: Dataset) -> None:
    during: list[int] = []

    def fail(epoch: int, _: dict[str, float]) -> None:
        during.append(torch.get_num_threads())
        raise OSError(f"no place for epoch {epoch}")

    with pytest.raises(OSError, match="no place for epoch 0"):
        train(dataset, on_epoch=fail)
    assert during == [1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads_of_which_one_is_taken")
@pytest.mark.parametrize("kept", [True, False])
def test_a_state_to_go_on_from_is_spoken_of_where_one_is_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    checkpoint = Checkpoint(str(tmp_path), "test", "made by", 60.0) if kept else None
    with redirect_stdout(io.StringIO()) as shown:
        train(dataset, checkpoint=checkpoint)
    assert "start again with OMP_NUM_THREADS=1" in shown.getvalue()
    assert ("it goes on at the state kept last" in shown.getvalue()) == kept


class Records(ByLabel):
    """Keeps what a network's weights were whenever a step begins."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(MetricObjective("normalised_softmax", 4, 16))
        self.networks, self.seen = [network], []

    def forward(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        self.seen.append([value.clone() for value in self.networks[0].parameters()])
        return super().forward(outputs, labels, positions)


@pytest.mark.parametrize(("averaged_from", "first"), [(0.0, 0), (0.5, 4), (0.9, 8)])
def test_averaged_weights_are_the_mean_of_those_after_each_step(
    dataset: Dataset, averaged_from: float, first: int
) -> None:
    schedule = Schedule(3, 0.05)
    last = [value.detach() for value in train(dataset, network=small_network(), schedule=schedule)[0].parameters()]
    network = small_network()
    records = Records(network)
    train(dataset, network=network, objective=records, schedule=schedule, averaged_from=averaged_from)
    after = [*records.seen[1:], last]  # of 9 steps
    assert len(after) == 9
    for number, parameter in enumerate(network.parameters()):
        mean = sum(weights[number] for weights in after[first:]) / len(after[first:])
        torch.testing.assert_close(parameter.detach(), mean, atol=1e-6, rtol=1e-5)


def test_running_statistics_and_proxies_are_averaged_and_counters_are_not(dataset: Dataset) -> None:
    network = small_network()
    objective = ByLabel(MetricObjective("normalised_softmax", 4, 16))
    torch.manual_seed(1)
    plain = ByLabel(MetricObjective("normalised_softmax", 4, 16))
    objective.load_state_dict(plain.state_dict())
    train(dataset, network=network, objective=objective, averaged_from=0.5)
    other, _ = train(dataset, objective=plain)
    assert network[1].num_batches_tracked == 6
    assert not torch.equal(network[1].running_mean, other[1].running_mean)
    assert not torch.equal(objective.loss.proxies, plain.loss.proxies)


def test_an_average_begins_within_the_training(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="averaged_from is 1; give a share"):
        train(dataset, averaged_from=1)


def test_as_many_labels_as_images(dataset: Dataset) -> None:
    images = ImageBatches(dataset, np.arange(10), CPU)
    with pytest.raises(ValueError, match="10 images and 48 labels"):
        fit(
            small_network(), Notes(), images, LABELS, Schedule(1, 0.1),
            batch_size=4, seed=0, augment=named_augmentation("none"), device=CPU, name="test",
        )  # fmt: skip


def test_compiled_and_not_give_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    network, _ = train(dataset, compile=True)
    assert compiled == [network]


def test_relations_are_learned(dataset: Dataset) -> None:
    targets = nn.functional.one_hot(LABELS, 4).float() + 0.1
    objective = Relations(targets)
    _, history = train(dataset, objective=objective, schedule=Schedule(10, 0.05))
    losses = [numbers["loss"] for numbers in history.epochs]
    assert losses[-1] < 0.5 * losses[0]


def test_relations_refuse_targets_without_a_direction() -> None:
    targets = torch.ones(5, 3)
    targets[3] = 0
    with pytest.raises(ValueError, match="1 of 5 targets are zero or not finite, the first at position 3"):
        Relations(targets)


@pytest.mark.parametrize("count", [1, 2])
def test_relations_refuse_a_batch_of_a_single_pair(count: int) -> None:
    with pytest.raises(ValueError, match=rf"A batch of {count} images has {count - 1} pair\(s\); .* raise batch_size"):
        Relations(torch.eye(5))(torch.randn(count, 4), LABELS[:count], torch.arange(count))


def test_relations_that_are_met_cost_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    targets = torch.randn((8, 5), generator=random)
    turn = torch.linalg.qr(torch.randn((9, 5), generator=random)).Q  # into more dimensions, all cosines kept
    positions = torch.tensor([4, 1, 7, 2])
    met = Relations(targets)((3 * targets @ turn.T)[positions], positions, positions)
    assert float(met) == pytest.approx(0, abs=1e-5)
    corner = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])  # cosines 0.8, 0, 0.6
    rows = torch.tensor([[1.5, 0.5], [0.5, 1.5], [0.5, -0.2]])
    loss = Relations(corner)(rows, positions[:3], torch.arange(3))
    pairs = [(rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2])]
    student = [float(torch.cosine_similarity(*pair, dim=0)) for pair in pairs]
    assert float(loss) == pytest.approx(1 - np.corrcoef(student, [0.8, 0.0, 0.6])[0, 1], abs=1e-5)
    assert float(Relations(targets)(torch.randn((4, 9), generator=random), positions, positions)) > 0.1


def test_cross_entropy_of_cosines_by_hand() -> None:
    from retrieval.cosine_layer import CosineLayer, class_centres

    random = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn((6, 4), generator=random), torch.tensor([0, 1, 2, 0, 1, 2])
    layer = CosineLayer(class_centres(embeddings, labels), scale=3.0, label_smoothing=0.2)
    total = 0.0
    for row, label in zip(embeddings, labels, strict=True):
        logits = [3 * float(row @ w / (row.norm() * w.norm())) for w in layer.weight.detach()]
        log_sum = math.log(sum(math.exp(logit) for logit in logits))
        shares = [0.2 / 3 + (0.8 if number == label else 0.0) for number in range(3)]
        total -= sum(share * (logit - log_sum) for share, logit in zip(shares, logits, strict=True))
    assert float(layer(embeddings, labels, labels).detach()) == pytest.approx(total / 6, rel=1e-5)
    assert cross_entropy(layer.logits(embeddings), labels, label_smoothing=0.2) == layer(embeddings, labels, labels)
