import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retrieval.backbones import (
    BACKBONES,
    Backbone,
    build_trunk,
    enlarged_size,
    initialise,
    least_image_size,
    taken_layers,
)
from retrieval.weights import fill_trunk, load_weights

SMALL = "squeezenet1_0"


@functools.cache
def smallest(name: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, least_image_size(name)).eval()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A state dictionary as torchvision publishes it, classifier included."""
    torch.manual_seed(1)
    trunk = build_trunk(SMALL).state_dict()
    return {f"features.{key}": value for key, value in trunk.items()} | {
        "classifier.1.weight": torch.rand(10, 512, 1, 1)
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_finite_features_of_the_smallest_images(name: str) -> None:
    size = least_image_size(name)
    backbone = smallest(name)
    with torch.inference_mode():
        features = backbone(torch.rand(1, 3, size, size))
    assert features.shape == (1, sum(backbone.widths))
    assert torch.isfinite(features).all()
    if size > 1:
        with pytest.raises(ValueError, match=rf"{size - 1} px vanish in {name}.*needs {size} px"):
            Backbone(name, size - 1)


def test_the_least_sizes_of_the_networks_that_vanish_at_32_pixels() -> None:
    assert {name: least_image_size(name) for name in ("alexnet", "vgg16", SMALL)} == {
        "alexnet": 63,
        "vgg16": 32,
        SMALL: 21,
    }


def test_images_are_enlarged_only_where_they_would_vanish() -> None:
    assert [enlarged_size("alexnet", size) for size in (32, 62, 63, 64)] == [63, 63, 0, 0]


def test_depths_are_taken_where_the_resolution_halves() -> None:
    assert taken_layers("resnet18", (1, 2, 3)) == (7, 6, 5)  # layer4, layer3, layer2
    with torch.inference_mode():
        deep = Backbone("resnet18", 32, depths=(2, 3)).eval()
        assert deep.widths == (256, 128)
        assert deep(torch.rand(1, 3, 32, 32)).shape == (1, 384)
    assert len(deep.trunk) == 7  # what lies behind is not built
    with pytest.raises(ValueError, match="resnet18 has 5 maps"):
        Backbone("resnet18", 32, depths=(6,))
    with pytest.raises(ValueError, match="each once"):
        Backbone("resnet18", 32, depths=(1, 1))


def test_a_frozen_trunk_stays_in_evaluation_mode_and_takes_no_gradients() -> None:
    backbone = Backbone("resnet18", 32)
    model = torch.nn.Sequential(backbone)
    backbone.freeze()
    before = {key: value.clone() for key, value in backbone.trunk.state_dict().items()}
    model.train()
    assert backbone.training
    assert not any(module.training for module in backbone.trunk.modules())
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in backbone.trunk.state_dict().items())
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is not None] == [
        "poolings.0.power"
    ]
    backbone.freeze(False)
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert all(module.training for module in backbone.trunk.modules())
    assert not torch.equal(backbone.trunk.bn1.running_mean, before["bn1.running_mean"])


def test_an_unknown_backbone_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18, resnet34"):
        Backbone("resnet19", 32)


def test_weights_that_nobody_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="LayerNorm"):
        initialise(torch.nn.Sequential(torch.nn.LayerNorm(3)))


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_published_weights_are_put_into_the_trunk(state: dict[str, torch.Tensor], ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    backbone = Backbone(SMALL, 32)
    assert len(load_weights(backbone.trunk, SMALL, str(path))) == 64
    for key, value in backbone.trunk.state_dict().items():
        assert torch.equal(value, state[f"features.{key}"])


@pytest.mark.parametrize("depths", [(1,), (2, 3)])
def test_published_weights_of_a_residual_network_are_put_into_the_trunk(
    depths: tuple[int, ...], tmp_path: Path
) -> None:
    state = build_trunk("resnet18").state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    backbone = Backbone("resnet18", 32, depths)
    load_weights(backbone.trunk, "resnet18", str(tmp_path / "weights.safetensors"))
    taken = backbone.trunk.state_dict()
    assert "conv1.weight" in taken
    assert len(taken) == len(state) if depths == (1,) else len(taken) < len(state)
    assert all(torch.equal(value, state[key]) for key, value in taken.items())


def test_none_leaves_random_weights() -> None:
    trunk = build_trunk(SMALL)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    assert load_weights(trunk, SMALL, "none") == "none"
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


def test_weights_of_another_network_are_refused_by_name(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"of resnet18: it lacks conv1.weight and \d+ more; it has the unknown 0.weight"
    ):
        fill_trunk(build_trunk("resnet18"), "resnet18", path)
    wrong = state | {"features.0.weight": torch.rand(96, 3, 5, 5)}
    torch.save(wrong, path)
    with pytest.raises(ValueError, match=r"shape is 0.weight, \(96, 3, 5, 5\) there and \(96, 3, 7, 7\) in squeezenet"):
        fill_trunk(build_trunk(SMALL), SMALL, path)


class Harmful:
    """Something that only runs when a pickle is trusted."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (Path("harmed"),)  # type: ignore[return-value]


@pytest.mark.parametrize("content", [b"not weights at all", None, "list", "pickle"])
def test_what_is_no_state_dictionary_is_refused_and_not_run(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "list":
        torch.save([torch.rand(2)], path)
    elif content == "pickle":
        torch.save({"weight": Harmful()}, path)
    with pytest.raises(ValueError, match=r"weights.pth (is no file|cannot be read|holds no state dictionary)"):
        load_weights(build_trunk(SMALL), SMALL, str(path))
    assert not (tmp_path / "harmed").exists()


def test_imagenet_without_internet_says_the_manual_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"squeezenet1_0 cannot be downloaded.*weights=PATH"):
        load_weights(build_trunk(SMALL), SMALL, "imagenet")


def test_weights_come_from_s3(state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    torch.save(state, tmp_path / "weights.pth")
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        client.upload_file(str(tmp_path / "weights.pth"), "models", "zoo/weights.pth")
        trunk = build_trunk(SMALL)
        load_weights(trunk, SMALL, "s3://models/zoo/weights.pth")
        assert torch.equal(trunk[0].weight, state["features.0.weight"])
        with pytest.raises(ValueError, match=r"fetching s3://models/zoo/other.pth at .*answered NoSuchKey"):
            load_weights(trunk, SMALL, "s3://models/zoo/other.pth")
