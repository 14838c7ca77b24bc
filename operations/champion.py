"""What the champion is when a run starts, for the step cache: evaluate scores it, so a new one makes it run anew."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval.manifest import digest_of
from retrieval.tracking import PIPELINE_RUN

PARAMETERS = "parameters.json"  # in the folder of a run


def with_champion(values: Mapping[str, Any], runs: Path) -> dict[str, Any]:
    """The values with a fingerprint of the champion: the digest of its model, or empty where there is none.

    A champion that a run with these very values made is no news to them: the fingerprint is then that run's own, so the
    same command again takes every step from the cache.

    Args:
        values: pipeline parameters.
        runs: folder of the runs that were made here.

    Raises:
        TrackingError: the registry cannot be reached.
    """
    from operations.parameters import all_knobs
    from retrieval import registry

    champion = registry.champion(str(values.get("registered_model", all_knobs()["registered_model"].default)))
    if champion is None:
        return {**values, "champion_fingerprint": ""}
    earlier = parameters_of(runs, champion.tags.get(PIPELINE_RUN, ""))
    own = earlier.pop("champion_fingerprint", "")
    if earlier and digest_of(earlier) == digest_of(dict(values)):
        return {**values, "champion_fingerprint": own}
    return {**values, "champion_fingerprint": champion.model_digest or f"version {champion.version}"}


def keep_parameters(folder: Path, values: Mapping[str, Any]) -> None:
    """Write down what a run was started with, in its folder."""
    (folder / PARAMETERS).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def parameters_of(runs: Path, run: str) -> dict[str, Any]:
    """What a run here was started with; empty where no such run was made here, or its file cannot be read."""
    if not run or "/" in run:
        return {}
    try:
        return dict(json.loads((runs / run / PARAMETERS).read_text()))
    except (OSError, TypeError, ValueError):
        return {}
