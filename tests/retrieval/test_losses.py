"""Every loss against plain loops and against pytorch-metric-learning; properties for every entry of LOSSES."""

import inspect
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import losses
from retrieval.losses import LOSSES, MetricObjective

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_metric_learning import losses as peer_losses
    from pytorch_metric_learning import miners as peer_miners

DIMENSION, CLASSES = 4, 5


def batch(rows, seed, spread=1.0):
    """Embeddings around class centres, labels with at least one positive pair, proxies; all float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    labels[1] = labels[0]
    proxies = torch.randn(CLASSES, DIMENSION, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, DIMENSION, generator=generator, dtype=torch.float64)
    return proxies[labels] + spread * noise, labels, proxies


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def distance(a, b):
    return math.sqrt(max(2 - 2 * cosine(a, b), 1e-8))


def mean_of_positive(values):
    active = [value for value in values if value > 0]
    return sum(active) / max(len(active), 1)


def loop_normalised_softmax(x, y, proxies, scale=16.0, label_smoothing=0.1):
    total = 0.0
    for row, label in zip(x, y, strict=True):
        logits = [scale * cosine(row, proxy) for proxy in proxies]
        log_sum = math.log(sum(math.exp(logit) for logit in logits))
        for c, logit in enumerate(logits):
            target = label_smoothing / len(proxies) + (1 - label_smoothing) * (c == label)
            total -= target * (logit - log_sum)
    return total / len(x)


def loop_cosine_margin(x, y, proxies, scale=24.0, margin=0.2):
    total = 0.0
    for row, label in zip(x, y, strict=True):
        logits = [scale * (cosine(row, proxy) - margin * (c == label)) for c, proxy in enumerate(proxies)]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(x)


def loop_contrastive(x, y, positive_margin=0.25, negative_margin=0.65):
    pull, push = [], []
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j and y[i] == y[j]:
                pull.append(distance(x[i], x[j]) - positive_margin)
            if y[i] != y[j]:
                push.append(negative_margin - distance(x[i], x[j]))
    return mean_of_positive(pull) + mean_of_positive(push)


def loop_triplet(x, y, margin=0.1):
    semi_hard, hard = [], []
    n = range(len(x))
    for a, p, other in ((a, p, o) for a in n for p in n for o in n if a != p and y[a] == y[p] and y[a] != y[o]):
        violation = distance(x[a], x[p]) - distance(x[a], x[other]) + margin
        (semi_hard if violation < margin else hard).append(violation)
    return mean_of_positive(semi_hard if any(v > 0 for v in semi_hard) else hard)


def loop_multi_similarity(x, y, alpha=2.0, beta=50.0, base=0.5, mining_margin=0.1):
    total = 0.0
    for i in range(len(x)):
        positives = [cosine(x[i], x[j]) for j in range(len(x)) if i != j and y[i] == y[j]]
        negatives = [cosine(x[i], x[j]) for j in range(len(x)) if y[i] != y[j]]
        if positives and negatives:
            pulled = [s for s in positives if s - mining_margin < max(negatives)]
            pushed = [s for s in negatives if s + mining_margin > min(positives)]
            total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in pulled)) / alpha
            total += math.log(1 + sum(math.exp(beta * (s - base)) for s in pushed)) / beta
    return total / len(x)


def loop_proxy_anchor(x, y, proxies, margin=0.1, scale=32.0):
    pull, push = [], []
    for c, proxy in enumerate(proxies):
        own = [math.exp(-scale * (cosine(r, proxy) - margin)) for r, label in zip(x, y, strict=True) if label == c]
        others = [math.exp(scale * (cosine(r, proxy) + margin)) for r, label in zip(x, y, strict=True) if label != c]
        pull += [math.log(1 + sum(own))] if own else []
        push.append(math.log(1 + sum(others)))
    return sum(pull) / len(pull) + sum(push) / len(push)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loop_recall_at_k(x, y, similarity_temperature=0.01, rank_temperature=1.0):
    recalls, n = [], range(len(x))
    for q in n:
        positives = [i for i in n if i != q and y[i] == y[q]]
        ranks = []
        for p in positives:
            others = [z for z in n if z not in (q, p)]
            gaps = [(cosine(x[q], x[z]) - cosine(x[q], x[p])) / similarity_temperature for z in others]
            ranks.append(1 + sum(sigmoid(gap) for gap in gaps))
        for k in (1, 2, 4, 8) if positives else ():
            hits = sum(sigmoid((k - rank) / rank_temperature) for rank in ranks)
            recalls.append(min(hits, k) / min(k, len(positives)))
    return 1 - sum(recalls) / len(recalls)


def loop_softmax_multi_similarity(x, y, proxies, weight=1.0):
    return loop_normalised_softmax(x, y, proxies) + weight * loop_multi_similarity(x, y)


def loop_softmax_triplet(x, y, proxies, weight=1.0):
    return loop_normalised_softmax(x, y, proxies) + weight * loop_triplet(x, y)


LOOPS = {
    "normalised_softmax": loop_normalised_softmax,
    "cosine_margin": loop_cosine_margin,
    "contrastive": loop_contrastive,
    "triplet": loop_triplet,
    "multi_similarity": loop_multi_similarity,
    "proxy_anchor": loop_proxy_anchor,
    "recall_at_k": loop_recall_at_k,
    "softmax_multi_similarity": loop_softmax_multi_similarity,
    "softmax_triplet": loop_softmax_triplet,
}


def value(name, embeddings, labels, proxies, **options):
    given = (embeddings, labels, proxies) if LOSSES[name].uses_proxies else (embeddings, labels)
    return LOSSES[name].function(*given, **options)


def test_every_loss_has_a_loop():
    assert set(LOOPS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=40)
@given(rows=st.integers(2, 12), seed=st.integers(0, 999), spread=st.sampled_from([0.05, 0.5, 2.0]), data=st.data())
def test_a_loss_is_its_formula_in_loops(name, rows, seed, spread, data):
    embeddings, labels, proxies = batch(rows, seed, spread)
    options = {
        option: default * data.draw(st.sampled_from([0.5, 1.0, 1.3]))
        for option, default in LOSSES[name].options.items()
    }
    given = [embeddings.tolist(), labels.tolist()] + ([proxies.tolist()] if LOSSES[name].uses_proxies else [])
    expected = LOOPS[name](*given, **options)
    assert float(value(name, embeddings, labels, proxies, **options)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


LABELS = {
    "random": lambda rows, generator: torch.randint(CLASSES, (rows,), generator=generator),
    "imbalanced": lambda rows, generator: (torch.rand(rows, generator=generator) ** 4 * CLASSES).long(),
    "one image of a class": lambda rows, _: (torch.arange(rows) == rows - 1).long(),
    "one class": lambda rows, _: torch.zeros(rows, dtype=torch.int64),
}


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.uses_pairs])
@pytest.mark.parametrize("kind", LABELS)
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(3, 16),
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.05, 0.5, 2.0]),
    comparisons=st.integers(1, 64),
)
def test_a_loss_of_blocks_and_its_gradient_are_those_of_the_whole_batch(name, kind, rows, seed, spread, comparisons):
    embeddings, _, proxies = batch(rows, seed, spread)
    labels = LABELS[kind](rows, torch.Generator().manual_seed(seed))
    labels[1] = labels[0]
    embeddings = embeddings[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))]
    whole, blocks = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    expected = value(name, whole, labels, proxies)
    expected.backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "COMPARISONS_AT_ONCE", comparisons)
        loss = value(name, blocks, labels, proxies)
        loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(blocks.grad, whole.grad)


def test_hard_triplets_of_one_block_do_not_count_beside_semi_hard_ones_of_another(monkeypatch):
    angles = torch.tensor([0.0, 0.5, 0.54, 2.0, 2.5, 2.1], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2, 2, 3])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    semi_hard, both = losses.triplet(embeddings[:3], labels[:3]), losses.triplet(embeddings, labels)
    monkeypatch.setattr(losses, "COMPARISONS_AT_ONCE", 1)
    assert float(losses.triplet(embeddings, labels)) == pytest.approx(float(both))
    assert both == pytest.approx(float(semi_hard))


PEAK = """
import sys
from pathlib import Path

