"""What the rules of retrieval/choices.py are fitted on: R@1 of every loss, and of every learning rate, on a data set.

    python -m benchmarks.choices losses --source digits --batch-size 32 --epochs 8
    python -m benchmarks.choices losses --source cifar100 --location FOLDER --labels coarse --images-per-class 250
    python -m benchmarks.choices losses --source folder --location FOLDER --weights FILE --split disjoint
    python -m benchmarks.choices rates --source cifar100 --location FOLDER --dimensions 128 256 512

The four-layer network is trained from random weights in class-balanced batches, as finetune_metric does, with the
augmentation that the images choose; R@1 is that of the validation images among themselves, test images are held out and
never looked at. `losses` trains by every loss at the automatic rate, and says what the rule would have chosen. The
facts are those of the teacher's features: squeezenet1_0 from --weights at 64 px, else the pixels, both half-whitened.
`facts` measures those alone. `rates` trains by the first of --losses at every rate and dimension. What is more than
--keep points below the best after the first seed gets no other. Every run is printed as it ends, the table at the end.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.threads import keep_threads
from retrieval.augmentation import choose_augmentation, named_augmentation
from retrieval.choices import choose_learning_rate, choose_loss, measure_classes
from retrieval.colours import colour_statistics
from retrieval.dataset import SPLITS, Dataset, save_dataset
from retrieval.devices import describe, pick_device
from retrieval.features import embed
from retrieval.image_batches import ImageBatches
from retrieval.images import Limits
from retrieval.indexing import index_of
from retrieval.integration import learn_integration
from retrieval.losses import LOSSES, MetricObjective
from retrieval.models import ModelConfig, build_network
from retrieval.quarantine import quarantine
from retrieval.quarter_turns import QuarterTurns, turned_labels
from retrieval.sampling import batch_shape
from retrieval.sources import SourceOptions, limit_classes, open_source
from retrieval.splits import UNMEASURABLE, Labelled, Shares, assign_splits
from retrieval.staging import Decoding, stage, staged_images
from retrieval.training import ByLabel, Schedule, fit
from retrieval.validation import validation_recall_at_1
from retrieval.weights import load_weights

TEACHER, TEACHER_PX, TEACHER_DIMENSION = "squeezenet1_0", 64, 256
Key = TypeVar("Key", str, float)
WITHIN = 1.0  # points of R@1 by which the automatic choice may miss the best


def prepare(arguments: argparse.Namespace, folder: Path) -> Dataset:
    """The images as prepare_data would store them; the source's own test images, where it has some, are left out."""
    (folder / "shards").mkdir()
    source = open_source(arguments.source, arguments.location, SourceOptions(cifar100_labels=arguments.labels))
    records = [record for record in source.records if record.split in ("", "train")]
    records = limit_classes(records, arguments.images_per_class, seed=0)
    decoding = Decoding(arguments.image_size, "crop", Limits(64_000_000, 8), 1)
    seen, _ = stage(source, records, folder / "shards", decoding)
    rows = np.setdiff1d(np.arange(len(records)), [image.row for image in quarantine(records, seen)])
    kept = [records[row] for row in rows]
    labelled = Labelled([record.class_name for record in kept], [seen[row].sha256 for row in rows], [""] * len(rows))
    held_out = {"class_order": arguments.class_order, "disjoint_by": arguments.disjoint_by}
    shares = Shares(arguments.test_fraction, arguments.validation_fraction, seed=0, **held_out)
    index, names = index_of(records, seen, rows, assign_splits(arguments.split, labelled, shares))
    return save_dataset(folder / "dataset", staged_images(folder / "shards", rows), index, names, {})


