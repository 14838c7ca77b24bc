"""What is known of one model when it is judged; apart from the gate, for steps whose image has no scipy."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Evidence:
    """What is known of one model.

    Attributes:
        recall_at_1: share of test queries whose nearest other image is of their class.
        evaluation_digest: of the queries and gallery it was measured on.
        queries: how many they were.
        version: in the registry; empty when unknown.
        model_digest: of its folder; empty when unknown.
        dimension: length of its embeddings; 0 when unknown.
        images_per_second: that it embeds; None when not measured.
        correct: (q,) 1 or True where a query is answered rightly; None when only the share is known.
        classes: (q,) the class of each query, in the same order for every model of one digest.
    """

    recall_at_1: float
    evaluation_digest: str
    queries: int
    version: str = ""
    model_digest: str = ""
    dimension: int = 0
    images_per_second: float | None = None
    correct: np.ndarray | None = field(default=None, repr=False, compare=False)
    classes: Sequence[str] | np.ndarray | None = field(default=None, repr=False, compare=False)
