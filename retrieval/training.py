"""The training loop, one for every step that trains: made for speed, it does not wait for the device at every step."""

import io
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from retrieval import distributed
from retrieval.augmentation import Augmentation
from retrieval.checkpoints import Checkpoint, State
from retrieval.crowding import Crowding
from retrieval.devices import autocast
from retrieval.image_batches import ImageBatches
from retrieval.progress import Progress
from retrieval.quarter_turns import QuarterTurns
from retrieval.sampling import balanced_order, shuffled_order

SECONDS_BETWEEN_READS = 2.0  # how often the loop waits for the device to read the losses
OnEpoch = Callable[[int, dict[str, float]], None]


def cosine(progress: float, warmup: float) -> float:
    """A linear rise over `warmup`, then half a cosine down to 0 (Loshchilov and Hutter 2017); all in [0, 1]."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def one_cycle(progress: float, warmup: float) -> float:
    """A linear rise from a fifth over `warmup`, then a straight line down to 0 (after Smith 2018)."""
    if progress < warmup:
        return 0.2 + 0.8 * progress / warmup
    return (1 - progress) / (1 - warmup)


SHAPES: dict[str, Callable[[float, float], float]] = {"cosine": cosine, "one_cycle": one_cycle}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network trains.

    Attributes:
        epochs: passes over the images.
        learning_rate: the highest rate.
        weight_decay: of weights; norms, biases and other vectors, and the objective's parameters, do not decay.
        momentum: of SGD with Nesterov's correction.
        warmup_fraction: share of all steps in which the rate rises.
        shape: "cosine" or "one_cycle": how the rate goes from step to step.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup_fraction: float = 0.2
    shape: str = "cosine"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"Unknown schedule '{self.shape}'; choose one of: {', '.join(SHAPES)}.")
        if self.epochs < 1 or not 0 <= self.warmup_fraction < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"epochs {self.epochs}, learning_rate {self.learning_rate}, warmup_fraction {self.warmup_fraction}: "
                "train at least one epoch, at a rate above 0, with a warm-up of less than the whole."
            )

    def rate(self, step: int, steps: int) -> float:
        """The rate of a step, from 0, of so many: taken at the middle of the step, so that no step has rate 0."""
        return self.learning_rate * SHAPES[self.shape]((step + 0.5) / steps, self.warmup_fraction)


@dataclass
class History:
    """What a training did.

    Attributes:
        epochs: of each one the loss (mean of its steps), learning_rate (of its last step) and images_per_second.
        images: that were trained on, counted each time.
        seconds: of training, without what was done between the epochs.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Over all epochs; 0 when there were none."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def loss(self) -> float:
        """Mean loss of the last epoch."""
        return self.epochs[-1]["loss"]