class Trial:
    """A data set, ready to train on: its training images, their labels from 0, their augmentation."""

    def __init__(self, data: Dataset, arguments: argparse.Namespace) -> None:
        self.data, self.arguments, self.device = data, arguments, pick_device(arguments.device)
        self.rows = data.rows("train")
        _, labels = np.unique(data.labels[self.rows], return_inverse=True)
        self.labels = torch.from_numpy(labels)
        self.images: ImageBatches | QuarterTurns = ImageBatches(data, self.rows, self.device)
        self.augment = choose_augmentation(self.images.get, self.labels)
        self.upright = self.labels
        if arguments.quarter_turns:
            self.images, self.labels = QuarterTurns(self.images), turned_labels(self.labels)
        self.balanced = batch_shape(int(self.labels.max()) + 1, arguments.batch_size)
        self.colours = colour_statistics(data, self.rows)

    def automatic_rate(self, dimension: int) -> float:
        return float(choose_learning_rate(dimension, self.balanced[0] * self.balanced[1]).value)

    def rate(self, dimension: int) -> float:
        """The given one, else the automatic one."""
        return self.arguments.learning_rate or self.automatic_rate(dimension)

    def recall(self, loss: str, rate: float, dimension: int, seed: int) -> float:
        """Train anew; R@1 of the validation images, in percent; 0 where the training diverged."""
        started = time.perf_counter()
        torch.manual_seed(seed)
        mean, std = self.colours
        config = ModelConfig(dimension=dimension, image_size=self.data.image_size, mean=mean, std=std)
        network = build_network(config)
        objective = ByLabel(MetricObjective(loss, int(self.labels.max()) + 1, dimension))
        diverged = ""
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                history = fit(
                    network,
                    objective,
                    self.images,
                    self.labels,
                    Schedule(self.arguments.epochs, rate),
                    batch_size=self.arguments.batch_size,
                    seed=seed,
                    augment=named_augmentation(self.augment.value),
                    device=self.device,
                    name="trial",
                    balanced=self.balanced,
                )
                found = validation_recall_at_1(network, self.data, self.device)
            except ValueError as error:
                if "loss is" not in str(error) and "not finite" not in str(error):
                    raise
                diverged = str(error)
        if diverged:
            print(f"  {loss}, rate {rate:g}, d = {dimension}, seed {seed}: counted as 0, for {diverged}", flush=True)
            return 0.0
        if found is None:
            raise SystemExit(f"Nothing can be measured: {UNMEASURABLE}. Take more images.")
        seconds = time.perf_counter() - started
        print(
            f"  {loss}, rate {rate:.4g}, d = {dimension}, seed {seed}: {100 * found:.2f} "
            f"({seconds:.0f} s, {history.images_per_second:,.0f} images/s)",
            flush=True,
        )
        return 100 * found


def teacher_features(data: Dataset, rows: np.ndarray, weights: Path | None, device: torch.device) -> Tensor:
    """Features of the training images, levelled and half-whitened on themselves: (m, at most TEACHER_DIMENSION)."""
    if weights is None:
        pooled = torch.from_numpy(data.read(rows)).flatten(1).float() / 255
    else:
        config = ModelConfig(TEACHER, 0, data.image_size, TEACHER_PX, pooling="gem", head="none")
        network = build_network(config)
        load_weights(network.backbone.trunk, TEACHER, str(weights))
        pooled = embed(network, data, rows, device, name="features of the teacher")
    integration = learn_integration(pooled, (pooled.shape[1],), TEACHER_DIMENSION)
    with torch.inference_mode():
        return integration(pooled)


