"""The ledger on a server as a cluster has it: MLflow in our image, on PostgreSQL."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations.image_lock import lock_path, read_lock
from retrieval import tracking
from tests import ledger_stress
from tests.engine.servers import emptied_bucket, mlflow_server, postgresql

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    image = read_lock(lock_path())["rankone-registry"].reference
    store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with (
        emptied_bucket() as bucket,
        postgresql(secrets.token_hex(12)) as database,
        mlflow_server(image, database, bucket, store) as address,
    ):
        yield address


def test_promoters_that_are_killed_and_paused_lose_no_update(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "home"))
    ledger_stress.make_model("stress")
    command = [sys.executable, "-m", "tests.ledger_stress", "stress", str(tmp_path), "8", "240", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1]) | ledger_stress.check("stress", tmp_path)
    print(counts)  # for who looks with -s
    assert counts["killed"] >= 5
    assert counts["conflicts"] >= 5
    assert counts["entries"] >= 10
    names = [found.name for found in tracking.client().search_experiments()]
    assert names.count("rankone-ledger.stress") == 1
