import math

import pytest
import torch

from retrieval.class_layer import ClassLayer


def test_it_is_the_smoothed_cross_entropy_of_standardised_features() -> None:
    torch.manual_seed(0)
    layer, features, labels = ClassLayer(4, 3, label_smoothing=0.3), torch.randn(5, 4) * 7 + 2, torch.arange(5) % 3
    losses = []
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        mean = sum(row) / 4
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / 4 + 1e-5)
        standardised = [(x - mean) / deviation for x in row]
        logits = [
            sum(w * x for w, x in zip(weights, standardised, strict=True)) + bias
            for weights, bias in zip(layer.logits.weight.tolist(), layer.logits.bias.tolist(), strict=True)
        ]
        total = math.log(sum(math.exp(logit) for logit in logits))
        wanted = [0.1 + 0.7 * (number == label) for number in range(3)]
        losses.append(sum(share * (total - logit) for share, logit in zip(wanted, logits, strict=True)))
    assert layer(features, labels, labels).item() == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_the_size_of_features_does_not_matter() -> None:
    torch.manual_seed(0)
    layer, features, labels = ClassLayer(8, 3), torch.randn(6, 8), torch.arange(6) % 3
    torch.testing.assert_close(
        layer(100 * features, labels, labels), layer(features, labels, labels), rtol=1e-3, atol=0
    )
