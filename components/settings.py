"""A parameter of the pipeline that belongs to no step, e.g. what a profile lets a run decide about its hardware.

Standard library only.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One of them.

    Attributes:
        name: as in `-p name=value`.
        kind: str, int, float, bool, list or dict.
        default: value when nothing else is said.
        description: one sentence.
    """

    name: str
    kind: type
    default: Any
    description: str