import torch
from retrieval.losses import MetricObjective


def mebibytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024


torch.set_num_threads(1)
objective, embeddings = MetricObjective(sys.argv[1], 2, 64), torch.randn(512, 64, requires_grad=True)
objective(embeddings[:8], torch.arange(8) % 2).backward()
before = mebibytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
objective(embeddings, torch.arange(512) % 2).backward()
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the most that was held")
@pytest.mark.parametrize("name", ["triplet", "recall_at_k"])
def test_a_large_batch_of_two_classes_takes_little_memory(name):
    run = subprocess.run([sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 200  # a single float32 tensor of all 512 * 255 pairs by 512 images has 255


def peer_normalised_softmax(embeddings, labels, proxies):
    peer = peer_losses.NormalizedSoftmaxLoss(CLASSES, DIMENSION, temperature=1 / 16)
    peer.W.data = proxies.T.clone()
    return peer(embeddings, labels)


def peer_cosine_margin(embeddings, labels, proxies):
    peer = peer_losses.CosFaceLoss(CLASSES, DIMENSION, margin=0.2, scale=24)
    peer.W.data = proxies.T.clone()
    return peer(embeddings, labels)


def peer_proxy_anchor(embeddings, labels, proxies):
    peer = peer_losses.ProxyAnchorLoss(CLASSES, DIMENSION, margin=0.1, alpha=32)
    peer.proxies.data = proxies.clone()
    return peer(embeddings, labels)


def peer_contrastive(embeddings, labels, _):
    return peer_losses.ContrastiveLoss(pos_margin=0.25, neg_margin=0.65)(embeddings, labels)


def peer_triplet(embeddings, labels, _):
    mined = peer_miners.TripletMarginMiner(margin=0.1, type_of_triplets="semihard")(embeddings, labels)
    return peer_losses.TripletMarginLoss(margin=0.1)(embeddings, labels, mined)


def peer_multi_similarity(embeddings, labels, _):
    mined = peer_miners.MultiSimilarityMiner(epsilon=0.1)(embeddings, labels)
    return peer_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(embeddings, labels, mined)


PEERS = {
    "normalised_softmax": (peer_normalised_softmax, {"label_smoothing": 0.0}),
    "cosine_margin": (peer_cosine_margin, {}),
    "contrastive": (peer_contrastive, {}),
    "triplet": (peer_triplet, {}),
    "multi_similarity": (peer_multi_similarity, {}),
    "proxy_anchor": (peer_proxy_anchor, {}),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PEERS)
def test_a_loss_and_its_gradient_are_those_of_pytorch_metric_learning(name, seed):
    embeddings, labels, proxies = batch(24, seed, spread=0.7)
    peer, options = PEERS[name]
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    loss, expected = value(name, ours, labels, proxies, **options), peer(theirs, labels, proxies)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_multi_similarity_without_mining_is_that_of_pytorch_metric_learning():
    embeddings, _, proxies = batch(20, 1)
    labels = torch.arange(20) % CLASSES
    expected = peer_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(embeddings, labels)
    torch.testing.assert_close(value("multi_similarity", embeddings, labels, proxies, mining_margin=3.0), expected)


HARD_BATCHES = {
    "random": torch.randn(12, DIMENSION, generator=torch.Generator().manual_seed(0)),
    "equal": torch.ones(12, DIMENSION),
    "zeros": torch.zeros(12, DIMENSION),
    "huge": 1e15 * torch.randn(12, DIMENSION, generator=torch.Generator().manual_seed(1)),
    "duplicates": torch.randn(6, DIMENSION, generator=torch.Generator().manual_seed(2)).repeat(2, 1),
}


@pytest.mark.parametrize("kind", HARD_BATCHES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradients_are_finite(name, kind):
    objective = MetricObjective(name, 3, DIMENSION)
    embeddings = HARD_BATCHES[kind].clone().requires_grad_()
    loss = objective(embeddings, torch.arange(12) % 3)
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(x.grad).all() for x in (embeddings, *objective.parameters()))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_blind_to_order_to_scale_and_to_autocast(name):
    embeddings, labels, proxies = batch(16, seed=3)
    embeddings, proxies = embeddings.float(), proxies.float()
    plain = value(name, embeddings, labels, proxies)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(value(name, embeddings[order], labels[order], proxies), plain)
    scale = torch.logspace(-2, 2, 16).unsqueeze(1)
    torch.testing.assert_close(value(name, embeddings * scale, labels, 7 * proxies), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = value(name, embeddings, labels, proxies)
    assert under.dtype == torch.float32
    assert torch.equal(under, plain)
    assert value(name, embeddings.bfloat16(), labels, proxies).dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_along_the_gradient_lowers_the_loss(name):
    torch.manual_seed(0)
    objective = MetricObjective(name, CLASSES, DIMENSION)
    embeddings, labels, _ = batch(20, seed=5, spread=1.5)
    embeddings = embeddings.float().requires_grad_()
    first = loss = objective(embeddings, labels)
    learned = [embeddings, *objective.parameters()]
    for _ in range(20):
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            parameter.data -= 0.05 * gradient
        loss = objective(embeddings, labels)
    assert loss < first


def test_every_loss_uses_proxies_or_pairs_as_its_signature_says():
    for name, loss in LOSSES.items():
        assert loss.uses_proxies == ("proxies" in inspect.signature(loss.function).parameters), name
        assert loss.uses_proxies or loss.uses_pairs, name


def test_recall_at_k_at_low_temperatures_is_the_recall_counted_by_sorting():
    embeddings, labels, _ = batch(24, seed=11, spread=0.8)
    cosines = torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(embeddings).T
    cosines.fill_diagonal_(-torch.inf)
    hits = labels[cosines.argsort(1, descending=True)][:, :-1] == labels.unsqueeze(1)  # (b, b - 1), nearest first
    asked = hits.any(1)
    positives = hits.sum(1)[asked]
    found = [hits[asked, :k].sum(1) - 0.5 * hits[asked, k - 1] for k in losses.RANKS]  # of rank k by half: sigmoid(0)
    recalls = [(hit / positives.clamp(max=k)).mean() for hit, k in zip(found, losses.RANKS, strict=True)]
    smooth = losses.recall_at_k(embeddings, labels, similarity_temperature=1e-9, rank_temperature=1e-9)
    assert float(smooth) == pytest.approx(1 - float(sum(recalls)) / len(recalls), abs=1e-6)


def test_recall_at_k_is_least_when_every_positive_comes_first():
    labels = torch.arange(20) % 4
    noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = torch.eye(4, dtype=torch.float64)[labels] + 0.1 * noise
    least = 1 - (0.5 / 1 + 1.5 / 2 + 3.5 / 4 + 4 / 4) / 4  # ranks 1 to 4 of 4 positives, that of rank k by half
    sharp = {"similarity_temperature": 1e-6, "rank_temperature": 1e-3}
    assert float(losses.recall_at_k(apart, labels, **sharp)) == pytest.approx(least, abs=1e-6)
    assert losses.recall_at_k(apart, labels.roll(1) // 2, **sharp) > least + 0.1


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if "weight" in loss.options])
def test_the_weight_of_a_joined_loss_decides_what_the_metric_loss_adds(name):
    embeddings, labels, proxies = batch(16, seed=2, spread=1.5)
    alone, one, three = (value(name, embeddings, labels, proxies, weight=weight) for weight in (0.0, 1.0, 3.0))
    torch.testing.assert_close(alone, losses.normalised_softmax(embeddings, labels, proxies))
    torch.testing.assert_close(three - alone, 3 * (one - alone))
    assert one > alone


def test_triplets_without_a_semi_hard_one_fall_back_on_hard_ones():
    embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.01]], requires_grad=True)
    loss = losses.triplet(embeddings, torch.tensor([0, 0, 1]))
    assert loss > 1
    loss.backward()
    assert embeddings.grad.abs().sum() > 0


