"""The table of the method: baselines and every stage of a pipeline run, by one protocol, on one set of images.

    python -m benchmarks.method --set cifar100 --location FOLDER [--weights FOLDER] [--run RUN ...] [--epochs 4]
        [--seeds 3] [--rows pixels,resnet18] [--images-per-class 0] [--json FILE]

Rows (--rows takes some of them, separated by commas):

- pixels: the stored image itself;
- four_layer, resnet18, vgg16_bn, alexnet: from scratch at the data's resolution (alexnet, whose maps would vanish, at
  the least size it takes), --dimension numbers an image, normalised softmax, --epochs epochs;
- squeezenet1_0, mobilenet_v2: frozen, average-pooled, images enlarged to 128 px; need --weights, a folder of
  torchvision's state dictionaries (mobilenet_v2*.pth, squeezenet1_0*.pth);
- pretrain, co_cluster, finetune_metric, finetune_softmax: read from the artifacts of finished runs. --run names each
  by its folder, or `latest`; several are several seeds of one setting, each measured on its own dataset. All other
  rows are then measured on the first run's; without --run the set's own dataset is prepared, and the stages are left
  out.

R@1 is measured on test images: among the other test images, and against the training images where they share classes.
Accuracy is that of the nearest class mean of the training images ("mean"), or of the softmax layer the network was
trained by ("softmax"). Images a second are those of embedding the test images, in batches of 256. Training seconds are
CPU seconds of all threads; those of a stage are the wall seconds of its step ("wall"). Nothing is chosen here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cifar100 import latest_result
from benchmarks.threads import keep_threads
from retrieval.augmentation import choose_augmentation, named_augmentation
from retrieval.backbones import least_image_size
from retrieval.clusters import load_clusters
from retrieval.colours import colour_statistics
from retrieval.cosine_layer import class_centres
from retrieval.dataset import Dataset
from retrieval.devices import describe, pick_device
from retrieval.features import embed, load_features
from retrieval.home import home
from retrieval.image_batches import ImageBatches
from retrieval.losses import MetricObjective
from retrieval.measurement import Embed, shares_classes
from retrieval.metrics import recall_at_1
from retrieval.models import FOUR_LAYER, EmbeddingModel, ModelConfig, build_network, load_model
from retrieval.neighbours import nearest
from retrieval.training import ByLabel, Schedule, fit
from retrieval.weights import load_weights

SETS: dict[str, dict[str, str]] = {  # the knobs of prepare_data, as `rankone run -p` takes them too
    "cifar100": {"source": "cifar100", "split": "own"},
    "cifar100_disjoint": {
        "source": "cifar100", "split": "disjoint", "class_order": "listed", "test_fraction": "0.5",
    },
    "tiny_imagenet": {
        "source": "folder", "split": "disjoint", "class_order": "listed", "test_fraction": "0.5", "image_size": "64",
    },
    "omniglot": {
        "source": "folder", "split": "disjoint", "class_order": "listed", "disjoint_by": "group",
        "test_fraction": "0.2", "image_size": "56", "resize": "drawing",
    },
}  # fmt: skip
FROZEN_SIZE = 128  # pixels that the frozen classifiers see
RATE = 0.1  # at batches of 256; of the networks with batch norm
RATE_WITHOUT_NORM = 0.01  # of alexnet, which has no batch norm; neither rate was chosen on validation
BATCH = 256


@dataclass(frozen=True)
class Row:
    """One line of the table; None where a number has no meaning."""

    name: str
    recall_at_1: float
    recall_at_1_to_train: float | None
    accuracy: float | None
    accuracy_by: str
    dimension: int
    parameters: int | None
    images_per_second: float | None
    train_seconds: float | None
    seconds_of: str


@dataclass(frozen=True)
class Bench:
    """What every row is measured with."""

    dataset: Dataset
    options: argparse.Namespace
    device: torch.device
    seed: int
    run: dict | None


def pixels(bench: Bench) -> Row:
    def flat(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(bench.dataset.read(rows).reshape(len(rows), -1)).float()

    return measured(bench, "pixels", flat)


def from_scratch(bench: Bench, architecture: str, rate: float) -> Row:
    data, options = bench.dataset, bench.options
    rows = data.rows("train")
    names, labels = np.unique(data.labels[rows], return_inverse=True)
    torch.manual_seed(bench.seed)
    network = build_network(config_of(bench, architecture, rows))
    loss = MetricObjective("normalised_softmax", len(names), options.dimension)
    images, classes = ImageBatches(data, rows, bench.device), torch.from_numpy(labels)
    augment = choose_augmentation(images.get, classes)
    cpu = time.process_time()
    fit(
        network,
        ByLabel(loss),
        images,
        classes,
        Schedule(options.epochs, rate, shape="one_cycle"),
        batch_size=BATCH,
        seed=bench.seed,
        augment=named_augmentation(augment.value),
        device=bench.device,
        name=architecture,
    )
    cpu = time.process_time() - cpu
    assert loss.proxies is not None
    softmax = None
    if shares_classes(data):
        test = embedder(bench, network, architecture)(data.rows("test"))
        softmax = named_rightly(test, loss.proxies.detach().cpu(), names, data)
    row = measured_model(bench, architecture, network)
    row = row if softmax is None else replace(row, accuracy=softmax, accuracy_by="softmax")
    return replace(row, train_seconds=cpu, seconds_of=f"CPU, {options.epochs} epochs")


def frozen(bench: Bench, architecture: str) -> Row:
    size = bench.dataset.image_size
    config = ModelConfig(
        architecture, 0, size, FROZEN_SIZE if size != FROZEN_SIZE else 0, pooling="average", head="none"
    )
    network = build_network(config)
    load_weights(network.backbone.trunk, architecture, str(weights_of(bench.options.weights, architecture)))
    return replace(measured_model(bench, architecture, network), train_seconds=0.0, seconds_of="frozen")


def of_run(bench: Bench, stage: str) -> Row:
    """What a stage of the run made: vectors that lie in its artifacts, or a model."""
    folder = {name: artifact_of(bench.run, step, name) for step, name in ARTIFACTS}
    if stage == "pretrain":
        vectors = load_features(folder["features"], bench.dataset).values
        row = sized(bench, measured(bench, stage, stored(vectors)), load_model(folder["backbone"], bench.device))
    elif stage == "co_cluster":
        row = measured(bench, stage, stored(load_clusters(folder["clusters"]).targets))
    else:
        model = load_model(folder["model" if stage == "finetune_metric" else "tuned_model"], bench.device)
        row = measured_model(bench, stage, model)
    return replace(row, train_seconds=step_seconds(bench.run, stage), seconds_of="wall")


ROWS: dict[str, Callable[[Bench], Row]] = {
    "pixels": pixels,
    "four_layer": partial(from_scratch, architecture=FOUR_LAYER, rate=RATE),
    "resnet18": partial(from_scratch, architecture="resnet18", rate=RATE),
    "vgg16_bn": partial(from_scratch, architecture="vgg16_bn", rate=RATE),
    "alexnet": partial(from_scratch, architecture="alexnet", rate=RATE_WITHOUT_NORM),
    "squeezenet1_0": partial(frozen, architecture="squeezenet1_0"),
    "mobilenet_v2": partial(frozen, architecture="mobilenet_v2"),
    "pretrain": partial(of_run, stage="pretrain"),
    "co_cluster": partial(of_run, stage="co_cluster"),
    "finetune_metric": partial(of_run, stage="finetune_metric"),
    "finetune_softmax": partial(of_run, stage="finetune_softmax"),
}
STAGES = ("pretrain", "co_cluster", "finetune_metric", "finetune_softmax")
FROZEN = ("squeezenet1_0", "mobilenet_v2")
ONCE = ("pixels", *FROZEN)  # no seed in them
ARTIFACTS = (
    *(("prepare_data", "dataset"), ("pretrain", "backbone"), ("pretrain", "features"), ("co_cluster", "clusters")),
    *(("finetune_metric", "model"), ("finetune_softmax", "tuned_model")),
)


def main() -> int:
    options = parsed()
    keep_threads()
    device, runs = pick_device(options.device), [json.loads(result_of(run).read_text()) for run in options.run]
    names = chosen_rows(options)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [artifact_of(run, "prepare_data", "dataset") for run in runs] or [prepared(options, Path(scratch))]
        data = Dataset(folders[0])
        print(header(options, data, device), flush=True)
        found: dict[str, list[Row]] = {}
        for name in names:
            for number in range(repeats(name, len(runs), options.seeds)):
                run = runs[number] if name in STAGES else None
                bench = Bench(Dataset(folders[number]) if run else data, options, device, number, run)
                found.setdefault(name, []).append(ROWS[name](bench))
            print(f"# {line(found[name])}", file=sys.stderr, flush=True)
    print(table(found))
    if options.json:
        rows = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        options.json.write_text(
            json.dumps({"settings": data.report().get("settings", {}), "rows": rows}, indent=2) + "\n"
        )
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="cifar100", help="what to prepare; not asked with --run")
    parser.add_argument("--location", default="", help="of the images; not needed with --run")
    parser.add_argument("--weights", type=Path, help="folder of ImageNet weights; without it no frozen rows")
    parser.add_argument("--run", action="append", default=[], help="folder of a finished run, or `latest`; repeatable")
    parser.add_argument("--rows", default="", help=f"some of {', '.join(ROWS)}; all that can be had")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images-per-class", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.run and not options.location:
        parser.error("give --location, the folder of the set's images, or --run, a finished run")
    return options


def chosen_rows(options: argparse.Namespace) -> list[str]:
    asked = [name for name in options.rows.split(",") if name]
    unknown = [name for name in asked if name not in ROWS]
    if unknown:
        raise SystemExit(f"Unknown row '{unknown[0]}'; choose from: {', '.join(ROWS)}.")
    missing = {name: "--run" for name in STAGES if not options.run}
    missing |= {name: "--weights" for name in FROZEN if not options.weights}
    for name in asked:
        if name in missing:
            raise SystemExit(f"Row '{name}' needs {missing[name]}.")
    return asked or [name for name in ROWS if name not in missing]


def repeats(name: str, runs: int, seeds: int) -> int:
    return runs if name in STAGES else 1 if name in ONCE else seeds


def prepared(options: argparse.Namespace, scratch: Path) -> Path:
    """The set's dataset, made by the step itself, with a home of its own."""
    knobs = SETS[options.set] | {"location": options.location, "max_images_per_class": str(options.images_per_class)}
    outputs = {"dataset": str(scratch / "dataset"), "data_report": str(scratch / "report.html")}
    command = [sys.executable, "-m", "components", "prepare_data"]
    command += [f"--{name}={value}" for name, value in (knobs | outputs).items()]
    environment = os.environ | {"RANKONE_HOME": str(scratch / "home")}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return scratch / "dataset"


