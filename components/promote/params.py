"""The knobs of promote."""

import re
from dataclasses import dataclass

from components.knobs import check_choices

PROMOTE_MODES = ("auto", "manual")


@dataclass(frozen=True)
class Params:
    """What makes a model champion, and where.

    Attributes:
        registered_model: Name of the model in MLflow's registry; made when missing. Each name has its own champion.
        minimum_recall_at_1: The floor: least R@1 on the test images, from 0 to 1, with which a model becomes champion.
        minimum_gain: Least gain of R@1 over the champion, from 0 to 1; at 0 any gain will do. A tie never promotes.
        promote_mode: auto, or manual: a model that wins becomes challenger and waits for `rankone approve`.
        publish_to: s3://bucket/prefix under which model and report are kept too, as <registered_model>/<version>; empty
            for nowhere.
    """

    registered_model: str = "rankone"
    minimum_recall_at_1: float = 0.9
    minimum_gain: float = 0.0
    promote_mode: str = "auto"
    publish_to: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", self.registered_model):
            raise ValueError(
                f"registered_model is '{self.registered_model}'; use letters, digits, '_', '.' and '-', 100 at most, "
                "beginning with a letter or digit."
            )
        if self.publish_to and not re.match(r"s3://[^/]+", self.publish_to):
            raise ValueError(f"publish_to is '{self.publish_to}'; give s3://bucket/prefix, or nothing.")
        check_choices(self, promote_mode=PROMOTE_MODES)
        for name in ("minimum_recall_at_1", "minimum_gain"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it is a share of queries: give a number from 0 to 1."
                )