class ByLabel(nn.Module):
    """An objective of embeddings and labels, for `fit`, which also offers positions.

    Args:
        loss: forward(embeddings (b, d), labels (b,)) -> scalar.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        """The loss of a batch, whatever its positions."""
        return self.loss(outputs, labels)


def fit(
    network: nn.Module,
    objective: nn.Module,
    images: ImageBatches | QuarterTurns,
    labels: Tensor,
    schedule: Schedule,
    *,
    batch_size: int,
    seed: int,
    augment: Augmentation,
    device: torch.device,
    name: str,
    balanced: tuple[int, int] | None = None,
    on_epoch: OnEpoch | None = None,
    objective_learning_rate_factor: float = 1.0,
    compile: bool = False,
    averaged_from: float | None = None,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train a network, and the objective's own parameters, by SGD. Both are changed in place and end on the device.

    Under torchrun each process takes its share of every batch, outputs are gathered, and every process computes the
    loss of the whole batch. Inside an epoch the loop waits for the device once in SECONDS_BETWEEN_READS, to read
    losses; those that list their pairs wait for it at every step.
    The same seed gives the same weights on the same machine, on a CPU bit for bit with as many threads (other programs
    may cost it some until it ends, see crowding.py; a GPU may add up a gradient in another order); the global random
    state is left as it was. So it is when a training is stopped at any moment and called again with the same
    checkpoint: it goes on at the state kept last.

    Args:
        network: forward(images (b, 3, h, w) float in [0, 1], channels last) -> (b, d), run in bfloat16 if it is fast.
        objective: forward(outputs (b, d) float32, labels (b,) int64, positions (b,) int64) -> scalar.
        images: n images; `positions` count in them.
        labels: (n,) int64.
        schedule: epochs and rates.
        batch_size: images of a step over all processes; all of them when there are fewer. `balanced` has its own.
        seed: of sampling, augmentation and dropout.
        augment: (b, 3, h, w) uint8 and a generator -> float in [0, 1].
        device: where to train; `images` must deliver there.
        name: of the step, for progress and errors.
        balanced: classes_per_batch and images_per_class of class-balanced batches; plain shuffled ones when None.
        on_epoch: called by the first process after each epoch with its number, from 0, and its numbers.
        objective_learning_rate_factor: times the rate for the objective's parameters (proxies).
        compile: run the network through torch.compile.
        averaged_from: share of the steps, from 0 to below 1, after which the mean of the weights begins that network
            and objective have in the end (Izmailov et al., UAI 2018; differs: the running statistics of batch norm are
            averaged as well, and not measured anew); None for those of the last step.
        checkpoint: where the state is kept now and then, and at the end, so that it need not be trained again; None for
            nowhere. The epochs of an earlier attempt are told to `on_epoch` again.

    Raises:
        ValueError: a loss that is not finite (names the step), a batch that cannot be drawn, or a share out of range.
    """

    def order_of(epoch: int) -> Tensor:
        if balanced is not None:
            return balanced_order(labels, *balanced, seed, epoch)
        return shuffled_order(len(labels), batch_size, seed, epoch, distributed.world_size())

    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels; every image needs one.")
    if averaged_from is not None and not 0 <= averaged_from < 1:
        raise ValueError(f"averaged_from is {averaged_from}; give a share of the steps from 0 to below 1.")
    labels_there = labels.to(device)
    steps, images_per_step = order_of(0).shape
    history = History()
    generator = torch.Generator(device).manual_seed(_mixed(seed))
    with (
        _own_randomness(device, _mixed(seed)),
        _reproducible_kernels(),
        Crowding(device, keeps_states=checkpoint is not None) as crowding,
        _Losses(name, schedule, steps, images_per_step, device, crowding) as losses,
    ):
        trainer = _Trainer(network, objective, schedule, objective_learning_rate_factor, device, compile)
        average = Average(trainer.state())
        kept = _Kept(checkpoint, trainer, average, losses, history, generator)
        begun = kept.resume()
        if on_epoch is not None and distributed.is_first():
            for epoch, numbers in enumerate(history.epochs):
                on_epoch(epoch, dict(numbers))
        first_averaged = math.inf if averaged_from is None else math.floor(averaged_from * schedule.epochs * steps)
        ahead, orders = itertools.tee(map(order_of, range(begun.epoch, schedule.epochs)))
        rest = (order[begun.step if number == 0 else 0 :] for number, order in enumerate(ahead))
        batches = images.batches(map(distributed.own_share, rest))
        for epoch, order in enumerate(orders, begun.epoch):
            first, before = (begun.step, begun.seconds) if epoch == begun.epoch else (0, 0.0)
            started = time.perf_counter() - before
            rows = order.to(device)
            for step, positions in enumerate(rows[first:], first):
                rate = schedule.rate(epoch * len(rows) + step, schedule.epochs * len(rows))
                loss = trainer.step(augment(next(batches), generator), labels_there[positions], positions, rate)
                losses.add(loss)
                if epoch * steps + step >= first_averaged:
                    average.add()
                if step + 1 < steps:
                    kept.keep_if_due(_Position(epoch, step + 1, time.perf_counter() - started))
            mean = losses.end_epoch()
            elapsed = time.perf_counter() - started
            numbers = {"loss": mean, "learning_rate": rate, "images_per_second": order.numel() / elapsed}
            history.epochs.append(numbers)
            history.images, history.seconds = history.images + order.numel(), history.seconds + elapsed
            if on_epoch is not None and distributed.is_first():
                on_epoch(epoch, dict(numbers))
            kept.keep_if_due(_Position(epoch + 1), last=epoch + 1 == schedule.epochs)
        average.write()
    return history


