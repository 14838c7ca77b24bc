"""What a model's folder is called and holds, for those who read it without torch; retrieval/models.py fills it."""

from pathlib import Path

from retrieval.manifest import Manifest, read_manifest

KIND, FORMAT_VERSION = "model", 2
WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def read_model_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder, checked against its files; its digest is the model's."""
    return read_manifest(folder, KIND, FORMAT_VERSION)


def resize_of(manifest: Manifest) -> str:
    """How the images that a model was trained on were fitted, a name of images.RESIZES: others must be fitted alike."""
    return str(manifest.facts.get("resize", "crop"))
