"""The knobs of evaluate."""

from dataclasses import dataclass

from components.knobs import DEVICES, check_choices, check_least, check_registered_model, check_seed


@dataclass(frozen=True)
class Params:
    """How a model is measured.

    Attributes:
        acceptance: share of right answers that the similarity threshold must give on validation queries.
        threshold_trials: how often the validation queries are drawn again to find the similarity threshold and its
            interval.
        bootstrap_resamples: how often the classes are drawn again for the interval of R@1.
        occlusion_queries: how many test images are searched with parts of them hidden; 0 for none.
        further_datasets: folders of other datasets to measure the model on, here or s3://bucket/prefix, separated by
            commas, or empty.
        further_fingerprint: digest of what these hold, set by `rankone run` so that the step cache sees others.
        registered_model: Name of the model in MLflow's registry; made when missing. Each name has its own champion.
        champion_fingerprint: what the champion is, set by `rankone run` so that the step cache sees a new one.
        gallery_queries: how many queries the report shows with their nearest images.
        pictures_kept: how many small pictures of test images are kept with the model's version, for galleries of fixed
            and broken queries that outlive the dataset; 0 for none.
        batch_size: images at once.
        seed: of every random choice.
        device: auto, cpu or cuda.
    """

    acceptance: float = 0.9
    threshold_trials: int = 200
    bootstrap_resamples: int = 2000
    occlusion_queries: int = 1000
    further_datasets: str = ""
    further_fingerprint: str = ""
    registered_model: str = "rankone"
    champion_fingerprint: str = ""
    gallery_queries: int = 24
    pictures_kept: int = 4000
    batch_size: int = 128
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choices(self, device=DEVICES)
        check_registered_model(self)
        check_least(self, batch_size=2, threshold_trials=1, occlusion_queries=0)
        check_seed(self)
        if not 0 < self.acceptance <= 1:
            raise ValueError(f"acceptance is {self.acceptance}; it is a share of answers, above 0 and at most 1.")
        if self.bootstrap_resamples < 100:
            raise ValueError(
                f"bootstrap_resamples is {self.bootstrap_resamples}; below 100 the ends of the interval are chance."
            )
        if not 0 <= self.pictures_kept <= 20_000:
            raise ValueError(
                f"pictures_kept is {self.pictures_kept}; give 0 to 20,000: at 2 KB each they go with every version."
            )
        if not 0 <= self.gallery_queries <= 200:
            raise ValueError(
                f"gallery_queries is {self.gallery_queries}; the report shows 0 to 200 queries, so that it stays small."
            )
