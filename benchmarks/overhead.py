"""What the DAG costs beside the work of its steps: wall time, own work, its CPU and overhead of each in the last run.

    python -m benchmarks.overhead

The last run is that of .rankone in the current folder, or of RANKONE_HOME. A step taken from the cache has no work; one
that left no artifact (announce, or one that failed) does not say what its work took, and is not counted.
"""

import argparse
import json

from benchmarks.cifar100 import latest_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        path = latest_result()
    except ValueError as error:
        parser.error(str(error))
    print(f"{path}\n{'step':<18}{'wall s':>9}{'own work s':>12}{'its CPU s':>12}{'overhead s':>12}")
    total = 0.0
    for step, result in json.loads(path.read_text())["steps"].items():
        artifacts = list(result["artifacts"].values())
        if not artifacts:
            print(f"{step:<18}{result['seconds']:>9.2f}{'-':>12}{'-':>12}{'-':>12}")
            continue
        told = {} if result["cached"] else artifacts[0]["metadata"]
        work, cpu = told.get("step_seconds", 0.0), told.get("step_cpu_seconds")
        shown = "-" if cpu is None else f"{cpu:.2f}"
        total += result["seconds"] - work
        print(f"{step:<18}{result['seconds']:>9.2f}{work:>12.2f}{shown:>12}{result['seconds'] - work:>12.2f}")
    print(f"{'all':<51}{total:>12.2f}")


if __name__ == "__main__":
    main()
