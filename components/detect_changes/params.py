"""The knobs of detect_changes."""

import math
from dataclasses import dataclass

from components.knobs import DEVICES, check_choices, check_least, check_registered_model

# parameters that change neither a model nor what becomes of it, and why; all others are part of what it was made from
OPERATIONAL = {
    "champion_fingerprint": "says who is champion",
    "checkpoint_seconds": "how often a state is kept",
    "checkpoints": "where states are kept",
    "compile": "how the network is run",
    "device": "what computes",
    "download": "whether images are fetched",
    "drift_images": "how many images are looked at for drift",
    "force": "whether to train all the same",
    "location": "where the images lie; the digest of the data says what they are",
    "maximum_age_days": "when to train all the same",
    "pictures_kept": "how many pictures are kept for pages",
    "publish_to": "where copies go",
    "registered_model": "whose versions are looked at",
    "skip_unchanged": "whether anything is skipped",
    "source_fingerprint": "stands for the data in a cache",
    "webhook_format": "how a receiver is told",
    "workers": "how many processes read images",
}


@dataclass(frozen=True)
class Params:
    """When there is nothing to train on.

    Attributes:
        registered_model: Name of the model in MLflow's registry; made when missing. Each name has its own champion.
        skip_unchanged: whether a run ends early whose data, parameters and code are those of the champion, or of a
            version that was judged already; schedules set it.
        force: train although nothing has changed.
        maximum_age_days: train although nothing has changed once the version is older than this; 0 for no limit.
        drift_images: how many images of the dataset the champion embeds to find drift; 0 for none.
        device: auto, cpu or cuda.
    """

    registered_model: str = "rankone"
    skip_unchanged: bool = False
    force: bool = False
    maximum_age_days: float = 0.0
    drift_images: int = 2000
    device: str = "auto"

    def __post_init__(self) -> None:
        check_registered_model(self)
        check_choices(self, device=DEVICES)
        check_least(self, drift_images=0)
        if not 0 <= self.maximum_age_days < math.inf:
            raise ValueError(f"maximum_age_days is {self.maximum_age_days}; give a number of days, or 0 for no limit.")
