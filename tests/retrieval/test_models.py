import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import torch

from retrieval.model_folder import read_model_manifest
from retrieval.models import (
    ModelConfig,
    build_network,
    load_config,
    load_model,
    save_model,
)

CONFIGS = {
    "four_layer": ModelConfig(dimension=8, image_size=16, channels=(4, 5, 6), mean=(0.1, 0.2, 0.3)),
    "four_layer_gem": ModelConfig(dimension=8, image_size=20, network_size=16, channels=(4, 5, 6), pooling="gem"),
    "linear": ModelConfig("squeezenet1_0", dimension=8, image_size=16, network_size=24),
    "integrated": ModelConfig("squeezenet1_0", dimension=8, image_size=24, head="integrated", depths=(1, 2)),
    "features": ModelConfig("squeezenet1_0", dimension=0, image_size=24, head="none", pooling="average"),
    "joined": ModelConfig(
        dimension=8,
        image_size=24,
        channels=(4, 5, 6),
        joined=ModelConfig("squeezenet1_0", dimension=8, image_size=24, head="integrated", depths=(1, 2)),
        joined_share=0.3,
        refined_dimension=12,
        refined_classes=3,
        refined_strength=0.4,
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_saved_model_comes_back_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_network(config)
    for buffer in model.buffers():  # nothing may come back because it happens to be the default
        buffer.copy_(torch.rand_like(buffer.float()) + 0.5)
    for part in (model, model.joined):  # colours are of the config
        if part is not None:
            part.mean, part.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (part.config.mean, part.config.std))
    model.eval()
    written = save_model(tmp_path / "model", model, {"dataset": "abc"}, {"epochs": 3})
    loaded = load_model(tmp_path / "model")
    images = torch.rand(2, 3, config.image_size, config.image_size)
    with torch.inference_mode():
        embeddings = model(images)
        assert torch.equal(loaded(images), embeddings)
    assert embeddings.shape == (2, model.dimension)
    assert loaded.config == config
    assert not loaded.training
    manifest = read_model_manifest(tmp_path / "model")
    assert manifest.digest == written.digest
    assert (manifest.made_from, manifest.facts) == ({"dataset": "abc"}, {"epochs": 3})


def test_equal_models_have_equal_bytes_and_nothing_is_pickled(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        torch.manual_seed(5)
        digests.append(save_model(tmp_path / name, build_network(CONFIGS["linear"]), {}, {}).digest)
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "weights.safetensors",
            "config.json",
            "manifest.json",
        }
        assert not zipfile.is_zipfile(tmp_path / name / "weights.safetensors")
    assert digests[0] == digests[1]
    torch.manual_seed(6)
    assert save_model(tmp_path / "three", build_network(CONFIGS["linear"]), {}, {}).digest != digests[0]


def test_colours_are_normalised_inside() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIGS["four_layer"], mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    model = build_network(config).eval()
    images = torch.rand(2, 3, 16, 16)
    by_hand = torch.stack([(images[:, c] - config.mean[c]) / config.std[c] for c in range(3)], 1)
    torch.testing.assert_close(model(images), model.network(by_hand))


def test_small_images_are_enlarged_inside() -> None:
    torch.manual_seed(0)
    model = build_network(CONFIGS["linear"]).eval()
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(torch.rand(1, 3, 16, 16))
    assert seen == [(1, 3, 24, 24)]
    with pytest.raises(ValueError, match=r"made for \(b, 3, 16, 16\)"):
        model(torch.rand(1, 3, 24, 24))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnet19"}, "'resnet19'; choose one of: four_layer, resnet18"),
        ({"head": "lineal"}, "'lineal'; choose one of: linear"),
        ({"head": "integrated"}, "four_layer has a fully connected layer"),
        ({"dimension": 0}, "dimension is 0 for head 'linear'"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_impossible_configs_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)  # type: ignore[arg-type]


def test_damaged_or_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no model"):
        load_model(tmp_path)
    folder = tmp_path / "model"
    save_model(folder, build_network(CONFIGS["four_layer"]), {}, {})
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"weights.safetensors was truncated"):
        load_model(folder)


def test_an_option_of_a_later_version_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", build_network(CONFIGS["four_layer"]), {}, {})
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention": True}))
    with pytest.raises(ValueError, match="option 'attention'"):
        load_config(tmp_path / "model")
