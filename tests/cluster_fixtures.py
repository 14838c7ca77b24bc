"""A stub of a cluster and what leads to it, for the test modules that name this file in `pytest_plugins`."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from operations import cluster_commands, command_line, compile
from tests.kfp_server import IMAGES, Stub, serving

VARIABLES = ("HOST", "TOKEN", "NAMESPACE", "PAGE", "CA")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, packages: Path) -> Iterator[Stub]:
    """A server, the environment that leads to it, and every profile compiled once for all tests."""
    original = compile.compile_pipeline

    def compile_once(output: Path, *given: Any, images: Any = None, profile: Any = None, **named: Any) -> Path:
        if given or named:  # for `rankone compile`
            return original(output, *given, images=images, profile=profile, **named)
        kept = packages / f"{profile.name}.yaml"
        if not kept.exists():
            original(kept, images=images, profile=profile)
        return Path(shutil.copyfile(kept, output))

    monkeypatch.setattr(compile, "compile_pipeline", compile_once)
    monkeypatch.setattr(cluster_commands, "locked_images", lambda: IMAGES)
    for name in VARIABLES:
        monkeypatch.delenv(f"RANKONE_KFP_{name}", raising=False)
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", "/nowhere")
    monkeypatch.delenv("RANKONE_SERVICE_ACCOUNT", raising=False)
    stub = Stub()
    with serving(stub) as address:
        monkeypatch.setenv("RANKONE_KFP_HOST", address)
        yield stub


@pytest.fixture
def rankone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the command line as a person does; exit status and what was printed."""

    def call(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["rankone", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        printed = capsys.readouterr()
        return SimpleNamespace(status=ended.value.code or 0, out=printed.out, err=printed.err)

    return call


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """An S3 server of this process, for all tests; it does not look at signatures."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
