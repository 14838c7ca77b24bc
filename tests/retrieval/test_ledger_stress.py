import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ledger_stress

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("mlflow_home")
def test_promoters_that_are_killed_and_paused_lose_no_update(tmp_path: Path) -> None:
    ledger_stress.make_model("stress")
    command = [sys.executable, "-m", "tests.ledger_stress", "stress", str(tmp_path), "4", "48", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1]) | ledger_stress.check("stress", tmp_path)
    print(counts)  # for who looks with -s
    assert counts["killed"] >= 2
    assert counts["entries"] >= 5
    assert counts["conflicts"] >= 1