def result_of(run: str) -> Path:
    """The result.json of a run, named by its folder, by its name under the home, or as the latest."""
    if run == "latest":
        return latest_result()
    folder = Path(run) if Path(run).is_dir() else home() / "runs" / run
    return folder / "result.json"


def artifact_of(run: dict | None, step: str, name: str) -> Path:
    assert run is not None, "the rows of stages need a run"
    return Path(run["steps"][step]["artifacts"][name]["uri"].removeprefix("file://"))


def step_seconds(run: dict | None, step: str) -> float | None:
    """The step's own work; kept in its artifact's metadata, so that a cached step has it too."""
    assert run is not None
    return next(iter(run["steps"][step]["artifacts"].values()))["metadata"].get("step_seconds")


def config_of(bench: Bench, architecture: str, rows: np.ndarray) -> ModelConfig:
    size = bench.dataset.image_size
    least = size if architecture == FOUR_LAYER else least_image_size(architecture)
    mean, std = colour_statistics(bench.dataset, rows)
    inside = least if least > size else 0
    return ModelConfig(architecture, bench.options.dimension, size, inside, mean, std)


def weights_of(folder: Path, architecture: str) -> Path:
    files = sorted(path for path in folder.glob(f"{architecture}*") if path.suffix in (".pth", ".pt", ".safetensors"))
    if not files:
        raise SystemExit(f"{folder} holds no file {architecture}*.pth; fetch torchvision's, or choose other --rows.")
    return files[0]


