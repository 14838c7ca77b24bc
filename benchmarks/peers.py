"""Training and measuring as users would otherwise: beside pytorch-metric-learning and open-metric-learning, in one run.

    python -m benchmarks.peers --set cifar100 --location FOLDER [--loss normalised_softmax] [--epochs 4] [--batch 256]
        [--images-per-class 0] [--seed 0] [--border constant] [--oml PYTHON]
    python -m benchmarks.peers --exact 20000 [--oml PYTHON]

Training. The same four-layer network, images, batch, epochs, optimiser (SGD, Nesterov, no decay of vectors) and rates:

- rankone: retrieval.training.fit;
- pml: the loop of pytorch-metric-learning's documentation, in float32: a DataLoader over PIL images with torchvision's
  RandomCrop (padding of an eighth of the side, 4 at 32 px; black as by itself, or with --border edge as rankone shifts)
  and RandomHorizontalFlip, NormalizedSoftmaxLoss at the same temperature, or MultiSimilarityLoss with
  MultiSimilarityMiner and MPerClassSampler (4 a class);
- pml, autocast: the same loop in the precision that rankone takes;
- oml, with --oml, an interpreter that has open-metric-learning (it needs numpy below 2, hence an environment of its
  own): its documented loop with its ArcFaceLoss without margin, or its TripletLossWithMiner with BalanceSampler.

Printed are R@1 among the test images (computed alike for all), images a second and CPU seconds of training, without
measuring, and the seconds after which R@1 on validation first reached what the best epoch of every side reached.

--exact N compares the computing of R@1 alone, of N embeddings of 128 dimensions: rankone, faiss, pml's
AccuracyCalculator, oml's RetrievalResults; best of three.
"""

import argparse
import copy
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import method
from benchmarks.neighbours import by_faiss, clustered
from benchmarks.prepare_data import cpu_seconds
from benchmarks.threads import keep_threads
from benchmarks.training import Pictures
from retrieval.augmentation import SHIFT, named_augmentation
from retrieval.colours import colour_statistics
from retrieval.dataset import Dataset
from retrieval.devices import autocast, describe, pick_device
from retrieval.features import embed
from retrieval.image_batches import ImageBatches
from retrieval.losses import LOSSES, MetricObjective
from retrieval.metrics import recall_at_1
from retrieval.models import EmbeddingModel, ModelConfig, build_network
from retrieval.training import ByLabel, Schedule, decayed_and_not, fit, trainable
from retrieval.validation import validation_recall_at_1

IMAGES_PER_CLASS = 4  # in the batches of a loss of pairs
LOSSES_COMPARED = ("normalised_softmax", "multi_similarity")


@dataclass
class Watch:
    """Seconds of training, without what is done between: (wall, CPU, R@1 on validation) after each epoch."""

    measure: Callable[[], float | None]
    curve: list[tuple[float, float, float]] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0

    def start(self) -> None:
        self._begun = time.perf_counter(), cpu_seconds()

    def end_epoch(self) -> None:
        self.wall += time.perf_counter() - self._begun[0]
        self.cpu += cpu_seconds() - self._begun[1]
        self.curve.append((self.wall, self.cpu, self.measure() or 0.0))
        self.start()


@dataclass(frozen=True)
class Task:
    """What all sides train on."""

    data: Dataset
    rows: np.ndarray
    labels: np.ndarray
    options: argparse.Namespace
    device: torch.device

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.options.epochs, self.options.learning_rate, shape="one_cycle")

    @property
    def steps(self) -> int:
        return len(self.rows) // self.options.batch

    @property
    def of_pairs(self) -> bool:
        return not LOSSES[self.options.loss].uses_proxies

    def network(self) -> EmbeddingModel:
        torch.manual_seed(self.options.seed)
        mean, std = colour_statistics(self.data, self.rows)
        config = ModelConfig(dimension=self.options.dimension, image_size=self.data.image_size, mean=mean, std=std)
        return build_network(config).to(self.device)

    def watch(self, network: EmbeddingModel) -> Watch:
        """Measures a copy: embedding lays a network out in memory as it likes, which is not the side's own way."""
        return Watch(lambda: validation_recall_at_1(copy.deepcopy(network), self.data, self.device))


@dataclass(frozen=True)
class Result:
    """What a side reached."""

    recall_at_1: float
    images: int
    curve: list[tuple[float, float, float]]