def test_triplets_that_all_hold_give_zero():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]], requires_grad=True)
    loss = losses.triplet(embeddings, torch.tensor([0, 0, 1]))
    loss.backward()
    assert loss == 0
    assert (embeddings.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_positive_pairs_is_refused_by_losses_that_use_pairs(name):
    if not LOSSES[name].uses_pairs:
        assert torch.isfinite(MetricObjective(name, 4, 3)(torch.randn(4, 3), torch.arange(4)))
        return
    with pytest.raises(ValueError, match="at least 2 images of a class in a batch to form a positive pair"):
        value(name, torch.randn(4, 3), torch.arange(4), torch.randn(4, 3))
    with pytest.raises(ValueError, match="positive pair"):
        MetricObjective(name, 4, 3)(torch.randn(4, 3), torch.arange(4))


def test_an_unknown_loss_option_or_label_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"Unknown loss 'tripplet'; choose one of: normalised_softmax, cosine_margin"):
        MetricObjective("tripplet", 3, 2)
    with pytest.raises(ValueError, match=r"triplet has no option 'margn'; choose from: margin"):
        MetricObjective("triplet", 3, 2, margn=0.1)
    with pytest.raises(ValueError, match="classes is 1"):
        MetricObjective("triplet", 1, 2)
    with pytest.raises(ValueError, match="int64 from 0 to 2"):
        MetricObjective("proxy_anchor", 3, 2)(torch.randn(2, 2), torch.tensor([0, 3]))


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_owns_proxies_only_when_its_loss_uses_them_and_its_options_arrive(name):
    torch.manual_seed(0)
    objective = MetricObjective(name, 6, DIMENSION)
    assert (objective.proxies is not None) == LOSSES[name].uses_proxies == bool(list(objective.parameters()))
    if objective.proxies is not None:
        torch.testing.assert_close(objective.proxies.norm(dim=1), torch.ones(6))
    option, default = next(iter(LOSSES[name].options.items()))
    torch.manual_seed(0)
    changed = MetricObjective(name, 6, DIMENSION, **{option: default * 1.5})
    embeddings, labels, _ = batch(16, seed=7)
    assert changed(embeddings.float(), labels) != objective(embeddings.float(), labels)
