"""A real S3 server for tests: started once, and stopped in the middle of things by those who test that.

RANKONE_S3_SERVER names a script: `SCRIPT start PORT` starts a store on loopback and prints its endpoint, `SCRIPT stop`
ends it; key `test`, secret `testsecret`; its processes' numbers lie in $S3_SERVER_HOME/run/*.pid, that of the gateway
in client.rgw.pid.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

KEY, SECRET = "test", "testsecret"
SECONDS_TO_START = 180


@dataclass
class ObjectStoreServer:
    """The running store.

    Attributes:
        endpoint: its address on this machine.
        home: where the script keeps its files.
        port: on loopback.
    """

    endpoint: str
    home: Path
    port: int

    def environment(self) -> dict[str, str]:
        """What leads boto3 there, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A client without our own retries, for the test itself."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def go_away(self) -> "Gateway":
        """Kill the gateway as a failing node would; what it was about to answer is lost."""
        number = int((self.home / "run" / "client.rgw.pid").read_text())
        process = Path("/proc") / str(number)
        command = (process / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
        environment = dict(
            entry.split("=", 1) for entry in (process / "environ").read_bytes().decode().rstrip("\0").split("\0")
        )
        program = os.readlink(process / "exe")
        os.kill(number, signal.SIGKILL)
        wait_until(lambda: not answers(self.port), "the gateway still answers")
        return Gateway(self, [program, *command[1:]], environment)


@dataclass
class Gateway:
    """A gateway that has gone, and how it was started."""

    server: ObjectStoreServer
    command: list[str]
    environment: dict[str, str]

    def come_back(self) -> None:
        """Start it again, over the objects that were there."""
        subprocess.run(self.command, env=self.environment, check=True, capture_output=True, timeout=60)
        wait_until(lambda: answers(self.server.port), "the gateway does not come back")


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def wait_until(holds: Any, otherwise: str, seconds: float = 60) -> None:
    """Look again and again until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


@pytest.fixture(scope="session")
def object_store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """The store, for all tests of a session."""
    script = os.environ.get("RANKONE_S3_SERVER")
    if not script:
        pytest.skip("RANKONE_S3_SERVER names no S3 server; .ci/run sets it")
    kept = os.environ.get("S3_SERVER_HOME")
    home = Path(kept) if kept else tmp_path_factory.mktemp("s3")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"S3_SERVER_HOME": str(home)}
    log = (home / "start.log").open("w+")
    try:
        # to a file: the servers inherit it, and a pipe would stay open
        subprocess.run([script, "start", str(port)], env=environment, check=True, stdout=log, timeout=SECONDS_TO_START)
        log.seek(0)
        yield ObjectStoreServer(log.read().split()[-1], home, port)
    finally:
        log.close()
        subprocess.run([script, "stop"], env=environment, check=True, timeout=60)
