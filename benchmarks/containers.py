"""Wall time of one small DAG: in processes, in containers, and in containers with a bucket and an MLflow server.

python -m benchmarks.containers [--repeat 2] [--store]

Each run begins with an empty home; the ways take turns. `--store` needs an S3 store that AWS_ENDPOINT_URL names, and
Debian's PostgreSQL; the images are those of `make images`.
"""

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from operations.image_lock import lock_path, read_lock
from retrieval.object_store import s3_client
from tests.digit_folder import write_digits
from tests.engine.servers import emptied_bucket, mlflow_server, postgresql
from tests.engine.small import SMALL

PROCESSES, CONTAINERS, STORE = "processes", "containers", "containers, bucket, MLflow server"


def timed(home: Path, runner: str, values: dict[str, str], server: str) -> tuple[float, dict[str, float]]:
    """Seconds of a run, and of each step beside its own work."""
    command = [sys.executable, "-m", "operations.command_line", "run", "--runner", runner]
    command += [f"--param={name}={value}" for name, value in (SMALL | values).items()]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"RANKONE_HOME": str(home)} | ({"MLFLOW_TRACKING_URI": server} if server else {})
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    (result,) = (home / "runs").glob("*/result.json")
    steps = json.loads(result.read_text())["steps"]
    made = {name: list(step["artifacts"].values()) for name, step in steps.items()}  # announce makes nothing
    work = {name: artifacts[0]["metadata"]["step_seconds"] for name, artifacts in made.items() if artifacts}
    return seconds, {name: steps[name]["seconds"] - own for name, own in work.items()}


@contextlib.contextmanager
def store(images: Path) -> Iterator[tuple[str, str]]:
    """A bucket with the pictures and an MLflow server over it: both addresses."""
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    image = read_lock(lock_path())["rankone-registry"].reference
    with (
        emptied_bucket() as bucket,
        postgresql(secrets.token_hex(12)) as database,
        mlflow_server(image, database, bucket, aws) as server,
    ):
        for picture in images.rglob("*.png"):
            s3_client().upload_file(str(picture), bucket, f"pictures/{picture.relative_to(images)}")
        yield f"s3://{bucket}/pictures", server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2, help="runs of each way")
    parser.add_argument("--store", action="store_true", help="with a bucket and an MLflow server too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        images = Path(temporary) / "digits"
        write_digits(images, 30)
        folder = {"source": "folder", "location": str(images)}
        ways = {PROCESSES: ("processes", folder, ""), CONTAINERS: ("docker", folder, "")}
        if given.store:
            location, server = stack.enter_context(store(images))
            ways[STORE] = ("docker", {"source": "s3", "location": location}, server)
        print(f"{'':36}{'wall s':>8}  beside the steps' own work, s")
        for turn in range(given.repeat):
            for way, (runner, values, server) in ways.items():
                seconds, beside = timed(Path(temporary) / f"{turn} {way}", runner, values, server)
                parts = ", ".join(f"{name} {extra:.1f}" for name, extra in beside.items())
                print(f"{way:36}{seconds:8.1f}  {sum(beside.values()):.1f}: {parts}", flush=True)


if __name__ == "__main__":
    main()
