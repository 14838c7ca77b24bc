"""What a model's folder is called and holds, for those who read it without torch; retrieval/models.py fills it."""

import json
from pathlib import Path

from retrieval.manifest import Manifest, read_manifest

KIND, FORMAT_VERSION = "model", 2
WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def read_model_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder, checked against its files; its digest is the model's."""
    return read_manifest(folder, KIND, FORMAT_VERSION)


def image_size_of(folder: Path) -> int:
    """Pixels a side of the images that the model of a folder looks at; smaller ones lack detail that it knows."""
    return int(json.loads((folder / CONFIG).read_text())["image_size"])


def resize_of(manifest: Manifest) -> str:
    """How the images that a model was trained on were fitted, a name of images.RESIZES: others must be fitted alike."""
    return str(manifest.facts.get("resize", "crop"))
