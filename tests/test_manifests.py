"""The manifests: what kustomize makes of every overlay, against the schemas of Kubernetes and against our own rules."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from operations.placement import ADDRESS, CONFIG_MAP, PLACES, SECRETS, STEP_LABEL
from tests.kfp_server import IMAGES

MANIFESTS = Path(__file__).parents[1] / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
VERSIONS = ("1.29", "1.33", "1.37")  # the oldest that Kubeflow Pipelines 2.17 runs on, one between, the newest known
NAMESPACE = {"standalone": "kubeflow", "profile": "rankone", "trial": "kubeflow"}
WORKLOADS = ("Deployment", "StatefulSet", "Job")
Resource = dict[str, Any]


def documents(path: Path) -> list[Resource]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def files_of(folder: Path) -> Iterator[Path]:
    """Every file that a kustomization leads to; one that is missing is an error."""
    kustomization = folder / "kustomization.yaml"
    (described,) = documents(kustomization)
    assert set(described) <= {
        "apiVersion", "kind", "namespace", "labels", "resources", "components", "patches", "images",
    }  # fmt: skip
    yield kustomization
    named = [*described.get("resources", []), *described.get("components", [])]
    for entry in [*named, *(patch["path"] for patch in described.get("patches", []))]:
        path = (folder / entry).resolve()
        assert path.exists(), f"{kustomization} names {entry}, which does not exist"
        if path.is_dir():
            yield from files_of(path)
        else:
            yield path


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest) -> tuple[str, list[Resource]]:
    """An overlay and its resources, as `kubectl kustomize` builds them."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not here")
    command = [kubectl, "kustomize", str(MANIFESTS / "overlays" / request.param)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return request.param, list(yaml.safe_load_all(done.stdout))


def of(resources: list[Resource], kind: str, name: str | None = None) -> list[Resource]:
    return [
        resource for resource in resources if resource["kind"] == kind and name in (None, resource["metadata"]["name"])
    ]


def pods(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    for resource in resources:
        if resource["kind"] in WORKLOADS:
            yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


def containers(pod: Resource) -> list[Resource]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_every_file_is_led_to_by_an_overlay() -> None:
    reached = {path for overlay in OVERLAYS for path in files_of(MANIFESTS / "overlays" / overlay)}
    assert reached == {path.resolve() for path in MANIFESTS.rglob("*") if path.is_file()}
    assert set(OVERLAYS) == set(NAMESPACE)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_that_is_written_is_one_of_kubernetes(version: str) -> None:
    """Also where there is no kubectl."""
    paths = {path for overlay in OVERLAYS for path in files_of(MANIFESTS / "overlays" / overlay)}
    found = [document for path in sorted(paths) for document in documents(path)]
    for document in found:
        if "kustomize" in document["apiVersion"]:
            continue
        if document["kind"] == "NetworkPolicy" and "podSelector" not in document["spec"]:
            continue  # a patch
        kubernetes_validate.validate(document, version, strict=True)
    assert len(found) > 25


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_that_is_built_is_one_of_kubernetes(built, version: str) -> None:
    for resource in built[1]:
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    (account, *_) = documents(MANIFESTS / "base" / "service-accounts.yaml")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(account | {"automountServiceAccountTokens": True}, "1.33", strict=True)


def test_everything_is_in_one_namespace_and_known_as_ours(built) -> None:
    overlay, resources = built
    for resource in resources:
        if resource["kind"] == "Namespace":
            assert resource["metadata"]["name"] == NAMESPACE[overlay]
            assert resource["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
        else:
            assert resource["metadata"]["namespace"] == NAMESPACE[overlay]
    for binding in of(resources, "RoleBinding"):
        assert [subject["namespace"] for subject in binding["subjects"]] == [NAMESPACE[overlay]]
    assert not {"ClusterRole", "ClusterRoleBinding"} & {resource["kind"] for resource in resources}


def test_every_pod_keeps_to_the_restricted_standard_and_more(built) -> None:
    found = dict(pods(built[1]))
    assert {"rankone-mlflow", "rankone-postgres"} <= set(found)
    for name, pod in found.items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume], name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name


def test_no_image_is_one_that_moves_by_itself(built) -> None:
    for name, pod in pods(built[1]):
        for container in containers(pod):
            image = container["image"]
            repository, _, tag = image.rpartition("/")[2].partition(":")
            assert "." in image.partition("/")[0], f"{name}: {image} names no registry"
            assert "@sha256:" in image or (tag and tag != "latest"), f"{name}: {image} moves"
            assert "@sha256:" in image or repository not in IMAGES, f"{name}: our own {image} is taken by digest"


def secrets_in(node: Any) -> Iterator[str]:
    """Names of the Secrets that a resource refers to."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("secretKeyRef", "secretRef") and isinstance(value, dict):
                yield value.get("name") or value["secretName"]
            elif key == "providers" and isinstance(value, str):
                yield from secrets_in(yaml.safe_load(value))
            else:
                yield from secrets_in(value)
    elif isinstance(node, list):
        for item in node:
            yield from secrets_in(item)


def test_secrets_are_referred_to_and_never_written(built) -> None:
    _, resources = built
    assert not of(resources, "Secret")
    assert set(secrets_in(resources)) == {"rankone-s3", "rankone-postgres"}
    assert set(SECRETS) <= {"rankone-s3", "rankone-mlflow"}
    for name, pod in pods(resources):
        for container in containers(pod):
            for variable in container.get("env", []):
                secret = any(word in variable["name"] for word in ("PASSWORD", "KEY", "TOKEN", "ROOT_USER"))
                assert ("valueFrom" in variable) == secret, f"{name}: {variable['name']}"


def test_steps_find_in_the_config_map_what_they_are_compiled_to_read(built) -> None:
    overlay, resources = built
    (settings,) = of(resources, "ConfigMap", CONFIG_MAP)
    assert set(ADDRESS) <= set(settings["data"])
    assert set(settings["data"]) <= {*ADDRESS, *PLACES, "MLFLOW_ARTIFACTS_DESTINATION"}
    (service,) = of(resources, "Service", "rankone-mlflow")
    port = service["spec"]["ports"][0]["port"]
    assert settings["data"]["MLFLOW_TRACKING_URI"] == f"http://{service['metadata']['name']}:{port}"
    (launcher,) = of(resources, "ConfigMap", "kfp-launcher")
    store = yaml.safe_load(launcher["data"]["providers"])["s3"]["default"]
    assert launcher["data"]["defaultPipelineRoot"].startswith("s3://")
    keys = store["credentials"]["secretRef"]
    assert {keys["accessKeyKey"], keys["secretKeyKey"]} <= set(SECRETS[keys["secretName"]])
    if overlay == "trial":
        assert settings["data"]["AWS_ENDPOINT_URL"] == f"http://{store['endpoint']}"
        assert store["disableSSL"] is True
        assert of(resources, "Service", store["endpoint"].partition(":")[0])
    else:
        assert "AWS_ENDPOINT_URL" not in settings["data"]
        assert store["disableSSL"] is False


def test_rights_are_the_least(built) -> None:
    for role in of(built[1], "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"impersonate", "escalate", "bind", "deletecollection"} & set(rule["verbs"])
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["get"]
                assert set(rule["resourceNames"]) == {"rankone-s3", "mlpipeline-minio-artifact"}
            if "pods" in rule["resources"]:
                assert set(rule["verbs"]) <= {"get", "list"}
    assert {role["metadata"]["name"] for role in of(built[1], "Role")} == {"rankone", "rankone-submitter"}


def test_services_and_policies_choose_pods_that_exist(built) -> None:
    _, resources = built
    labels = [
        resource["spec"]["template"]["metadata"]["labels"] for resource in resources if resource["kind"] in WORKLOADS
    ]
    labels.append(dict([STEP_LABEL]))
    chosen = [resource["spec"]["selector"] for resource in of(resources, "Service")]
    chosen += [policy["spec"]["podSelector"]["matchLabels"] for policy in of(resources, "NetworkPolicy")]
    for selector in chosen:
        assert any(selector.items() <= entry.items() for entry in labels), selector
    for workload in (resource for resource in resources if resource["kind"] in ("Deployment", "StatefulSet")):
        assert (
            workload["spec"]["selector"]["matchLabels"].items()
            <= workload["spec"]["template"]["metadata"]["labels"].items()
        )


def reaches(resources: list[Resource], source: dict[str, str], target: str, port: int) -> bool:
    """Whether pods with these labels may connect to a workload's pods, as its policy says."""
    (policy,) = of(resources, "NetworkPolicy", target)
    assert "Ingress" in policy["spec"]["policyTypes"]
    return any(
        "podSelector" in peer
        and "namespaceSelector" not in peer
        and peer["podSelector"].get("matchLabels", {}).items() <= source.items()
        and {"port": port} in rule["ports"]
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
    )


def test_who_may_talk_to_whom(built) -> None:
    overlay, resources = built
    step, stranger = dict([STEP_LABEL]), {"app": "stranger"}
    mlflow = {"app.kubernetes.io/name": "rankone-mlflow"}
    assert reaches(resources, step, "rankone-mlflow", 5000)
    assert not reaches(resources, stranger, "rankone-mlflow", 5000)
    assert reaches(resources, mlflow, "rankone-postgres", 5432)
    assert not reaches(resources, step, "rankone-postgres", 5432)
    (policy,) = of(resources, "NetworkPolicy", "rankone-mlflow")
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert ports == {5432, 53, 9000 if overlay == "trial" else 443}
    assert of(resources, "NetworkPolicy", "rankone-steps")[0]["spec"].get("ingress", []) == []


MLFLOW = """
import json, sys
from mlflow.cli import server
from mlflow.server.security_utils import is_allowed_host_header
arguments, hosts = json.loads(sys.argv[1])
values = server.make_context("server", arguments).params
allowed = values["allowed_hosts"].split(",")
values = {name: values[name] for name in ("workers", "port", "backend_store_uri")}
print(json.dumps([values, {host: is_allowed_host_header(allowed, host) for host in hosts}]))
"""


def test_mlflow_takes_the_command_line_and_serves_its_own_names_alone() -> None:
    """MLflow's own parser and its own check of hosts are asked, in a process of their own."""
    deployment, _ = documents(MANIFESTS / "base" / "mlflow.yaml")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert server["command"] == ["python", "-m", "mlflow", "server"]
    own = ["rankone-mlflow", "rankone-mlflow.kubeflow.svc", "rankone-mlflow.rankone.svc.cluster.local", "localhost"]
    own += [f"{name}:5000" for name in own]
    others = ["evil.example", "rankone-mlflow.evil.example", "10.0.0.7:5000"]
    asked = json.dumps([server["args"], own + others])
    done = subprocess.run([sys.executable, "-c", MLFLOW, asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values, allowed = json.loads(done.stdout.splitlines()[-1])
    uri = "postgresql+psycopg://mlflow@rankone-postgres:5432/mlflow"
    assert values == {"workers": "2", "port": 5000, "backend_store_uri": uri}
    assert {host for host, taken in allowed.items() if taken} == set(own)
    environment = {variable["name"]: variable.get("value") for variable in server["env"]}
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