def rankone(task: Task) -> Result:
    network, options = task.network(), task.options
    plain = {} if task.of_pairs else {"label_smoothing": 0.0}  # the peers' softmax losses smooth no labels
    loss = MetricObjective(options.loss, int(task.labels.max()) + 1, options.dimension, **plain)
    watch = task.watch(network)
    images, labels = ImageBatches(task.data, task.rows, task.device), torch.from_numpy(task.labels)
    watch.start()
    fit(
        network, ByLabel(loss), images, labels, task.schedule,
        batch_size=options.batch, seed=options.seed, augment=named_augmentation(options.augment), device=task.device,
        name="rankone", balanced=(options.batch // IMAGES_PER_CLASS, IMAGES_PER_CLASS) if task.of_pairs else None,
        on_epoch=lambda *_: watch.end_epoch(),
    )  # fmt: skip
    return Result(tested(task, network), task.steps * options.batch * options.epochs, watch.curve)


def pml(task: Task, precise: bool = True) -> Result:
    from pytorch_metric_learning import losses, miners, samplers

    options, network = task.options, task.network().to(memory_format=torch.contiguous_format)
    pictures = Pictures(task.data, task.rows, task.labels, options.augment == "crop_flip", options.border)
    miner, sampler = None, None
    loss: nn.Module
    if task.of_pairs:
        loss, miner = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5), miners.MultiSimilarityMiner(epsilon=0.1)
        sampler = samplers.MPerClassSampler(task.labels, IMAGES_PER_CLASS, options.batch, len(task.labels))
    else:
        classes = int(task.labels.max()) + 1
        loss = losses.NormalizedSoftmaxLoss(classes, options.dimension, temperature=1 / 16).to(task.device)
    loader = DataLoader(
        pictures, options.batch, shuffle=sampler is None, sampler=sampler, drop_last=True, num_workers=options.workers
    )
    decayed, others = decayed_and_not(network)
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": [*others, *trainable(loss)], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)
    steps, schedule = len(loader) * options.epochs, task.schedule
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule.rate(min(step, steps - 1), steps) / schedule.learning_rate
    )
    watch = task.watch(network)
    watch.start()
    for _ in range(options.epochs):
        network.train()
        for number, (data, labels) in enumerate(loader):
            data, labels = data.to(task.device), labels.to(task.device)
            optimizer.zero_grad()
            if precise:
                embeddings = network(data)
            else:
                with autocast(task.device):
                    embeddings = network(data)
            embeddings = embeddings.float()
            value = loss(embeddings, labels, miner(embeddings, labels)) if miner else loss(embeddings, labels)
            value.backward()
            optimizer.step()
            scheduler.step()
            if number % 20 == 0:
                value.item()  # the documented loop prints it
        watch.end_epoch()
    return Result(tested(task, network), steps * options.batch, watch.curve)


def oml(task: Task) -> Result:
    """open-metric-learning in its own interpreter: arrays out, embeddings and its own numbers back."""
    options = task.options
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for split, rows in (("train", task.rows), *((s, task.data.rows(s)) for s in ("validation", "test"))):
            np.save(place / f"{split}_images.npy", task.data.read(rows))
            np.save(place / f"{split}_labels.npy", task.labels if split == "train" else task.data.labels[rows])
        steps = task.steps * options.epochs
        np.save(place / "rates.npy", [task.schedule.rate(step, steps) for step in range(steps)])
        mean, std = colour_statistics(task.data, task.rows)
        settings = {
            "mean": mean, "std": std, "of_pairs": task.of_pairs, "images_per_class": IMAGES_PER_CLASS,
            "flip": options.augment == "crop_flip", "size": task.data.image_size,
            **{name: getattr(options, name) for name in ("epochs", "batch", "dimension", "seed", "workers", "border")},
            "padding": round(task.data.image_size * SHIFT),
        }  # fmt: skip
        (place / "settings.json").write_text(json.dumps(settings))
        found = in_its_interpreter(options.oml, "train", place)
        embeddings = torch.from_numpy(np.load(place / "test_embeddings.npy"))
    print(f"oml by its own R@1 among the test images: {found['recall_at_1']:.4f}", flush=True)
    recall = recall_at_1(embeddings, torch.from_numpy(task.data.labels[task.data.rows("test")]))
    return Result(recall, found["images"], [tuple(point) for point in found["curve"]])


