"""Models that may go on from fine-tuning: the network before it and after it, and with the features of pretrain."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrieval.dataset import Dataset
from retrieval.features import embed, load_features
from retrieval.joining import SHARES, join
from retrieval.model_folder import read_model_manifest
from retrieval.models import EmbeddingModel, load_model
from retrieval.refinement import STRENGTHS, Refinement, choose_refinement, learn_refinement
from retrieval.splits import UNMEASURABLE, can_measure
from retrieval.validation import distractors, recall_of, searched_among


@dataclass(frozen=True)
class Embedded:
    """What a network makes of the images that decide.

    Attributes:
        train: (n, d) of the training images.
        held_out: (v, d) of the validation images.
    """

    train: Tensor
    held_out: Tensor

    def joined(self, features: "Embedded", share: float) -> "Embedded":
        """With features beside the embeddings."""
        return Embedded(join(self.train, features.train, share), join(self.held_out, features.held_out, share))


@dataclass(frozen=True)
class Candidate:
    """A model that may go on, with the refinement that suits it.

    Attributes:
        name: "before" or "after" fine-tuning, or the share of the features that are joined.
        network: without a refinement.
        embedded: what it makes of the images.
        model: with its refinement.
        recall_at_1: of the validation images, refined; None where it cannot be measured.
        plain_recall_at_1: without the refinement.
        refinement_why: one sentence: what was tried and chosen.
        joined_why: the same, of the features of pretrain.
    """

    name: str
    network: EmbeddingModel
    embedded: Embedded
    model: EmbeddingModel
    recall_at_1: float | None
    plain_recall_at_1: float | None
    refinement_why: str
    joined_why: str = ""


@dataclass(frozen=True)
class Judge:
    """Measures networks by R@1 of the validation images.

    Attributes:
        data: the dataset.
        labels: (n,) of its training images, in 0..c-1.
        refine: the knob.
        device: where to embed.
    """

    data: Dataset
    labels: Tensor
    refine: str
    device: torch.device

    @property
    def among(self) -> str:
        """What the validation images are searched among, in words."""
        return searched_among(self.data)

    def embed(self, network: EmbeddingModel, when: str) -> Embedded:
        """Embed the training and the validation images."""
        train = embed(network, self.data, self.data.rows("train"), self.device)
        rows = self.data.rows("validation")
        return Embedded(train, embed(network, self.data, rows, self.device, name=f"finetune_softmax: validate {when}"))

    def candidate(self, name: str, network: EmbeddingModel, embedded: Embedded) -> Candidate:
        """The network with its refinement: as asked for, or as the validation images gain by it.

        They are searched among the distractors too, see validation.distractors.
        """
        none, every = ((), False), (STRENGTHS, False)
        strengths, forced = {"auto": every, "none": none}.get(self.refine) or ((float(self.refine),), True)
        if not can_measure(self.data.labels[self.data.rows("validation")]):
            refinement = learn_refinement(embedded.train, self.labels, *strengths) if forced else None
            why = f"refinement {self.refine if forced else 'none'}: {UNMEASURABLE}"
            return Candidate(name, network, embedded, with_refinement(network, refinement), None, None, why)
        distracting = np.isin(self.data.rows("train"), distractors(self.data))
        choice = choose_refinement(
            embedded.train,
            self.labels,
            torch.cat([embedded.held_out, embedded.train[distracting]]),
            lambda refined: recall_of(refined, self.data),
            strengths,
            forced,
        )
        model = with_refinement(network, choice.refinement)
        return Candidate(name, network, embedded, model, choice.recall_at_1, choice.measured["none"], choice.why)


def with_refinement(network: EmbeddingModel, refinement: Refinement | None) -> EmbeddingModel:
    """The network with a refinement; itself without one."""
    return network if refinement is None else network.refined(refinement)


def better_of(before: Candidate, after: Candidate) -> Candidate:
    """The candidate of more R@1 on validation; fine-tuning has to raise it, and goes on where nothing can be seen."""
    if before.recall_at_1 is None or after.recall_at_1 is None:
        return after
    return after if after.recall_at_1 > before.recall_at_1 else before


def digest_of_backbone(backbone: Path, data: Dataset, features: Path | None = None) -> str:
    """Digest of the backbone whose features are to be joined.

    Args:
        backbone: its folder.
        data: the dataset that it must have been trained on: its training images may be test images of another.
        features: folder of features that it must have made; None where none are read.

    Raises:
        ValueError: the backbone is of another dataset, or the features are of another backbone.
    """
    manifest = read_model_manifest(backbone)
    dataset = manifest.made_from.get("dataset", "unknown")
    if dataset != data.digest:
        raise ValueError(
            f"{backbone} was trained on dataset {dataset[:12]}, not on the dataset given, {data.digest[:12]}; its "
            "training images may be test images here. Run pretrain on this dataset."
        )
    if features is None:
        return manifest.digest
    maker = load_features(features, data).manifest.made_from.get("backbone", "unknown")
    if maker != manifest.digest:
        raise ValueError(
            f"{features} were made by backbone {maker[:12]}, not by the one given, {manifest.digest[:12]}; give the "
            "backbone and the features of one run of pretrain."
        )
    return manifest.digest


def joined_with_features(asked: str, alone: Candidate, judge: Judge, backbone: Path, features: Path) -> Candidate:
    """The candidate, with the features of pretrain beside its embeddings if that is asked for or raises R@1.

    Args:
        asked: "none", "auto" (SHARES are tried on the validation images; a tie is no gain) or a share from 0 to 1.
        alone: what goes on without features.
        judge: that measured it.
        backbone: folder of the model that made the features.
        features: folder of the features of all images of the judge's dataset.

    Raises:
        ValueError: backbone or features are of another dataset, or the features are of another backbone.
    """
    if asked == "none":
        return replace(alone, joined_why="features of pretrain joined: none; they are not asked for")
    if asked == "auto" and alone.recall_at_1 is None:
        return replace(alone, joined_why=f"features of pretrain joined: none; {UNMEASURABLE}")
    digest_of_backbone(backbone, judge.data, features)
    teacher, values = load_model(backbone, judge.device), load_features(features, judge.data).values
    made = Embedded(*(torch.tensor(values[judge.data.rows(split)]) for split in ("train", "validation")))
    shares = SHARES if asked == "auto" else (float(asked),)
    tried = [
        judge.candidate(
            f"share {share:g}", alone.network.joined_with(teacher, share), alone.embedded.joined(made, share)
        )
        for share in shares
    ]
    if alone.recall_at_1 is None:
        return replace(tried[0], joined_why=f"features of pretrain joined: {tried[0].name}, asked for")
    best = max([alone, *tried] if asked == "auto" else tried, key=lambda candidate: candidate.recall_at_1 or 0.0)
    shown = ", ".join(f"{candidate.name} {candidate.recall_at_1:.1%}" for candidate in tried)
    chosen = "none" if best is alone else best.name
    seen = f"R@1 of the validation images: alone {alone.recall_at_1:.1%}, {shown}"
    return replace(best, joined_why=f"features of pretrain joined: {chosen}; {seen}")
