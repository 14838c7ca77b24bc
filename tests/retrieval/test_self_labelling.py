import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retrieval.self_labelling import agreement, merge_small, reassign, self_train


def separable(noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of four groups in 20 dimensions, their groups, and an assignment of which a share is drawn by lot."""
    random = np.random.default_rng(seed)
    groups = np.arange(240) % 4
    rows = 2.0 * np.eye(20)[groups] + 0.3 * random.normal(size=(240, 20))
    lots = np.where(random.random(240) < noise, random.integers(0, 4, 240), groups)
    return torch.from_numpy(rows).float(), torch.from_numpy(groups), torch.from_numpy(lots)


def test_rounds_of_assignment_and_training_are_purer_than_the_first_assignment() -> None:
    rows, groups, first = separable(noise=0.5)
    torch.manual_seed(0)
    network = nn.Linear(20, 8)
    seen: list[Tensor] = []

    def train(number: int, labels: Tensor) -> None:
        assert number == len(seen)
        seen.append(labels)
        layer = nn.Linear(8, 4)
        optimiser = torch.optim.Adam([*network.parameters(), *layer.parameters()], 0.02)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(layer(network(rows)), labels).backward()
            optimiser.step()

    def embed() -> Tensor:
        with torch.no_grad():
            return network(rows)

    last = self_train(first, 3, train, embed, seed=0)
    assert len(seen) == 3
    assert torch.equal(seen[0], first)
    assert torch.equal(seen[2], last)
    purity = [agreement(groups, labels) for labels in seen]
    assert purity[0] < 0.75
    assert purity[2] > max(0.9, purity[0] + 0.2)


def test_the_same_seed_assigns_alike_and_the_number_of_clusters_holds() -> None:
    rows, groups, _ = separable(noise=0.0)
    assert torch.equal(reassign(rows, 4, seed=1), reassign(rows, 4, seed=1))
    assert agreement(groups, reassign(rows, 4, seed=1)) == 1
    assert int(reassign(rows, 12, seed=1).max()) < 12
    assert torch.bincount(reassign(rows, 120, seed=1)).min() >= 2


def test_what_is_in_no_cluster_or_a_small_one_joins_the_nearest() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 1.5, 1.6, 0.3, 1.4, 0.9])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1, 9)[:, None]
    clusters = torch.tensor([7, 7, 7, 2, 2, 5, -1, 9])
    expected = []
    for number in range(8):
        if clusters[number] in (7, 2):
            expected.append(int(clusters[number] == 7))
        else:  # 0.1 and 1.55 are the centres
            expected.append(int(abs(angles[number] - 0.1) < abs(angles[number] - 1.55)))
    assert merge_small(rows, clusters).tolist() == expected
    with pytest.raises(ValueError, match=r"1 of 4 clusters have 3 images or more; .* adjust_epochs=0"):
        merge_small(rows, clusters, least=3)


def test_agreement_counts_majorities() -> None:
    assert agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])) == 1
    assert agreement(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 0, 1])) == pytest.approx(4 / 5)
