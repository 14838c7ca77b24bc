"""What the commands refuse before they start anything."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from operations.command_line import main


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Exit status of `rankone ui` and what it says, where no server may be started."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a server was started")

    def call(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(sys, "argv", ["rankone", "ui", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("port", "why"),
    [
        ("99999", "less than or equal to 65535"),
        ("65536", "less than or equal to 65535"),
        ("0", "greater than or equal to 1"),
        ("-1", "greater than or equal to 1"),
    ],
)
def test_a_port_that_there_cannot_be_is_refused(said, port: str, why: str) -> None:
    status, error = said(f"--port={port}")
    assert status == 2
    assert f"Invalid value for '--port': Input should be {why}" in " ".join(error.replace("│", " ").split())


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_in_use_is_refused_with_how_to_choose_another(said, host: str) -> None:
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        status, error = said(f"--port={port}")
    assert status == 2
    assert error.startswith(f"rankone: port {port} is in use: another program listens there; ")
    assert f"--port {port + 1}" in error or f"--port {port - 1}" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--namespace", "kubeflow"], "--namespace is 'kubeflow', and only resources have one; add --format crd."),
        (["--format", "crd", "--namespace", "Kube flow"], "--namespace is 'Kube flow'; it is of small letters"),
        (["--format", "crd", "--namespace", ""], "--namespace is ''; it is of small letters"),
        (["--format", "crd", "--namespace", "a" * 64], "63 at most"),
    ],
)
def test_a_namespace_that_would_be_dropped_or_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments, message: str
) -> None:
    package = tmp_path / "pipeline.yaml"
    monkeypatch.setattr(sys, "argv", ["rankone", "compile", "--unpinned", "--output", str(package), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not package.exists()
