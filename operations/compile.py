"""From `pipeline.py` to the YAML that every place runs: this machine, Docker, a cluster."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from operations.code_version import step_version
from operations.profiles import Profile
from retrieval.tracking import IMAGE

PACKAGE, RESOURCES = "package", "crd"  # the formats
FORMATS = (PACKAGE, RESOURCES)
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
CHANGES_STEP, PIPELINE_CODE = "detect_changes", "RANKONE_PIPELINE_CODE"
NO_PART_OF_A_MODEL = ("announce",)  # steps whose code changes no model


def compile_pipeline(
    output: Path,
    values: Mapping[str, Any] | None = None,
    pinned: bool = True,
    images: Mapping[str, str] | None = None,
    profile: Profile | None = None,
) -> Path:
    """Compile the pipeline to YAML.

    Args:
        output: the file to write.
        values: parameters whose defaults are replaced.
        pinned: give each step's image the version of its code as a tag; a cache must not see one tag for two codes.
        images: what to run for each image, by its name, in place of those tags; from `image_lock.images_of`.
        profile: the hardware that the steps ask a cluster for; nothing when None.

    Raises:
        ValueError: `images` lacks one that a step names.
    """
    from kfp import compiler  # seconds of import, only when needed

    import pipeline

    if profile:
        from operations.placement import placed_pipeline

        graph = placed_pipeline(profile)
    else:
        graph = pipeline.rankone
    output.parent.mkdir(parents=True, exist_ok=True)
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in (values or {}).items()}
    compiler.Compiler().compile(graph, str(output), pipeline_parameters=arguments)
    if pinned:
        output.write_text(_pin(output.read_text(), images))
    return output


def content_digest(package: Path) -> str:
    """Twelve hexadecimal digits that change with what a compiled pipeline does, not with its comments."""
    documents = list(yaml.safe_load_all(package.read_text()))
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:12]


def check_namespace(name: str) -> None:
    """Refuse what can be no namespace: the cluster would, when the resources are applied.

    Raises:
        ValueError: names it.
    """
    if not NAMESPACE.fullmatch(name):
        raise ValueError(
            f"--namespace is '{name}'; it is of small letters, digits and '-', 63 at most, and begins and ends with a "
            "letter or digit."
        )


def write_resources(package: Path, output: Path, namespace: str | None = None) -> Path:
    """Write a compiled pipeline as the resources Pipeline and PipelineVersion, for a cluster that keeps them so.

    The version is named by the digest of its content: `kubectl apply` of an unchanged pipeline changes nothing, and a
    changed one is another version.

    Args:
        package: from `compile_pipeline`.
        output: the file to write.
        namespace: of the resources; that of `kubectl` when None.
    """
    from google.protobuf import json_format
    from kfp.compiler.pipeline_spec_builder import KubernetesManifestOptions, write_pipeline_spec_to_file
    from kfp.pipeline_spec import pipeline_spec_pb2

    specification, *platforms = yaml.safe_load_all(package.read_text())
    pipeline_spec = json_format.ParseDict(specification, pipeline_spec_pb2.PipelineSpec())
    platform_spec = json_format.ParseDict(platforms[0] if platforms else {}, pipeline_spec_pb2.PlatformSpec())
    name, version = specification["pipelineInfo"]["name"], content_digest(package)
    options = KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_display_name=name,
        pipeline_version_name=f"{name}-{version}",
        pipeline_version_display_name=version,
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    write_pipeline_spec_to_file(
        pipeline_spec=pipeline_spec,
        pipeline_description=specification["pipelineInfo"].get("description"),
        platform_spec=platform_spec,
        package_path=str(output),
        kubernetes_manifest_options=options,
        kubernetes_manifest_format=True,
    )
    return output


def _pin(text: str, images: Mapping[str, str] | None) -> str:
    """The pipeline with a digest or a tag on every image, its leading comment kept.

    The step that looks for changes is told the digest of them all: it is the version of the whole pipeline's code.
    """
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    specification, *platforms = yaml.safe_load_all(text)
    pinned: dict[str, dict[str, Any]] = {}
    for executor in specification["deploymentSpec"]["executors"].values():
        container = executor["container"]
        step, image = container["command"][-1], container["image"]  # python -m components STEP
        if images is not None and image not in images:
            raise ValueError(f"{step} runs in {image}, which is not among the images: {', '.join(sorted(images))}.")
        container["image"] = images[image] if images is not None else f"{image}:{step_version(step)}"
        if images is not None:  # what a step tells of itself: an image cannot know its own digest
            container.setdefault("env", []).append({"name": IMAGE, "value": images[image]})
        pinned[step] = container
    made_by = {step: each["image"] for step, each in pinned.items() if step not in NO_PART_OF_A_MODEL}
    code = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    pinned[CHANGES_STEP].setdefault("env", []).append({"name": PIPELINE_CODE, "value": code.hexdigest()})
    return comment + yaml.safe_dump_all([specification, *platforms], sort_keys=True)
