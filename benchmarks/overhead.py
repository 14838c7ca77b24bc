"""What the DAG costs beside the work of its steps: wall time, own work and overhead of every step of the last run.

python benchmarks/overhead.py
"""

import json

from benchmarks.cifar100 import latest_result


def main() -> None:
    path = latest_result()
    print(f"{path}\n{'step':<18}{'wall s':>9}{'own work s':>12}{'overhead s':>12}")
    total = 0.0
    for step, result in json.loads(path.read_text())["steps"].items():
        work = next(iter(result["artifacts"].values()))["metadata"]["step_seconds"] if not result["cached"] else 0.0
        total += result["seconds"] - work
        print(f"{step:<18}{result['seconds']:>9.2f}{work:>12.2f}{result['seconds'] - work:>12.2f}")
    print(f"{'all':<39}{total:>12.2f}")


if __name__ == "__main__":
    main()
