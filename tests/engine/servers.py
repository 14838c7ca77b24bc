"""Real servers for a test, on loopback, stopped by the test: PostgreSQL of Debian, and MLflow in our image."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from operations.container_task import engine
from retrieval.listing import s3_client

STORE = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SECONDS_TO_START = 120


@contextlib.contextmanager
def emptied_bucket() -> Iterator[str]:
    """A new bucket in the store that the environment names; it goes with all that came into it."""
    missing = [name for name in STORE if not os.environ.get(name)]
    assert not missing, f"set {', '.join(missing)}: this needs an S3 store"
    client, name = s3_client(), f"rankone-test-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=name)
    try:
        yield name
    finally:
        for key in keys(name):
            client.delete_object(Bucket=name, Key=key)
        client.delete_bucket(Bucket=name)


def keys(bucket: str) -> list[str]:
    """Keys of all objects of a bucket."""
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@contextlib.contextmanager
def postgresql(password: str) -> Iterator[str]:
    """A fresh database server; yields its address for SQLAlchemy. Root starts it as the user `postgres`."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    assert binaries, "there is no PostgreSQL here; install Debian's package: apt-get install postgresql"
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="rankone-postgresql-"))
    try:
        secret = folder / "password"
        secret.write_text(password)
        if user:
            for path in (folder, secret):
                shutil.chown(path, user)
        data, port = folder / "data", free_port()
        init = [
            str(binaries / "initdb"),
            f"--pgdata={data}",
            "--username=mlflow",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
        ]
        subprocess.run(init, check=True, capture_output=True, user=user, cwd=folder)
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [str(binaries / "postgres"), "-D", str(data), *options], user=user, cwd=folder, stdout=log, stderr=log
            )
        ready = [str(binaries / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={port}"]
        try:
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, lambda: server.poll() is None)
            yield f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def mlflow_server(image: str, database: str, bucket: str, environment: Mapping[str, str]) -> Iterator[str]:
    """An MLflow server in a container, as a cluster runs it: records in the database, files in the bucket."""
    port = free_port()
    settings = {
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{bucket}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with engine() as client:
        container = client.containers.run(
            image,
            ["mlflow", "server"],
            detach=True,
            environment={**environment, **settings},
            network_mode="host",
            read_only=True,
            tmpfs={"/tmp": ""},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )

        def alive() -> bool:
            container.reload()
            assert container.status in ("created", "running"), container.logs().decode()
            return True

        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), alive)
            yield f"http://127.0.0.1:{port}"
        finally:
            container.remove(force=True, v=True)


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        return answer.status == 200
    return False


def wait_until(ready: Callable[[], bool], alive: Callable[[], bool]) -> None:
    """Ask until it is ready; a server that has ended is not waited for."""
    until = time.monotonic() + SECONDS_TO_START
    while not ready():
        assert alive(), "the server has ended"
        assert time.monotonic() < until, f"the server did not answer within {SECONDS_TO_START} s"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
