"""The knobs of promote."""

import math
import re
from dataclasses import dataclass

from components.knobs import check_choices, check_registered_model

PROMOTE_MODES = ("auto", "manual")


@dataclass(frozen=True)
class Params:
    """What makes a model champion, and where.

    Attributes:
        registered_model: Name of the model in MLflow's registry; made when missing. Each name has its own champion.
        minimum_recall_at_1: The floor: least R@1 on the test images, from 0 to 1, with which a model becomes champion.
        minimum_gain: Least gain of R@1 over the champion, from 0 to 1; at 0 any gain will do. A tie never promotes.
        maximum_regression: The lower end of the 95 % interval of the gain must lie above minus this, from 0 to 1; at 0
            the gain must be beyond chance.
        minimum_queries: Least number of test queries on which a model is compared with the champion.
        maximum_class_drop: Most that R@1 of a single class may fall below the champion's, from 0 to 1; deeper falls are
            reported.
        fail_on_class_drop: Whether a fall of a single class deeper than maximum_class_drop rejects the model.
        maximum_dimension: Most numbers in an embedding with which a champion is replaced; 0 for no limit.
        minimum_images_per_second: Least speed of embedding, as evaluate measures it, with which a champion is replaced;
            0 for no limit.
        promote_mode: auto, or manual: a model that wins becomes challenger and waits for `rankone approve`.
        publish_to: s3://bucket/prefix under which model and report are kept too, as <registered_model>/<version>; empty
            for nowhere.
    """

    registered_model: str = "rankone"
    minimum_recall_at_1: float = 0.9
    minimum_gain: float = 0.0
    maximum_regression: float = 0.0
    minimum_queries: int = 100
    maximum_class_drop: float = 0.2
    fail_on_class_drop: bool = False
    maximum_dimension: int = 0
    minimum_images_per_second: float = 0.0
    promote_mode: str = "auto"
    publish_to: str = ""

    def __post_init__(self) -> None:
        check_registered_model(self)
        if self.publish_to and not re.match(r"s3://[^/]+", self.publish_to):
            raise ValueError(f"publish_to is '{self.publish_to}'; give s3://bucket/prefix, or nothing.")
        check_choices(self, promote_mode=PROMOTE_MODES)
        for name in ("minimum_recall_at_1", "minimum_gain", "maximum_regression", "maximum_class_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it is a share of queries: give a number from 0 to 1."
                )
        for name in ("minimum_queries", "maximum_dimension", "minimum_images_per_second"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more.")
