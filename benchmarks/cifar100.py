"""R@1 by stage on CIFAR-100: the pipeline from its compiled YAML, with a budget.

    python -m benchmarks.cifar100 --location FOLDER [--split own|disjoint] [--at-least 0.3] [-p name=value ...]

FOLDER holds the official `cifar-100-python`. Ends with status 1 when R@1 among the test images is below --at-least.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from retrieval.home import home

STAGES = ("pretrain", "co_cluster", "finetune_metric", "finetune_softmax")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location", required=True)
    parser.add_argument("--split", default="own")
    parser.add_argument("--at-least", type=float, default=0.0)
    parser.add_argument("-p", action="append", default=[])
    arguments = parser.parse_args()

    values = [f"location={arguments.location}", f"split={arguments.split}", *arguments.p]
    command = [sys.executable, "-m", "operations.command_line", "run", "--recipe", "cifar100"]
    status = subprocess.run([*command, *(f"--param={value}" for value in values)]).returncode
    if status != 0:
        return status

    steps = json.loads(latest_result().read_text())["steps"]
    evaluation = steps["evaluate"]["artifacts"]["evaluation"]["metadata"]
    print(f"\nCIFAR-100, split {arguments.split}, {' '.join(arguments.p)}")
    for stage in STAGES:
        print(f"  R@1 after {stage:<18} {evaluation[f'{stage}_recall_at_1']:.4f}   {steps[stage]['seconds']:8.1f} s")
    found = evaluation["recall_at_1"]
    print(f"  R@1 of the model       {found:.4f}   ({evaluation['queries']:.0f} queries)")
    if found < arguments.at_least:
        print(f"R@1 is {found:.4f}; it must be at least {arguments.at_least}.")
        return 1
    return 0


def latest_result() -> Path:
    """What the last run of this home recorded.

    Raises:
        ValueError: no run was ever recorded there.
    """
    results = list((home() / "runs").glob("*/result.json"))
    if not results:
        raise ValueError(f"{home() / 'runs'} holds no run; start one first, e.g. `rankone run --recipe digits`.")
    return max(results, key=lambda path: path.stat().st_mtime_ns)


if __name__ == "__main__":
    sys.exit(main())
