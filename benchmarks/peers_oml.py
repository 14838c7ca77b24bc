"""The side of open-metric-learning in benchmarks/peers.py, run by an interpreter that has it: train or exact, FOLDER.

Reads arrays from the folder, prints one line of JSON. Imports nothing of this project but the network, which needs only
torch: open-metric-learning wants numpy below 2, and so an environment of its own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oml.inference import inference
from oml.interfaces.datasets import ILabeledDataset, IQueryGalleryLabeledDataset
from oml.losses import ArcFaceLoss, TripletLossWithMiner
from oml.metrics import calc_retrieval_metrics_rr
from oml.miners import AllTripletsMiner
from oml.retrieval import RetrievalResults
from oml.samplers import BalanceSampler
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from retrieval.networks import FourLayer


class Labelled(ILabeledDataset):
    """Images and labels as open-metric-learning takes them."""

    input_tensors_key, index_key, labels_key = "input_tensors", "idx", "labels"

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: transforms.Compose) -> None:
        self.pictures, self.labels, self.transform = [Image.fromarray(image) for image in images], labels, transform
        self.extra_data: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> dict[str, Any]:
        image = self.transform(self.pictures[item])
        return {"input_tensors": image, "idx": item, "labels": int(self.labels[item])}

    def get_labels(self) -> np.ndarray:
        return self.labels

    def get_label2category(self) -> None:
        return None


class Searched(Labelled, IQueryGalleryLabeledDataset):
    """Every image is a query and lies in the gallery."""

    def get_query_ids(self) -> torch.Tensor:
        return torch.arange(len(self))

    def get_gallery_ids(self) -> torch.Tensor:
        return torch.arange(len(self))


def recall_at_1(embeddings: torch.Tensor, dataset: Searched) -> float:
    results = RetrievalResults.from_embeddings(embeddings, dataset, n_items=1)
    metrics = calc_retrieval_metrics_rr(results, cmc_top_k=(1,), precision_top_k=(), map_top_k=(), verbose=False)
    return float(metrics["cmc"][1])


def train(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / "settings.json").read_text())
    torch.manual_seed(settings["seed"])
    model = FourLayer(image_size=settings["size"], dimension=settings["dimension"])
    normal = [transforms.ToTensor(), transforms.Normalize(settings["mean"], settings["std"])]
    moved = [transforms.RandomCrop(settings["size"], padding=settings["padding"], padding_mode=settings["border"])]
    moved += [transforms.RandomHorizontalFlip()] if settings["flip"] else []
    data = Labelled(*arrays(folder, "train"), transforms.Compose([*moved, *normal]))
    held = {s: Searched(*arrays(folder, s), transforms.Compose(normal)) for s in ("validation", "test")}
    criterion, loader = criterion_and_loader(data, settings)
    vectors = [p for p in model.parameters() if p.ndim <= 1] + list(criterion.parameters())
    weights = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    rates = np.load(folder / "rates.npy")
    steps, wall, cpu, curve = len(rates) // settings["epochs"], 0.0, 0.0, []
    batches = forever(loader)
    for epoch in range(settings["epochs"]):
        model.train()
        begun = time.perf_counter(), time.process_time()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rates[epoch * steps + step]
            batch = next(batches)
            embeddings = model(batch["input_tensors"])
            loss = criterion(embeddings, batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        wall, cpu = wall + time.perf_counter() - begun[0], cpu + time.process_time() - begun[1]
        embeddings = inference(model, held["validation"], batch_size=256, num_workers=0)
        curve.append((wall, cpu, recall_at_1(normalised(embeddings), held["validation"])))
    embeddings = normalised(inference(model, held["test"], batch_size=256, num_workers=0))
    np.save(folder / "test_embeddings.npy", embeddings.numpy())
    images = len(rates) * settings["batch"]
    return {"recall_at_1": recall_at_1(embeddings, held["test"]), "images": images, "curve": curve}


def criterion_and_loader(data: Labelled, settings: dict[str, Any]) -> tuple[nn.Module, DataLoader]:
    if settings["of_pairs"]:
        each = settings["images_per_class"]
        sampler = BalanceSampler(data.get_labels(), n_labels=settings["batch"] // each, n_instances=each)
        return TripletLossWithMiner(0.1, AllTripletsMiner()), DataLoader(data, batch_sampler=sampler)
    classes = int(data.get_labels().max()) + 1
    loader: DataLoader = DataLoader(
        data, settings["batch"], shuffle=True, drop_last=True, num_workers=settings["workers"]
    )
    return ArcFaceLoss(settings["dimension"], classes, m=0.0, s=16.0), loader


def forever(loader: DataLoader) -> Any:
    while True:  # BalanceSampler's epochs are shorter than one pass
        yield from loader


def arrays(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / f"{split}_images.npy"), np.load(folder / f"{split}_labels.npy")


def normalised(embeddings: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(embeddings.float())


def exact(folder: Path) -> dict[str, Any]:
    embeddings, labels = torch.from_numpy(np.load(folder / "embeddings.npy")), np.load(folder / "labels.npy")
    dataset = Searched(np.zeros((0, 1, 1, 3), np.uint8), labels, transforms.Compose([]))
    runs = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        recall = recall_at_1(embeddings, dataset)
        runs.append((recall, time.perf_counter() - wall, time.process_time() - cpu))
    return {"best": (runs[0][0], min(run[1] for run in runs), min(run[2] for run in runs))}


if __name__ == "__main__":
    print(json.dumps({"train": train, "exact": exact}[sys.argv[1]](Path(sys.argv[2]))))