@dataclass(frozen=True)
class _Position:
    """Where a training is: the epoch, the next step in it, and the seconds that the epoch has taken."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0


class _Kept:
    """All that a training changes, on its way to a checkpoint and back.

    Weights, the optimiser's memory, the average, the losses of the epoch, what was done before, and the generators of
    augmentation and dropout, of every process. Batches need none: they are drawn from the seed and the epoch alone, and
    nothing here draws from Python's or NumPy's global generators.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        trainer: "_Trainer",
        average: "Average",
        losses: "_Losses",
        history: History,
        generator: torch.Generator,
    ) -> None:
        self._checkpoint, self._trainer, self._average = checkpoint, trainer, average
        self._losses, self._history, self._generator = losses, history, generator
        self._device = trainer.device

    def keep_if_due(self, position: _Position, last: bool = False) -> None:
        """Keep the state, from which the training goes on at a position, when it is time for it or at the end."""
        if self._checkpoint is None or not (last or self._checkpoint.due(self._device)):
            return
        tensors = {
            **self._trainer.tensors(),
            **{f"average.{number}": mean for number, mean in enumerate(self._average.means)},
            "losses": self._losses.of_epoch(),
            "augmentation": self._of_all_processes(self._generator.get_state()),
            "dropout": self._of_all_processes(torch.get_rng_state()),
        }
        if self._device.type == "cuda":
            tensors["dropout_cuda"] = self._of_all_processes(torch.cuda.get_rng_state(self._device))
        facts = {"position": asdict(position), "history": asdict(self._history), "averaged": self._average.count}
        self._checkpoint.write(State(tensors, facts), wait=last)

    def resume(self) -> _Position:
        """Put the state that was kept last in the place of the present one; returns where the training goes on."""
        state = self._checkpoint.read() if self._checkpoint is not None else None
        position = _Position(**state.facts["position"]) if state is not None else _Position(-1, -1)
        where = torch.tensor([[position.epoch, position.step]], device=self._device)
        if len(distributed.gather(where).unique(dim=0)) > 1 or state is None:  # every process gathers, with or without
            return _Position()  # one process cannot see what another does: all begin anew
        tensors, own = state.tensors, distributed.rank()
        self._trainer.restore(tensors)
        means = [tensors[f"average.{number}"] for number in range(len(tensors)) if f"average.{number}" in tensors]
        self._average.restore(means, state.facts["averaged"])
        self._losses.resume(position.epoch, tensors["losses"])
        history = state.facts["history"]
        self._history.epochs += history["epochs"]
        self._history.images, self._history.seconds = history["images"], history["seconds"]
        self._generator.set_state(tensors["augmentation"][own].clone())  # reads from where storage begins
        torch.set_rng_state(tensors["dropout"][own].clone())
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["dropout_cuda"][own].clone(), self._device)
        self._losses.say_resumed()
        return position

    def _of_all_processes(self, state: Tensor) -> Tensor:
        """One row a process."""
        return distributed.gather(state[None].to(self._device))


