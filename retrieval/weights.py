"""Weights of image classifiers that others have trained: found by name, path or S3 address, and put into a trunk."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from retrieval.backbones import empty_trunk
from retrieval.manifest import file_digest
from retrieval.object_store import Address, download, is_address

CLASSIFIER = ("fc.", "classifier.", "module.fc.", "module.classifier.")  # what follows the trunk: not loaded


def load_weights(trunk: nn.Sequential, name: str, weights: str) -> str:
    """Fill a trunk from "imagenet", a path or an s3:// address; "none" leaves its random weights.

    Args:
        trunk: of the backbone `name`, or its first layers.
        name: which classifier the weights must be of.
        weights: where they are: "imagenet" downloads those that torchvision publishes, once for a machine.

    Returns:
        sha256 of the file, or "none".

    Raises:
        ValueError: the file is not to be had, or does not hold the weights of that classifier.
    """
    if weights == "none":
        return "none"
    with weights_file(name, weights) as path:
        fill_trunk(trunk, name, path)
        return file_digest(path)


@contextmanager
def weights_file(name: str, weights: str) -> Iterator[Path]:
    """The file of weights on this machine; what comes from S3 is there only inside the context."""
    if weights == "imagenet":
        yield _published(name)
    elif is_address(weights):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(urlparse(weights).path).name
            download({path: Address.parse(weights)}, name=f"fetch {path.name}")
            yield path
    else:
        yield Path(weights)


def fill_trunk(trunk: nn.Sequential, name: str, weights: Path) -> None:
    """Put a classifier's weights into its trunk; the layers after the trunk are left out.

    Args:
        trunk: of the backbone `name`, or its first layers.
        name: which classifier the file must be of.
        weights: a state dictionary with torchvision's names, saved by torch, or with the ending .safetensors.

    Raises:
        ValueError: no such file, no state dictionary, or the weights of another network: names what does not fit.
    """
    given = {key.removeprefix("module.").removeprefix("features."): value for key, value in read_state(weights).items()}
    wanted = trunk.state_dict()
    needed = [key for key in wanted if not key.endswith("num_batches_tracked")]  # old files do not have that one
    whole = empty_trunk(name).state_dict()
    faults = {
        "it lacks": [key for key in needed if key not in given],
        "it has the unknown": [key for key in given if key not in whole and not key.startswith(CLASSIFIER)],
        "of another shape is": [
            f"{key}, {tuple(given[key].shape)} there and {tuple(wanted[key].shape)} in {name}"
            for key in needed
            if key in given and given[key].shape != wanted[key].shape
        ],
    }
    said = [f"{what} {keys[0]}{_and_more(keys)}" for what, keys in faults.items() if keys]
    if said:
        raise ValueError(
            f"{weights} does not hold the weights of {name}: {'; '.join(said)}. Name the backbone they are of."
        )
    trunk.load_state_dict({key: given.get(key, value) for key, value in wanted.items()})


def read_state(weights: Path) -> dict[str, Tensor]:
    """A state dictionary from a file, without running any code that the file may carry.

    Raises:
        ValueError: no such file, or something else than a dictionary of tensors.
    """
    if not weights.is_file():
        raise ValueError(f"{weights} is no file; weights is a path, s3://bucket/key, 'imagenet' or 'none'.")
    try:
        state = _load(weights)
    except Exception as error:  # each reader has kinds of its own
        raise ValueError(
            f"{weights} cannot be read as weights ({str(error).splitlines()[0]}). "
            "It must be a state dictionary: tensors by name, saved by torch or as .safetensors."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{weights} holds no state dictionary (tensors by name), but a {type(state).__name__}.")
    return state


def _load(weights: Path) -> Any:
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(weights)
    return torch.load(weights, map_location="cpu", weights_only=True)


def _and_more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


def _published(name: str) -> Path:
    """The file that torchvision publishes for a classifier, in torch's cache of downloads."""
    import torchvision

    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            print(f"downloading {url}")
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"The ImageNet weights of {name} cannot be downloaded from {url} ({error}). Without a way to the "
                f"internet, fetch that file elsewhere and give weights=PATH or weights=s3://bucket/{path.name}, "
                f"or put it at {path}."
            ) from error
    return path
