"""The knobs' choices are spelled without the library, so that compiling needs no torch: here the two are compared."""

import pytest

from components import knobs
from components.co_cluster.params import NONNEGATIVE
from components.finetune_metric.params import ADJUST_BY, LOSSES, POOL_KINDS, POOLINGS
from components.launch import params_from
from operations.parameters import params_type, step_names
from retrieval import adjusting, augmentation, backbones, devices, losses, networks, nonnegative, pooling


def test_choices_are_those_of_the_tables() -> None:
    assert ("auto", *augmentation.AUGMENTATIONS) == knobs.AUGMENTATIONS
    assert tuple(augmentation.ROBUST) == knobs.ROBUST
    assert tuple(backbones.BACKBONES) == knobs.BACKBONES
    assert devices.DEVICES == knobs.DEVICES
    assert ("auto", *losses.LOSSES) == LOSSES
    assert tuple(adjusting.ADJUSTING) == ADJUST_BY
    assert ("auto", *pooling.POOLINGS) == POOLINGS
    assert tuple(networks.MAP_POOLS) == POOL_KINDS
    assert ("auto", *nonnegative.NONNEGATIVE) == NONNEGATIVE


@pytest.mark.parametrize(
    ("text", "good"), [("auto", True), ("0.5", True), ("0", True), ("1.1", False), ("nan", False), ("x", False)]
)
def test_auto_or_a_number_of_a_range(text: str, good: bool) -> None:
    assert knobs.is_auto_or_number(text, 0, 1) is good


@pytest.mark.parametrize("step", [step for step in step_names() if "seed" in params_type(step).__dataclass_fields__])
def test_a_seed_is_one_that_numpy_takes_and_kfp_hands_on_unchanged(step: str) -> None:
    assert params_from(params_type(step), {"seed": str(2**53)}).seed == 2**53
    with pytest.raises(ValueError, match="seed is -1; it must be 0 or more"):
        params_type(step)(seed=-1)
    with pytest.raises(ValueError, match=f"seed is '{2**53 + 1}'; Kubeflow Pipelines keeps numbers as floating point"):
        params_from(params_type(step), {"seed": str(2**53 + 1)})


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("step", ["pretrain", "finetune_softmax"])
def test_a_learning_rate_is_a_finite_number_above_0(step: str, rate: float) -> None:
    name = f"{step.removeprefix('finetune_')}_learning_rate"
    with pytest.raises(ValueError, match=f"{name} is {rate}; it must be a finite number above 0"):
        params_type(step)(**{name: rate})