def embedder(bench: Bench, model: EmbeddingModel, name: str) -> Embed:
    return lambda rows: embed(model, bench.dataset, rows, bench.device, name=f"{name}: embed")


def stored(vectors: np.ndarray) -> Embed:
    return lambda rows: torch.from_numpy(np.asarray(vectors[rows], np.float32))


def measured(bench: Bench, name: str, vectors_of: Embed) -> Row:
    """R@1 and the accuracy of the nearest class mean."""
    data = bench.dataset
    test, train = data.rows("test"), data.rows("train")
    queries, labels = vectors_of(test), torch.from_numpy(data.labels[test])
    among = recall_at_1(queries, labels)
    if not shares_classes(data):
        return Row(name, among, None, None, "", queries.shape[1], None, None, None, "")
    gallery, gallery_labels = vectors_of(train), torch.from_numpy(data.labels[train])
    to_train = recall_at_1(queries, labels, gallery, gallery_labels)
    names, positions = np.unique(data.labels[train], return_inverse=True)
    accuracy = named_rightly(queries, class_centres(gallery, torch.from_numpy(positions)), names, data)
    return Row(name, among, to_train, accuracy, "mean", queries.shape[1], None, None, None, "")


def measured_model(bench: Bench, name: str, model: EmbeddingModel) -> Row:
    return sized(bench, measured(bench, name, embedder(bench, model, name)), model)