def in_its_interpreter(python: str, what: str, folder: Path) -> dict:
    command = [python, "-m", "benchmarks.peers_oml", what, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def tested(task: Task, network: EmbeddingModel) -> float:
    rows = task.data.rows("test")
    return recall_at_1(embed(network, task.data, rows, task.device), torch.from_numpy(task.data.labels[rows]))


SIDES: dict[str, Callable[[Task], Result]] = {
    "rankone": rankone,
    "pml": pml,
    "pml, autocast": lambda task: pml(task, precise=False),
    "oml": oml,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=method.SETS, default="cifar100")
    parser.add_argument("--location")
    parser.add_argument("--loss", choices=LOSSES_COMPARED, default="normalised_softmax")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--images-per-class", type=int, default=0)
    parser.add_argument("--border", choices=("constant", "edge"), default="constant", help="of the peers' RandomCrop")
    parser.add_argument("--workers", type=int, default=0, help="processes of the peers' DataLoader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--oml", help="interpreter that has open-metric-learning")
    parser.add_argument("--exact", type=int, default=0, help="compare the computing of R@1 of so many embeddings")
    options = parser.parse_args()
    keep_threads()
    if options.exact:
        exact(options.exact, options.oml)
        return
    if not options.location:
        parser.error("give --location, the folder of the set's images, or --exact")
    options.augment = "shift" if options.set == "omniglot" else "crop_flip"
    with tempfile.TemporaryDirectory() as scratch:
        data = Dataset(method.prepared(options, Path(scratch)))
        rows, device = data.rows("train"), pick_device(options.device)
        task = Task(data, rows, np.unique(data.labels[rows], return_inverse=True)[1], options, device)
        print(
            f"{options.set}: {len(rows):,} training images of {data.image_size} px, {options.loss}, {options.epochs} "
            f"epochs, batches of {options.batch}, d = {options.dimension}, seed {options.seed}; {describe(device)}"
        )
        sides = {name: side for name, side in SIDES.items() if name != "oml" or options.oml}
        show({name: side(task) for name, side in sides.items()})


def show(found: dict[str, Result]) -> None:
    goal = min(max(recall for *_, recall in result.curve) for result in found.values())
    speeds = {name: result.images / result.curve[-1][0] for name, result in found.items()}
    print(f"| | R@1 among test | validation | images/s | times | CPU s | wall s to {goal:.1%} | CPU s to it |")
    print("|---|---|---|---|---|---|---|---|")
    for name, result in found.items():
        wall, cpu = next(point[:2] for point in result.curve if point[2] >= goal)
        _, spent, validation = result.curve[-1]
        print(
            f"| {name} | {result.recall_at_1:.1%} | {validation:.1%} | {speeds[name]:,.0f} | "
            f"{speeds['rankone'] / speeds[name]:.2f} | {spent:,.1f} | {wall:,.1f} | {cpu:,.1f} |"
        )


def exact(images: int, python: str | None) -> None:
    embeddings = clustered(images, 128, 100)
    labels = torch.arange(images) % 100
    ways: dict[str, Callable[[Tensor, Tensor], float]] = {
        "rankone": recall_at_1, "faiss IndexFlatIP": faiss_recall, "pml": pml_recall,
    }  # fmt: skip
    found = {name: best_of_three(partial(way, embeddings, labels)) for name, way in ways.items()}
    if python:
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "embeddings.npy", embeddings.numpy())
            np.save(Path(folder) / "labels.npy", labels.numpy())
            found["oml"] = tuple(in_its_interpreter(python, "exact", Path(folder))["best"])
    print(f"R@1 of {images:,} x 128, best of 3, {torch.get_num_threads()} threads")
    print("| | R@1 | wall s | CPU s | CPU of rankone's |\n|---|---|---|---|---|")
    for name, (recall, wall, cpu) in found.items():
        print(f"| {name} | {recall:.5f} | {wall:.3f} | {cpu:.3f} | {cpu / found['rankone'][2]:.1f} x |")


def best_of_three(work: Callable[[], float]) -> tuple[float, float, float]:
    """R@1, and the least wall and CPU seconds."""
    runs = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        recall = work()
        runs.append((recall, time.perf_counter() - wall, time.process_time() - cpu))
    return runs[0][0], min(run[1] for run in runs), min(run[2] for run in runs)


def faiss_recall(embeddings: Tensor, labels: Tensor) -> float:
    return float((labels.numpy()[by_faiss(embeddings)] == labels.numpy()).mean())


def pml_recall(embeddings: Tensor, labels: Tensor) -> float:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("precision_at_1",), k=1, device=torch.device("cpu"))
    return calculator.get_accuracy(embeddings, labels)["precision_at_1"]


if __name__ == "__main__":
    main()
