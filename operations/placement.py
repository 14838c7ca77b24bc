"""What each task of the pipeline asks of a cluster: a profile's hardware, the namespace's addresses and secrets.

Without a profile the compiled pipeline asks for nothing: that is what this machine runs.
"""

from collections.abc import Mapping
from typing import Any

from kfp import kubernetes
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_task import PipelineTask

import pipeline
from operations.profiles import Hardware, Profile, settings_of

STEP_LABEL = ("rankone/step", "true")  # by which the network policies of manifests/ know a step
CONFIG_MAP = "rankone"  # made by manifests/; its keys are names of variables
ADDRESS = ("MLFLOW_TRACKING_URI",)  # without it a step would keep its runs inside its pod and lose them
PLACES = (
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_EXPERIMENT_NAME",
    "RANKONE_PIPELINE_ADDRESS",  # of a run's page, for links
)
SECRETS = {  # optional, every key of them: a cluster may give its service account a role instead
    "rankone-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    "rankone-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}
SECRETS_OF = {"announce": {"rankone-webhook": ("RANKONE_WEBHOOK_URL",)}}  # optional too, and of one step alone


def placed_pipeline(profile: Profile) -> BaseComponent:
    """The pipeline for a cluster: every task asks for what the profile says, and selectors are parameters."""

    def place(task: PipelineTask, settings: Mapping[str, Any]) -> None:
        accelerated = step_of(task) in pipeline.ACCELERATED
        part, hardware = profile.part(accelerated)
        ask_for_resources(task, part, hardware, settings)
        ask_for_space(task, hardware)
        ask_for_time(task, hardware)
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.add_pod_label(task, *STEP_LABEL)
        take_variables(task)

    return pipeline.build(list(settings_of(profile).values()), place)


def step_of(task: PipelineTask) -> str:
    """The name of a task's step."""
    return task.name.replace("-", "_")


def ask_for_resources(task: PipelineTask, part: str, hardware: Hardware, settings: Mapping[str, Any]) -> None:
    """Ask for processors, memory, an accelerator and the nodes that have them; a run's parameters decide."""
    cpu, memory = settings[f"{part}_cpu"], settings[f"{part}_memory"]
    task.set_cpu_request(cpu)  # no limit: a step that finds idle processors uses them
    task.set_memory_request(memory).set_memory_limit(memory)
    read = [cpu, memory]
    if hardware.accelerator:
        read += [settings["accelerator_type"], settings["accelerator_count"]]
        task.set_accelerator_type(settings["accelerator_type"])
        task.set_accelerator_limit(settings["accelerator_count"])
    task.register_pipeline_channels(read)  # else kfp 2.17 does not hand them on to the steps of an exit handler
    kubernetes.add_node_selector_json(task, settings[f"{part}_node_selector"])
    kubernetes.add_toleration_json(task, settings[f"{part}_tolerations"])


def ask_for_space(task: PipelineTask, hardware: Hardware) -> None:
    """Give /dev/shm a size and the scratch space a limit.

    Kubeflow Pipelines has no field for a request of ephemeral storage: the LimitRange of manifests/ makes it.
    """
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=hardware.shared_memory)
    kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=hardware.ephemeral_storage)


def ask_for_time(task: PipelineTask, hardware: Hardware) -> None:
    """End an attempt that takes too long on its node; try again, ever less often."""
    kubernetes.set_timeout(task, hardware.timeout_minutes * 60)
    task.set_retry(
        hardware.retries,
        backoff_duration=f"{hardware.backoff_seconds}s",
        backoff_factor=hardware.backoff_factor,
        backoff_max_duration=f"{hardware.longest_backoff_seconds}s",
    )


def take_variables(task: PipelineTask) -> None:
    """Take the addresses of MLflow and of the object store, and the credentials for both, from the namespace."""
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {name: name for name in ADDRESS})
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {name: name for name in PLACES}, optional=True)
    for secret, names in (SECRETS | SECRETS_OF.get(step_of(task), {})).items():
        kubernetes.use_secret_as_env(task, secret, {name: name for name in names}, optional=True)