def sized(bench: Bench, row: Row, model: EmbeddingModel) -> Row:
    size = sum(parameter.numel() for parameter in model.parameters())
    return replace(row, parameters=size, images_per_second=embedding_speed(bench, model))


def embedding_speed(bench: Bench, model: EmbeddingModel) -> float:
    """Images a second over at most 2,048 test images, after a batch that warms up."""
    rows = bench.dataset.rows("test")[:2048]
    embed(model, bench.dataset, rows[:256], bench.device)
    started = time.perf_counter()
    embed(model, bench.dataset, rows, bench.device)
    return len(rows) / (time.perf_counter() - started)


def named_rightly(queries: Tensor, centres: Tensor, names: np.ndarray, data: Dataset) -> float:
    """Share of the test images whose most similar class vector is that of their class."""
    answers = nearest(queries, centres, 1)[1][:, 0].numpy()
    return float((names[answers] == data.labels[data.rows("test")]).mean())


def header(options: argparse.Namespace, data: Dataset, device: torch.device) -> str:
    counts = ", ".join(f"{len(data.rows(split)):,} {split}" for split in ("train", "validation", "test"))
    settings = data.report().get("settings", {})
    return (
        f"{settings.get('source')}, split {settings.get('split')}: {len(data.class_names):,} classes, {counts}, "
        f"{data.image_size} px; {describe(device)}; from scratch: {options.epochs} epochs, batches of {BATCH}, "
        f"d = {options.dimension}"
    )


def table(found: dict[str, list[Row]]) -> str:
    """In Markdown."""
    titles = ["", "R@1 among test", "R@1 to train", "accuracy", "d", "parameters", "images/s", "training s"]
    return "\n".join(["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|", *map(line, found.values())])


def line(rows: list[Row]) -> str:
    """Means over seeds, with the spread from the lowest to the highest where there are several."""

    def shown(name: str, scale: float, digits: int) -> str:
        values = [getattr(row, name) for row in rows]
        if any(value is None for value in values):
            return "-"
        mean = f"{scale * statistics.fmean(values):,.{digits}f}"
        spread = f" ({scale * min(values):,.{digits}f} to {scale * max(values):,.{digits}f})"
        return mean + (spread if len(values) > 1 and digits else "")

    first = rows[0]
    cells = [first.name, shown("recall_at_1", 100, 1), shown("recall_at_1_to_train", 100, 1)]
    cells += [f"{shown('accuracy', 100, 1)} {first.accuracy_by}".strip(), str(first.dimension)]
    cells += [shown("parameters", 1, 0), shown("images_per_second", 1, 0)]
    cells += [f"{shown('train_seconds', 1, 0)} {first.seconds_of}".strip()]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