def summary(values: Sequence[float]) -> str:
    """Mean and, of several, the sample's standard deviation."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def race(trials: Mapping[Key, Callable[[int], float]], seeds: int, keep: float) -> dict[Key, list[float]]:
    """Results by seed; what is more than `keep` below the best after the first seed runs no more."""
    found = {key: [run(0)] for key, run in trials.items()}
    least = max(values[0] for values in found.values()) - keep
    for key, values in found.items():
        if values[0] >= least:
            values += [trials[key](seed) for seed in range(1, seeds)]
    return found


def verdict(found: dict[Key, list[float]], automatic: Key) -> tuple[Key, str]:
    """The best by its mean, and how far the automatic choice falls short of it."""
    means = {key: statistics.mean(values) for key, values in found.items()}
    best = max(means, key=lambda key: means[key])
    short = means[best] - means[automatic]
    return best, f"{short:.1f} points below the best, {'within' if short <= WITHIN else 'MORE THAN'} {WITHIN:g}"


def compare_losses(trial: Trial, automatic: str) -> None:
    arguments, dimension = trial.arguments, trial.arguments.dimensions[0]
    rate, names = trial.rate(dimension), sorted({*arguments.losses, automatic}, key=list(LOSSES).index)
    trials = {name: partial(trial.recall, name, rate, dimension) for name in names}
    found = race(trials, arguments.seeds, arguments.keep)
    best, short = verdict(found, automatic)
    print("\n| loss | R@1, % | seeds |\n|---|---|---|")
    for name, values in found.items():
        marks = " (best)" * (name == best) + " (automatic)" * (name == automatic)
        print(f"| {name}{marks} | {summary(values)} | {len(values)} |")
    print(f"automatic {automatic}: {short}")


def compare_rates(trial: Trial) -> None:
    arguments, loss = trial.arguments, trial.arguments.losses[0]
    for dimension in arguments.dimensions:
        automatic = trial.automatic_rate(dimension)
        rates = sorted({*arguments.rates, automatic})
        trials = {rate: partial(trial.recall, loss, rate, dimension) for rate in rates}
        found = race(trials, arguments.seeds, arguments.keep)
        best, short = verdict(found, automatic)
        print(f"\n| rate, d = {dimension}, batches of {arguments.batch_size} | R@1, % | seeds |\n|---|---|---|")
        for rate, values in found.items():
            marks = " (best)" * (rate == best) + " (automatic)" * (rate == automatic)
            print(f"| {rate:.4g}{marks} | {summary(values)} | {len(values)} |")
        print(f"d = {dimension}: automatic {automatic:.4g}: {short}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("losses", "facts", "rates"))
    parser.add_argument("--source", default="digits")
    parser.add_argument("--location", default="")
    parser.add_argument("--labels", default="fine", help="of CIFAR-100: fine or coarse")
    parser.add_argument("--split", default="closed", choices=("closed", "disjoint"))
    parser.add_argument("--disjoint-by", default="class", choices=("class", "group"))
    parser.add_argument("--class-order", default="drawn", choices=("drawn", "listed"))
    parser.add_argument("--quarter-turns", action="store_true", help="turned images are further classes")
    parser.add_argument("--test-fraction", type=float, default=0.2)
    parser.add_argument("--validation-fraction", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images-per-class", type=int, default=0, help="most of each class; 0 for all")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[256], help="losses takes the first")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES), help="rates takes the first")
    parser.add_argument("--keep", type=float, default=3.0, help="points of R@1 below the best that get more seeds")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0125, 0.025, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--learning-rate", type=float, default=0.0, help="of losses; 0 for the automatic one")
    parser.add_argument("--weights", type=Path, help=f"of {TEACHER}, for the features that the facts are measured on")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_threads()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(arguments, Path(folder))
        trial = Trial(data, arguments)
        counts = ", ".join(f"{len(data.rows(split)):,} {split}" for split in SPLITS)
        print(f"{arguments.source} {arguments.labels}, {arguments.split}: {counts}; {describe(trial.device)}")
        print(f"batches of {trial.balanced[0]} classes x {trial.balanced[1]}; {trial.augment.why}", flush=True)
        if arguments.what == "rates":
            compare_rates(trial)
        else:
            features = teacher_features(data, trial.rows, arguments.weights, trial.device)
            choice = choose_loss(measure_classes(features, trial.upright))
            print(f"{choice.facts}\n{choice.why}", flush=True)
            if arguments.what == "losses":
                compare_losses(trial, choice.value)


if __name__ == "__main__":
    main()
