"""Every command of docs/cluster.md is run: those for a cluster against stubs of it, and of those that would change one
what they would send. `make images` is run where there is an engine.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import boto3
import kubernetes_validate
import pytest
import yaml

from operations.cluster import MOUNTED_TOKEN_PATH
from operations.placement import SECRETS
from operations.profiles import load_profile, profile_names, settings_of
from tests.kfp_server import STEPS, Stub

pytest_plugins = ["tests.cluster_fixtures"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines() if line]
KUBECTL = [line for line in LINES if "kubectl" in line]


@pytest.fixture
def place(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder like the repository's, with credentials of a store that holds the page's bucket of images."""
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    (tmp_path / "s3.env").write_text("AWS_ACCESS_KEY_ID=somebody\nAWS_SECRET_ACCESS_KEY=something\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("RANKONE_IMAGE_LOCK", str(tmp_path / "images.json"))  # none of those that were built here
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="images")
    client.put_object(Bucket="images", Key="photos/cat/1.png", Body=b"a picture")
    return tmp_path


def test_every_command_of_the_page_for_rankone_does_what_it_says(
    stub: Stub, rankone: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.logs = {f"{step}-pod": f"{step} is at work" for step in STEPS}
    ran = []
    for line in LINES:
        words = shlex.split(line, comments=True)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, stub.address if name == "RANKONE_KFP_HOST" else value)
        elif words[0].endswith("/rankone"):
            quick = ["--every", "0.05"] if "--wait" in words else []
            if words[1] == "logs":
                stub.looks = dict.fromkeys(stub.looks, STEPS.index("pretrain"))  # the next look finds it at work
            done = rankone(*words[1:], *quick)
            ran.append(words[1])
            if words[1] == "doctor":
                assert done.status == 1, "there is no MLflow here"
                assert re.search("good +Kubeflow Pipelines", done.out), done.out
            else:
                assert done.status == 0, (line, done.err)
                assert done.out, line
    assert set(ran) == {"doctor", "submit", "runs", "logs", "cancel", "retry", "profiles", "compile"}
    first, second = stub.runs.values()
    assert first["runtime_config"]["parameters"]["location"] == "s3://images/photos"
    assert (first["service_account"], first["state"]) == ("rankone", "SUCCEEDED")
    assert second["runtime_config"]["parameters"]["accelerated_memory"] == "48Gi"
    kinds = [document["kind"] for document in yaml.safe_load_all((place / "build" / "resources.yaml").read_text())]
    assert kinds == ["Pipeline", "PipelineVersion"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not here")
@pytest.mark.parametrize("line", [line for line in KUBECTL if " secret " in line])
def test_the_secrets_of_the_page_have_the_keys_that_pods_read(line: str, place: Path) -> None:
    dry = f"{line} --dry-run=client -o yaml"
    done = subprocess.run(["bash", "-c", dry], capture_output=True, text=True, check=False, env=alone(place))
    assert done.returncode == 0, done.stderr
    secret = yaml.safe_load(done.stdout)
    name, keys = secret["metadata"]["name"], set(secret["data"])
    assert keys == {"password"} if name == "rankone-postgres" else keys <= set(SECRETS[name])
    assert "something" not in line


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not here")
@pytest.mark.parametrize("line", [line for line in KUBECTL if " -k " in line])
def test_the_overlay_that_the_page_applies_can_be_built(line: str, place: Path) -> None:
    words = shlex.split(line)
    assert words[:3] == ["kubectl", "apply", "-k"]
    done = subprocess.run(["kubectl", "kustomize", str(ROOT / words[3])], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pod_of_the_page_is_one_and_its_token_is_where_it_is_looked_for() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    pod = yaml.safe_load(text)
    described = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "submit"}, "spec": pod}
    kubernetes_validate.validate(described, "1.33", strict=True)
    (mount,) = pod["containers"][0]["volumeMounts"]
    (source,) = pod["volumes"][0]["projected"]["sources"]
    assert f"{mount['mountPath']}/{source['serviceAccountToken']['path']}" == MOUNTED_TOKEN_PATH
    accounts = (ROOT / "manifests" / "base" / "service-accounts.yaml").read_text()
    assert f"name: {pod['serviceAccountName']}\n" in accounts
    assert pod["containers"][0]["command"][1:2] == ["submit"]


def alone(place: Path) -> dict[str, str]:
    """An environment without a cluster."""
    return os.environ | {"KUBECONFIG": str(place / "no kubeconfig")}


def test_no_other_command_is_shown() -> None:
    known = ("make images ", "kubectl ", "openssl ", "export ", ".venv/bin/rankone ")
    assert [line for line in LINES if not line.startswith(known)] == []
    others = [line for line in KUBECTL if not re.search(" secret | apply -[kf] | port-forward ", line)]
    assert others == []


def test_every_variable_that_the_code_reads_and_every_secret_is_on_the_page() -> None:
    read = set()
    for name in ("cluster", "cluster_commands", "doctor", "image_lock"):
        read |= set(re.findall(r'"(RANKONE_[A-Z_]+)"', (ROOT / "operations" / f"{name}.py").read_text()))
    assert len(read) == 8
    assert {name for name in read if f"`{name}`" not in PAGE} == set()
    for secret, keys in SECRETS.items():
        assert f"| `{secret}` |" in PAGE
        assert {key for key in keys if f"`{key}`" not in PAGE} == set()


def test_every_setting_of_a_run_is_on_the_page() -> None:
    settings = {setting for name in profile_names() for setting in settings_of(load_profile(name))}
    assert {setting for setting in settings if f"`{setting}`" not in PAGE} == set()
