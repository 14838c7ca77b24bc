"""The registered model as MLflow serves it: pictures in, embeddings out.

MLflow copies this file into the model and runs it there (models from code), so it names no path and imports torch only
when the model is loaded: registering it needs none.
"""

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

COLUMN = "image"
MAX_PIXELS = 40_000_000  # of one picture
MAX_BYTES = 32 * 2**20  # of one picture's file
MAX_PICTURES = 256  # of one request
IMAGES_PER_BATCH = 64


class ImageEmbedder(PythonModel):
    """Embeds pictures with a model folder of `finetune_softmax`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network from the artifact `model`, on the CPU.

        Raises:
            ValueError: a file of the model was altered, or it is another model than the one that was registered.
        """
        from retrieval.model_folder import read_model_manifest, resize_of
        from retrieval.models import load_model

        folder = Path(context.artifacts["model"])
        manifest, registered = read_model_manifest(folder), (context.model_config or {}).get("model_digest")
        if registered not in (None, manifest.digest):
            raise ValueError(
                f"{folder} holds the model {manifest.digest[:12]}, and {registered[:12]} was registered: somebody has "
                "replaced its files. Register the model again."
            )
        self.network = load_model(folder)
        self.resize = resize_of(manifest)  # as its training images were fitted

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 (MLflow's signature)
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[list[float]]:
        """Embed pictures.

        Args:
            context: of MLflow.
            model_input: a table whose column `image` holds one picture a row, or a list of pictures: the bytes of a
                JPEG, PNG, WebP, BMP, GIF or TIFF file in base64.
            params: none are known.

        Returns:
            One embedding a picture, of length 1: the scalar product of two is their cosine similarity.

        Raises:
            ValueError: no column `image`, too many pictures, or one that is refused; its row is named.
        """
        import torch
        from torch.nn.functional import normalize

        texts = pictures_of(model_input)
        embeddings: list[list[float]] = []
        for start in range(0, len(texts), IMAGES_PER_BATCH):
            images = self._images(texts[start : start + IMAGES_PER_BATCH], start)
            with torch.inference_mode():
                embeddings += normalize(self.network(images.float() / 255), dim=1).tolist()  # (b, d)
        return embeddings

    def _images(self, texts: list[Any], first_row: int) -> Any:
        """Decode and fit a batch: (b, 3, image_size, image_size) uint8."""
        import numpy as np
        import torch

        from retrieval.images import Limits, RefusedImageError, bounded, decode

        size, limits = self.network.config.image_size, Limits(max_pixels=MAX_PIXELS, min_side=1)
        images = np.empty((len(texts), size, size, 3), np.uint8)
        with bounded(limits):
            for row, text in enumerate(texts):
                try:
                    images[row] = decode(from_base64(text), limits, size).fitted(size, self.resize)
                except RefusedImageError as error:
                    raise ValueError(
                        f"Picture {first_row + row} is refused: {error.reason}, {error.detail}."
                    ) from error
                except ValueError as error:
                    raise ValueError(f"Picture {first_row + row} is refused: {error}") from error
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def pictures_of(model_input: pandas.DataFrame | Iterable[Any]) -> list[Any]:
    """The pictures of a request, in order.

    Raises:
        ValueError: it has no column `image`, or too many rows.
    """
    if isinstance(model_input, pandas.DataFrame):
        if COLUMN not in model_input.columns:
            columns = ", ".join(map(str, model_input.columns)) or "none"
            raise ValueError(f"There is no column '{COLUMN}' (columns: {columns}); put pictures in base64 there.")
        model_input = model_input[COLUMN]
    pictures: list[Any] = []
    for cell in model_input:  # MLflow hands {"image": [...]} over as one row that holds the list
        pictures += cell if isinstance(cell, list) else [cell]
    if len(pictures) > MAX_PICTURES:
        raise ValueError(f"{len(pictures)} pictures in one request; send {MAX_PICTURES} at most.")
    return pictures


def from_base64(text: Any) -> bytes:
    """The bytes of a picture; the text may be broken into lines, as tools write it.

    Raises:
        ValueError: no text, too long, or no base64.
    """
    if not isinstance(text, str):
        raise ValueError(f"it is of type {type(text).__name__}; give the file's bytes as text in base64.")
    text = "".join(text.split())
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"its text has {len(text):,} characters; send a file of {MAX_BYTES:,} bytes at most.")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(
            f"its text is no base64 ({error}); encode the file's bytes, without a 'data:' prefix."
        ) from error


set_model(ImageEmbedder())