class _Trainer:
    """The network and the objective with their optimiser: one call a step."""

    def __init__(
        self,
        network: nn.Module,
        objective: nn.Module,
        schedule: Schedule,
        factor: float,
        device: torch.device,
        compile: bool,
    ) -> None:
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network, self.objective, self.device = network, objective.to(device), device
        distributed.same_everywhere(objective)
        shared = distributed.share_network(network, device)
        self.forward = torch.compile(shared) if compile else shared
        groups = [
            {"params": params, "weight_decay": decay, "factor": factor}
            for params, decay, factor in [
                *zip(decayed_and_not(network), (schedule.weight_decay, 0.0), (1.0, 1.0), strict=True),
                (trainable(objective), 0.0, factor),
            ]
            if params
        ]
        nesterov = schedule.momentum > 0
        self.optimiser = torch.optim.SGD(
            groups, lr=schedule.learning_rate, momentum=schedule.momentum, nesterov=nesterov, fused=True
        )

    def step(self, images: Tensor, labels: Tensor, positions: Tensor, rate: float) -> Tensor:
        """One step; returns the loss, on the device. Labels and positions are those of the whole batch."""
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        with autocast(self.device):
            outputs = self.forward(images)
        loss = self.objective(distributed.gather_with_gradient(outputs.float()), labels, positions)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self.objective)
        self.optimiser.step()
        return loss.detach()

    def tensors(self) -> dict[str, Tensor]:
        """What a step changes, by name: weights, running statistics and the optimiser's memory."""
        found = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        found |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        for number, parameter in enumerate(self._optimised()):
            if (memory := self.optimiser.state[parameter].get("momentum_buffer")) is not None:
                found[f"momentum.{number}"] = memory
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors, as `tensors` gave them, in the place of the present ones, laid out in memory as these are."""
        for name, module in (("network.", self.network), ("objective.", self.objective)):
            module.load_state_dict(
                {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}
            )
        for number, parameter in enumerate(self._optimised()):
            if (memory := tensors.get(f"momentum.{number}")) is not None:
                self.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).detach().copy_(memory)

    def _optimised(self) -> list[Tensor]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def state(self) -> list[Tensor]:
        """Parameters and buffers of the network and the objective: the tensors that a step changes."""
        modules = (self.network, self.objective)
        return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


class Average:
    """The plain mean of tensors over some steps, kept on their device without waiting for it.

    Args:
        tensors: that change in place from step to step; those that are not floating point are left alone.

    Attributes:
        means: of each tensor; empty until one was taken in.
        count: of how many steps.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        self.means: list[Tensor] = []
        self.count = 0

    def add(self) -> None:
        """Take in the tensors as they are now."""
        self.count += 1
        if self.count == 1:
            self.means = [tensor.clone() for tensor in self._tensors]
            return
        for mean, tensor in zip(self.means, self._tensors, strict=True):
            mean.lerp_(tensor, 1 / self.count)

    def restore(self, means: list[Tensor], count: int) -> None:
        """Go on from means of so many steps."""
        self.means = [torch.empty_like(tensor).copy_(mean) for mean, tensor in zip(means, self._tensors, strict=False)]
        self.count = count

    def write(self) -> None:
        """Put the means into the tensors; nothing when none were taken in."""
        for mean, tensor in zip(self.means, self._tensors, strict=False):
            tensor.copy_(mean)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are to be trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def decayed_and_not(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights, which decay, and the rest, which does not: biases, norms, GeM's power (one dimension or none)."""
    parameters = trainable(network)
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


class _Losses:
    """The losses of an epoch, kept on the device and read now and then: shows progress, stops when not finite."""

    def __init__(
        self, name: str, schedule: Schedule, steps: int, images: int, device: torch.device, crowding: Crowding
    ) -> None:
        self._name, self._epochs, self._steps, self._images = name, schedule.epochs, steps, images
        self._rate = schedule.learning_rate
        self._losses = torch.zeros(steps, device=device)
        self._epoch = self._done = self._read_to = 0
        stream = sys.stdout if distributed.is_first() else io.StringIO()
        self._progress = Progress(name, total=schedule.epochs * steps * images, unit="images", stream=stream)
        self._last_read = time.monotonic()
        self._crowding = crowding

    def add(self, loss: Tensor) -> None:
        self._losses[self._done] = loss
        self._done += 1
        if time.monotonic() - self._last_read >= SECONDS_BETWEEN_READS:
            self._read()

    def end_epoch(self) -> float:
        """The mean loss of the epoch; waits for the device."""
        mean = self._read()
        self._epoch, self._done, self._read_to = self._epoch + 1, 0, 0
        return mean

    def of_epoch(self) -> Tensor:
        """(steps so far,) the losses of this epoch, on the device."""
        return self._losses[: self._done]

    def resume(self, epoch: int, losses: Tensor) -> None:
        """Go on amid an epoch, of which these losses are known."""
        self._epoch, self._done, self._read_to = epoch, len(losses), len(losses)
        self._losses[: self._done] = losses
        self._progress.begin_at((epoch * self._steps + self._done) * self._images)

    def say_resumed(self) -> None:
        """Say where the training goes on."""
        done, all_steps = self._epoch * self._steps + self._done, self._epochs * self._steps
        distributed.say(f"{self._name}: resumed from a checkpoint, after step {done:,} of {all_steps:,}.")

    def __enter__(self) -> "_Losses":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)

    def _read(self) -> float:
        losses = self._losses[: self._done].cpu()
        bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
        if bad:
            step = self._epoch * self._steps + bad[0] + 1
            raise ValueError(
                f"{self._name}: the loss is {losses[bad[0]].item()} at step {step} of {self._epochs * self._steps} "
                f"(epoch {self._epoch + 1} of {self._epochs}); the rate reaches {self._rate:g}: try a lower one."
            )
        recent = losses[self._read_to :] if self._done > self._read_to else losses
        self._progress.name = (
            f"{self._name}: epoch {self._epoch + 1} of {self._epochs}, step {self._done} of {self._steps}"
        )
        self._progress.advance((self._done - self._read_to) * self._images, loss=float(recent.mean()))
        self._read_to, self._last_read = self._done, time.monotonic()
        if done := self._crowding.relieve():
            distributed.say(f"{self._name}: {done}")
        return float(losses.double().mean())


def _mixed(seed: int) -> int:
    """A seed for this process: its own augmentation and dropout for its own share."""
    return (seed * 1_000_003 + distributed.rank()) % 2**63  # torch takes no longer one


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators, for dropout, and put them back afterwards."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _reproducible_kernels() -> AbstractContextManager[None]:
    """cuDNN's convolutions that give the same bytes every time."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True)
