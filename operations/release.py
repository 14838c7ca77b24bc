"""Release pipelines: what schedules run. At its next time, a schedule takes the version that was uploaded last.

They are apart from the pipeline that `rankone submit` uploads to, whose latest version is whatever somebody tried last.
Their steps take nothing from the cluster's cache: Kubeflow Pipelines has no way to say so for a recurring run, and a
`prepare_data` from the cache would never see new images.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from kfp_server_api import V2beta1PipelineVersion

from operations.cluster import Client, ClusterError, answered
from operations.cluster_runs import find_or_make_pipeline, find_pipeline, named, silent, unless_another_did
from operations.compile import compile_pipeline, content_digest
from operations.profiles import Profile

NAMES_IN_A_MESSAGE = 5


@dataclasses.dataclass(frozen=True)
class Release:
    """A release pipeline, and the version that it should run.

    Attributes:
        pipeline: its name.
        package: the compiled pipeline.
        digest: of the package's content.
        latest: the version that was uploaded last; empty for none.
    """

    pipeline: str
    package: Path
    digest: str
    latest: str

    @property
    def changes(self) -> bool:
        """Whether a version has to be uploaded."""
        return version_digest(self.latest) != self.digest


def compile_release(output: Path, images: Mapping[str, str], profile: Profile) -> Path:
    """Compile the pipeline for schedules: as `rankone submit` does, and without the cache."""
    compile_pipeline(output, images=images, profile=profile)
    text = output.read_text()
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    specification, *platforms = yaml.safe_load_all(text)
    for task in tasks_of(specification):
        task["cachingOptions"] = {}  # as `set_caching_options(False)` compiles
    output.write_text(comment + yaml.safe_dump_all([specification, *platforms], sort_keys=True))
    return output


def tasks_of(specification: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every task of a compiled pipeline, those inside other tasks too."""
    for component in (specification["root"], *specification["components"].values()):
        yield from component.get("dag", {}).get("tasks", {}).values()


def look_at_release(client: Client, pipeline: str, package: Path) -> Release:
    """What a release pipeline runs, and what it should."""
    with answered():
        known = find_pipeline(client, pipeline)
        found = latest_version(client, known) if known else None
    return Release(pipeline, package, content_digest(package), found.display_name if found else "")


def publish(client: Client, release: Release) -> str:
    """Upload a version, so that it is the latest; its name.

    A version is named by its content. One that was there before, and is to be the latest again, is uploaded anew under
    that name and a number: the server goes by when it was uploaded.
    """
    with answered(), silent():
        pipeline = find_or_make_pipeline(client, release.pipeline)
        for number in range(1, 1_000):
            found = latest_version(client, pipeline)
            if found and version_digest(found.display_name) == release.digest:
                return str(found.display_name)
            name = release.digest if number == 1 else f"{release.digest}.{number}"
            with unless_another_did():
                return str(
                    client.upload_pipeline_version(str(release.package), name, pipeline_id=pipeline).display_name
                )
    raise ClusterError(f"{release.pipeline} has a thousand versions of the name {release.digest}; delete some.")


def latest_version(client: Client, pipeline: str) -> V2beta1PipelineVersion | None:
    """The version that schedules without one run."""
    found = client.list_pipeline_versions(pipeline, page_size=1, sort_by="created_at desc").pipeline_versions
    return found[0] if found else None


def find_version(client: Client, pipeline: str, name: str) -> V2beta1PipelineVersion:
    """A version of a release pipeline by its name.

    Raises:
        ClusterError: there is none; the message lists those uploaded last.
    """
    with answered():
        known = find_pipeline(client, pipeline)
        found = client.list_pipeline_versions(known, filter=named(name)).pipeline_versions if known else None
        if found:
            return found[0]
        latest = (
            client.list_pipeline_versions(
                known, page_size=NAMES_IN_A_MESSAGE, sort_by="created_at desc"
            ).pipeline_versions
            if known
            else None
        )
    listed = ", ".join(version.display_name for version in latest or []) or "none yet"
    raise ClusterError(f"{pipeline} has no version '{name}'; uploaded last: {listed}. `latest` follows them.")


def version_digest(name: str) -> str:
    """The digest in a version's name."""
    return re.sub(r"\.[0-9]+$", "", name)


def parameters_of(version: V2beta1PipelineVersion) -> set[str]:
    """Names of the parameters that a version has."""
    specification = version.pipeline_spec or {}
    root = specification.get("pipeline_spec", specification)["root"]
    return set(root.get("inputDefinitions", {}).get("parameters", {}))
