import math

import pytest
import torch
from torch import nn

from retrieval.adjusting import (
    ADJUSTING,
    CentreProxies,
    SoftClusters,
    adjusting_objective,
    balancing_shifts,
)

CLUSTERS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 3, -1])  # 3 has one image, -1 is none: both join another


def targets_of(width: int = 6) -> torch.Tensor:
    """Around a direction a cluster; the last two are nearest to cluster 1."""
    random = torch.Generator().manual_seed(0)
    towards = torch.eye(3, width)[torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 1, 1])]
    return 3 * towards + 0.5 * torch.randn((11, width), generator=random)


def unit(row: torch.Tensor) -> torch.Tensor:
    return row / math.sqrt(float((row * row).sum()))


def centres_by_hand(targets: torch.Tensor) -> list[torch.Tensor]:
    """The merged images do not move the centres that they are drawn to before they are drawn; afterwards they count."""
    members = [[0, 1, 2, 3, 4], [5, 6, 9, 10], [7, 8]]
    return [unit(sum((unit(targets[i]) for i in some), torch.zeros(targets.shape[1]))) for some in members]


def batch(dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    positions = torch.tensor([9, 4, 7, 0, 10])
    return torch.randn((5, dimension), generator=random), positions


def cross_entropy_by_hand(logits: list[float], wanted: list[float]) -> float:
    total = sum(math.exp(value) for value in logits)
    return -sum(share * (value - math.log(total)) for value, share in zip(logits, wanted, strict=True))


def test_centres_as_proxies_are_the_formula_in_loops() -> None:
    targets, own = targets_of(), [1, 0, 2, 0, 1]
    for dimension in (6, 4):  # without and with the map
        torch.manual_seed(0)
        objective = CentreProxies(targets, CLUSTERS, dimension, scale=7.0)
        outputs, positions = batch(dimension)
        losses = []
        for row, cluster in zip(outputs, own, strict=True):
            mapped = row if dimension == 6 else objective.map.weight.detach() @ row
            logits = [7.0 * float(unit(mapped) @ centre) for centre in centres_by_hand(targets)]
            losses.append(cross_entropy_by_hand(logits, [float(cluster == other) for other in range(3)]))
        found = objective(outputs, torch.zeros(5, dtype=torch.int64), positions)
        assert float(found.detach()) == pytest.approx(sum(losses) / 5, abs=1e-5)


def test_the_centres_stay_and_the_map_is_learned() -> None:
    assert not list(CentreProxies(targets_of(), CLUSTERS, 6).parameters())
    (weight,) = CentreProxies(targets_of(), CLUSTERS, 4).parameters()
    assert weight.shape == (6, 4)


def soft_labels_by_hand(targets: torch.Tensor, temperature: float, rounds: int) -> list[list[float]]:
    """Sinkhorn-Knopp on the table itself: columns to equal sums, then rows to 1, so many times."""
    centres = centres_by_hand(targets)
    table = [[math.exp(float(unit(row) @ centre) / temperature) for centre in centres] for row in targets]
    for step in range(rounds + 1):
        if step:
            held = [sum(row[column] for row in table) for column in range(3)]
            table = [[row[column] / held[column] for column in range(3)] for row in table]
        table = [[value / sum(row) for value in row] for row in table]
    return table


def test_soft_clusters_are_the_formula_in_loops() -> None:
    targets = targets_of()
    objective = SoftClusters(targets, CLUSTERS, 4, temperature=0.3, scale=9.0)
    outputs, positions = batch(4)
    wanted = soft_labels_by_hand(targets, temperature=0.3, rounds=3)
    losses = []
    for row, position in zip(outputs, positions.tolist(), strict=True):
        logits = [9.0 * float(unit(row) @ unit(weight)) for weight in objective.weight.detach()]
        losses.append(cross_entropy_by_hand(logits, wanted[position]))
    found = objective(outputs, torch.zeros(5, dtype=torch.int64), positions)
    assert float(found.detach()) == pytest.approx(sum(losses) / 5, abs=1e-5)
    assert [float(x) for x in objective.soft_labels(positions)[0]] == pytest.approx(wanted[9], abs=1e-5)


def test_balancing_gives_every_cluster_the_same_share() -> None:
    random = torch.Generator().manual_seed(0)
    centres = nn.functional.normalize(torch.randn((4, 8), generator=random), dim=1)
    own = torch.tensor([0] * 70 + [1] * 10 + [2] * 10 + [3] * 10)
    targets = nn.functional.normalize(centres[own] + 0.3 * torch.randn((100, 8), generator=random), dim=1)
    shares = {
        rounds: torch.softmax(targets @ centres.T / 0.3 + balancing_shifts(targets, centres, 0.3, rounds), 1).mean(0)
        for rounds in (0, 3, 60)
    }
    apart = {rounds: float((share - 0.25).abs().max()) for rounds, share in shares.items()}
    assert apart[0] > 0.2
    assert apart[3] < 0.5 * apart[0]
    assert apart[60] < 0.01


def test_a_cluster_without_a_share_leaves_the_labels_finite() -> None:
    targets = torch.eye(2)[torch.zeros(6, dtype=torch.int64)]
    shifts = balancing_shifts(targets, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), temperature=0.001)
    assert torch.isfinite(shifts).all()


@pytest.mark.parametrize("name", ADJUSTING)
@pytest.mark.parametrize("dimension", [4, 6])
def test_every_way_draws_embeddings_of_any_dimension_to_the_targets(name: str, dimension: int) -> None:
    torch.manual_seed(0)
    objective = adjusting_objective(name, targets_of(), CLUSTERS, dimension)
    outputs = torch.randn(11, dimension, requires_grad=True)
    positions = torch.arange(11)
    optimiser = torch.optim.SGD([outputs, *objective.parameters()], lr=1.0)
    losses = []
    for _ in range(100):
        loss = objective(outputs, positions, positions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert torch.isfinite(outputs).all()
    assert losses[-1] < 0.7 * losses[0]
    rows = nn.functional.normalize(outputs.detach(), dim=1)
    cosines = rows @ rows.T
    assert cosines[0, 1] > cosines[0, 7]


@pytest.mark.parametrize("name", ADJUSTING)
def test_the_loss_of_a_batch_is_blind_to_order_scale_and_labels(name: str) -> None:
    torch.manual_seed(0)
    objective = adjusting_objective(name, targets_of(), CLUSTERS, 4)
    outputs, positions = batch(4)
    turned = torch.tensor([3, 1, 4, 0, 2])
    labels = torch.zeros(5, dtype=torch.int64)
    one, other = objective(outputs, labels, positions), objective(5 * outputs[turned], labels + 1, positions[turned])
    assert float(one.detach()) == pytest.approx(float(other.detach()), abs=1e-5)


@pytest.mark.parametrize("name", ADJUSTING)
def test_targets_without_a_direction_are_refused(name: str) -> None:
    targets = targets_of()
    targets[3] = 0
    with pytest.raises(ValueError, match="1 of 11 targets are zero or not finite, the first at position 3"):
        adjusting_objective(name, targets, CLUSTERS, 4)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown adjust_by 'centers'; choose one of: relations, clusters, centres"):
        adjusting_objective("centers", targets_of(), CLUSTERS, 4)
