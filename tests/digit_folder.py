"""A folder of classes made of the handwritten digits inside scikit-learn, as a person's own images would lie."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, images_per_class: int) -> None:
    """Write `folder/<digit>/<number>.png`, 16 x 16 pixels."""
    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number, row in enumerate((digits.target == label).nonzero()[0][:images_per_class]):
            picture = Image.fromarray((digits.images[row] * 255 / 16).astype("uint8")).resize((16, 16))
            picture.save(folder / str(label) / f"{number:03d}.png")
