"""From `pipeline.py` to the YAML that every place runs: this machine, Docker, a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from operations.code_version import step_version


def compile_pipeline(
    output: Path,
    values: Mapping[str, Any] | None = None,
    pinned: bool = True,
    images: Mapping[str, str] | None = None,
) -> Path:
    """Compile the pipeline to YAML.

    Args:
        output: the file to write.
        values: parameters whose defaults are replaced.
        pinned: give each step's image the version of its code as a tag; a cache must not see one tag for two codes.
        images: what to run for each image, by its name, in place of those tags; from `image_lock.images_of`.

    Raises:
        ValueError: `images` lacks one that a step names.
    """
    from kfp import compiler  # seconds of import, only when needed

    from pipeline import rankone

    output.parent.mkdir(parents=True, exist_ok=True)
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in (values or {}).items()}
    compiler.Compiler().compile(rankone, str(output), pipeline_parameters=arguments)
    if pinned:
        output.write_text(_pin(output.read_text(), images))
    return output


def _pin(text: str, images: Mapping[str, str] | None) -> str:
    """The pipeline with a digest or a tag on every image, its leading comment kept."""
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    specification = yaml.safe_load(text)
    for executor in specification["deploymentSpec"]["executors"].values():
        container = executor["container"]
        step, image = container["command"][-1].split(".")[1], container["image"]  # python -m components.<step>.step
        if images is not None and image not in images:
            raise ValueError(f"{step} runs in {image}, which is not among the images: {', '.join(sorted(images))}.")
        container["image"] = images[image] if images is not None else f"{image}:{step_version(step)}"
    return comment + yaml.safe_dump(specification, sort_keys=True)
