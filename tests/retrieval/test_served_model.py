import base64
import io
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from operations.code_version import reachable_files
from retrieval.images import crop, stretch
from retrieval.model_folder import read_model_manifest
from retrieval.models import ModelConfig, build_network, save_model
from retrieval.registry import GREY_PNG, SERVED_WITH, save_served_model
from retrieval.tracking import loading
from tests.test_rooms import packages_of

with loading():
    from retrieval.served_model import MAX_PICTURES, ImageEmbedder, from_base64, pictures_of


def picture(width: int, height: int, seed: int = 0, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("a model")
    network = build_network(ModelConfig(dimension=4, image_size=8, channels=(4, 4, 4)))
    save_model(folder, network.eval(), {}, {})
    return folder


@pytest.fixture(scope="module")
def served(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    save_served_model(folder, model_folder, {"torch": "2.0.0"})
    return folder


def loaded(folder: Path, model_digest: str = "") -> ImageEmbedder:
    class Context:
        artifacts = {"model": str(folder)}  # noqa: RUF012
        model_config = {"model_digest": model_digest} if model_digest else None

    embedder = ImageEmbedder()
    embedder.load_context(Context())
    return embedder


@pytest.fixture(scope="module")
def embedder(model_folder: Path) -> ImageEmbedder:
    return loaded(model_folder)


def predict(embedder: ImageEmbedder, pictures: object) -> list[list[float]]:
    return embedder.predict(None, pictures)


def test_embeddings_are_those_of_the_network_and_of_length_one(embedder: ImageEmbedder) -> None:
    contents = [picture(8, 8, seed) for seed in range(3)]
    found = predict(embedder, pandas.DataFrame({"image": list(map(text, contents))}))
    images = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in contents])
    with torch.no_grad():
        raw = embedder.network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    for row, expected in zip(found, raw.tolist(), strict=True):
        length = math.sqrt(sum(value * value for value in expected))
        assert row == pytest.approx([value / length for value in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("facts", "resize"), [({}, crop), ({"resize": "crop"}, crop), ({"resize": "stretch"}, stretch)]
)
def test_a_picture_is_fitted_as_the_training_images_were(
    facts: dict[str, str], resize: Callable[[Image.Image, int], Image.Image], tmp_path: Path
) -> None:
    network = build_network(ModelConfig(dimension=4, image_size=8, channels=(4, 4, 4)))
    save_model(tmp_path / "model", network, {}, facts)
    embedder, content, small = loaded(tmp_path / "model"), picture(20, 12), io.BytesIO()
    resize(Image.open(io.BytesIO(content)), 8).save(small, "PNG")
    assert predict(embedder, [text(content)]) == predict(embedder, [text(small.getvalue())])


def test_a_model_that_is_not_the_registered_one_is_not_loaded(model_folder: Path, tmp_path: Path) -> None:
    digest = read_model_manifest(model_folder).digest
    loaded(model_folder, digest)
    with pytest.raises(ValueError, match=f"holds the model {digest[:12]}, and ffffffffffff was registered"):
        loaded(model_folder, "f" * 64)
    altered = tmp_path / "altered"
    shutil.copytree(model_folder, altered)
    (altered / "config.json").write_text((altered / "config.json").read_text().replace('"auto"', '"gem"'))
    with pytest.raises(ValueError, match=r"config\.json was truncated or altered"):
        loaded(altered, digest)


def test_a_table_and_a_list_say_the_same_whatever_the_batch(
    embedder: ImageEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [text(picture(8, 8, seed)) for seed in range(5)]
    together = predict(embedder, pictures)
    assert predict(embedder, pandas.DataFrame({"other": 1, "image": pictures})) == together
    monkeypatch.setattr("retrieval.served_model.IMAGES_PER_BATCH", 2)
    assert np.allclose(predict(embedder, pictures), together, atol=1e-6)
    assert predict(embedder, []) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("not base64!", "Picture 1 is refused: its text is no base64"),
        ("data:image/png;base64," + GREY_PNG, "without a 'data:' prefix"),
        (text(b"<svg/>"), "Picture 1 is refused: format"),
        (text(picture(8, 8)[:60]), "Picture 1 is refused"),
        ("", "Picture 1 is refused"),
        (b"bytes", "it is of type bytes"),
        (None, "it is of type NoneType"),
        (math.nan, "it is of type float"),
    ],
)
def test_a_bad_picture_is_refused_by_its_row(embedder: ImageEmbedder, bad: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(embedder, pandas.DataFrame({"image": [GREY_PNG, bad]}, dtype=object))


def test_a_picture_of_too_many_pixels_is_not_decoded(embedder: ImageEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.served_model.MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="too_large"):
        predict(embedder, [text(picture(20, 20))])


def test_text_that_is_broken_into_lines_is_read() -> None:
    content = picture(30, 20)
    assert from_base64(base64.encodebytes(content).decode()) == content
    assert from_base64(text(content).replace("A", "A\r\n")) == content


def test_a_file_that_is_too_long_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.served_model.MAX_BYTES", 99)
    assert len(from_base64("A" * 132)) == 99
    with pytest.raises(ValueError, match="99 bytes at most"):
        from_base64("A" * 140)


def test_a_request_has_a_column_and_a_limit() -> None:
    with pytest.raises(ValueError, match=r"no column 'image' \(columns: picture\)"):
        pictures_of(pandas.DataFrame({"picture": [GREY_PNG]}))
    with pytest.raises(ValueError, match=f"{MAX_PICTURES} at most"):
        pictures_of([GREY_PNG] * (MAX_PICTURES + 1))


def test_the_served_folder_holds_code_and_weights_and_no_pickle(served: Path) -> None:
    files = {str(path.relative_to(served)) for path in served.rglob("*") if path.is_file()}
    assert {"MLmodel", "served_model.py", "requirements.txt", "input_example.json"} <= files
    assert {path for path in files if path.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc"))} == set()
    assert any(path.endswith("weights.safetensors") for path in files)
    assert "code/retrieval/models.py" in files
    listed = (served / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in listed} >= {"mlflow", "torch", "torchvision", "safetensors", "pillow"}
    assert all("==" in line and "+" not in line for line in listed)


def test_the_served_folder_loads_elsewhere(served: Path, tmp_path: Path) -> None:
    """In another folder, with no Rankone but the copy inside; nothing but pictures in and vectors out."""
    code = f"""
import sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model({str(served)!r})
import retrieval
assert retrieval.__file__.startswith({str(served)!r}), retrieval.__file__
answer = model.predict(pandas.DataFrame({{"image": [{GREY_PNG!r}] * 2}}))
assert answer == model.predict({{"image": [{GREY_PNG!r}] * 2}})
print(len(answer), len(answer[0]), sum(value * value for value in answer[0]))
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    rows, dimension, length = found.stdout.split()
    assert (rows, dimension) == ("2", "4")
    assert float(length) == pytest.approx(1, abs=1e-5)


def test_saving_a_served_model_imports_no_torch(model_folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from collections.abc import Callable
from pathlib import Path
from retrieval.registry import save_served_model
save_served_model(Path({str(tmp_path / "model")!r}), Path({str(model_folder)!r}), {{"torch": "2.0.0"}})
print("torch" in sys.modules)
"""
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == "False"


def test_what_serving_imports_is_what_the_model_asks_for() -> None:
    names = {"PIL": "pillow"}
    imported = {package for path in reachable_files("retrieval.served_model") for package in packages_of(path)}
    needed = {names.get(name, name) for name in imported - {*sys.stdlib_module_names, "retrieval"}}
    assert needed == set(SERVED_WITH)
