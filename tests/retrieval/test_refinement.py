import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrieval.metrics import recall_at_1
from retrieval.models import ModelConfig, build_network, load_model, save_model
from retrieval.refinement import SHARPNESS, choose_refinement, learn_refinement


def clustered(count: int = 90, dimension: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dimension, generator=generator)
    return centres[labels] + torch.randn(count, dimension, generator=generator), labels


def test_the_components_of_training_images_have_the_root_of_their_variances() -> None:
    embeddings, labels = clustered()
    refinement = learn_refinement(embeddings, labels, 0.0)
    rows = normalize(embeddings)
    variances = torch.linalg.eigvalsh(torch.cov(rows.T))
    found = torch.cov(((rows - refinement.mean) @ refinement.projection).T)
    torch.testing.assert_close(found, torch.diag(variances.sqrt()), rtol=1e-4, atol=1e-5)


def drawn_in_plain_python(z: list[float], centres: list[list[float]], strength: float) -> list[float]:
    weights = [math.exp(SHARPNESS * sum(a * b for a, b in zip(z, centre, strict=True))) for centre in centres]
    shares = [weight / sum(weights) for weight in weights]
    pulled = [sum(share * centre[i] for share, centre in zip(shares, centres, strict=True)) for i in range(len(z))]
    mixed = [(1 - strength) * a + strength * b for a, b in zip(z, pulled, strict=True)]
    length = math.sqrt(sum(a * a for a in mixed))
    return [a / length for a in mixed]


def test_drawing_is_the_formula_in_plain_loops() -> None:
    embeddings, labels = clustered()
    refinement = learn_refinement(embeddings, labels, 0.3)
    whitened, drawn = refinement.whiten(embeddings[:5]), refinement(embeddings[:5])
    for z, found in zip(whitened.tolist(), drawn.tolist(), strict=True):
        assert found == pytest.approx(drawn_in_plain_python(z, refinement.centres.tolist(), 0.3), abs=1e-5)


def test_directions_without_variance_are_left_out() -> None:
    embeddings, labels = clustered()
    flat = torch.cat([embeddings, torch.zeros(90, 2)], dim=1)
    refinement = learn_refinement(flat, labels, 0.2)
    assert refinement.projection.shape == (8, 6)
    assert refinement(flat).shape == (90, 6)
    assert torch.isfinite(refinement(torch.zeros(2, 8))).all()


def test_embeddings_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="the network tells nothing apart"):
        learn_refinement(torch.ones(10, 4), torch.arange(10) % 2, 0.0)


def test_a_network_that_tells_nothing_apart_is_left_as_it_is_unless_a_refinement_is_asked_for() -> None:
    alike, labels = torch.ones(6, 3), torch.arange(6) % 2
    choice = choose_refinement(alike, labels, alike, lambda refined: float(refined.shape[1] == 3))
    assert choice.refinement is None
    assert choice.why.endswith(
        "(none 100.0%). All training images have the same embedding: the network tells nothing apart"
    )
    with pytest.raises(ValueError, match="tells nothing apart"):
        choose_refinement(alike, labels, alike, lambda refined: 1.0, (0.0,), forced=True)


def test_the_choice_is_the_best_on_the_held_out_images_and_ties_go_to_the_lighter() -> None:
    embeddings, labels = clustered(120)
    held_out, held_out_labels = embeddings[60:], labels[60:]
    choice = choose_refinement(embeddings[:60], labels[:60], held_out, lambda z: recall_at_1(z, held_out_labels))
    assert choice.recall_at_1 == max(choice.measured.values())
    first = next(way for way, recall in choice.measured.items() if recall == choice.recall_at_1)
    assert f"refinement {first}:" in choice.why
    even = choose_refinement(embeddings[:60], labels[:60], held_out, lambda _: 0.5)
    assert even.refinement is None
    forced = choose_refinement(embeddings[:60], labels[:60], held_out, lambda _: 0.5, (0.4,), forced=True)
    assert forced.refinement is not None
    assert forced.refinement.strength == 0.4


def test_a_refined_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(ModelConfig(image_size=8, dimension=6, channels=(4, 4, 8))).eval()
    images = torch.rand(40, 3, 8, 8)
    with torch.inference_mode():
        refinement = learn_refinement(network(images), torch.arange(40) % 4, 0.4)
        model = network.refined(refinement)
        expected = refinement(network(images))
        save_model(tmp_path, model, {}, {})
        loaded = load_model(tmp_path)
        torch.testing.assert_close(loaded(images), expected)
    assert loaded.dimension == expected.shape[1] == loaded.config.refined_dimension
    assert network.config.refined_dimension == 0


def test_a_refinement_without_centres_is_refused() -> None:
    with pytest.raises(ValueError, match="refined_classes is 0"):
        ModelConfig(refined_dimension=4)
