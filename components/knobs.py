"""What the knobs of several steps have in common: their choices, and the checks that `Params` make of them.

Standard library only: every image carries this file.
"""

import math
import re
from typing import Any

DEVICES = ("auto", "cpu", "cuda")
AUGMENTATIONS = (
    "auto", "none", "shift", "shift_colour", "shift_erase", "shift_patch", "warp", "shift_rand",
    "crop_flip", "crop_flip_colour", "crop_flip_erase", "crop_flip_patch", "crop_flip_rand",
)  # fmt: skip
ROBUST = ("none", "missing")
LABELS = ("given", "none")
BACKBONES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "alexnet", "vgg11", "vgg16", "vgg16_bn", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "squeezenet1_0", "squeezenet1_1", "efficientnet_b0",
)  # fmt: skip


def check_choices(params: Any, **choices: tuple[str, ...]) -> None:
    """Refuse a knob that is none of its choices.

    Raises:
        ValueError: names the knob, its value and the choices.
    """
    for name, allowed in choices.items():
        value = getattr(params, name)
        if value not in allowed:
            raise ValueError(f"Unknown {name} '{value}'; choose one of: {', '.join(allowed)}.")


def check_least(params: Any, **least: int) -> None:
    """Refuse a knob that is below its least value.

    Raises:
        ValueError: names the knob, its value and the least one.
    """
    for name, lowest in least.items():
        value = getattr(params, name)
        if value < lowest:
            raise ValueError(f"{name} is {value}; it must be {lowest} or more.")


def check_seed(params: Any) -> None:
    """Refuse a seed below 0, which NumPy does not take; `launch.parse` refuses whole numbers that are too large.

    Raises:
        ValueError: names it.
    """
    check_least(params, seed=0)


def check_rates(params: Any, *names: str) -> None:
    """Refuse a learning rate that is not above 0, or not finite.

    Raises:
        ValueError: names the knob and its value.
    """
    for name in names:
        value = getattr(params, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a finite number above 0.")


def check_registered_model(params: Any) -> None:
    """Refuse a name of a registered model that an address or an MLflow filter could not hold.

    Raises:
        ValueError: names it.
    """
    check_model_name(params.registered_model, "registered_model")


def check_model_name(name: str, given_as: str) -> None:
    """Refuse it, as the named knob or option gives it.

    Raises:
        ValueError: names it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(
            f"{given_as} is '{name}'; use letters, digits, '_', '.' and '-', 100 at most, beginning with a letter or "
            "digit."
        )


def is_auto_or_number(text: str, lowest: float, highest: float = math.inf) -> bool:
    """Whether a knob that is a text says "auto" or a finite number from `lowest` to `highest`."""
    if text == "auto":
        return True
    try:
        return math.isfinite(float(text)) and lowest <= float(text) <= highest
    except ValueError:
        return False


def check_checkpoints(params: Any) -> None:
    """Refuse a place of checkpoints that is neither folder nor bucket, and an interval that is no number of seconds.

    Raises:
        ValueError: names the knob and its value.
    """
    if "://" in params.checkpoints and not params.checkpoints.startswith("s3://"):
        raise ValueError(f"checkpoints is '{params.checkpoints}'; give a folder, s3://bucket/prefix or nothing.")
    if not 0 <= params.checkpoint_seconds < math.inf:
        raise ValueError(
            f"checkpoint_seconds is {params.checkpoint_seconds}; give the seconds between two, or 0 for none."
        )
