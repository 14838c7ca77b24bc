"""How often the gate errs: equal models that it promotes, and better ones that it misses, on answers drawn at random.

    python -m benchmarks.gate [--trials 1000] [--seed 0]

Two models answer the same queries. Whether one is right is a sum of normal parts against a bar: how hard the query's
class is and how hard the query is (both the same for the two models), what this model makes of the class, and of the
query. The parts are set so that about a fifth of the queries are answered rightly by one of the two alone, and that
the standard error by class is about 1.2 times that by query, as was seen on CIFAR-100. "Equal" means equal on average
over classes; on the classes at hand one of the two is nearly always ahead. Beside the gate stand what is done elsewhere
(the larger number wins) and McNemar's test at 5 %, which takes queries as independent.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from retrieval.evidence import Evidence
from retrieval.gate import Outcome, Thresholds, decide

CLASS, QUERY, MODEL_CLASS, MODEL_QUERY = 0.5, 1.0, 0.06, 0.54  # standard deviations of the parts
SPREAD = (CLASS**2 + QUERY**2 + MODEL_CLASS**2 + MODEL_QUERY**2) ** 0.5
RECALL = 0.55  # R@1 of the champion


@dataclass(frozen=True)
class Case:
    """What is drawn: so many classes of so many queries, and the candidate's true gain."""

    classes: int
    queries_per_class: int
    gain: float


CASES = (
    Case(100, 100, 0.0),
    Case(100, 100, 0.01),
    Case(100, 100, 0.02),
    Case(100, 20, 0.0),
    Case(100, 20, 0.02),
    Case(10, 1_000, 0.0),
    Case(10, 50, 0.0),
    Case(10, 50, 0.05),
    Case(2, 500, 0.0),
    Case(2, 500, 0.05),
    Case(2, 500, 0.1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator, started = np.random.default_rng(options.seed), time.process_time()
    print(f"{'classes x queries':<19}{'true gain':>10}{'promoted by: gate':>19}{'maximum_regression 0.01':>25}", end="")
    print(f"{'larger':>9}{'McNemar':>9}{'right alone':>13}{'error':>7}{'over by query':>15}")
    for case in CASES:
        print(line(case, options.trials, generator), flush=True)
    print(f"{options.trials} trials a line, seed {options.seed}, {time.process_time() - started:.0f} CPU seconds")


def line(case: Case, trials: int, generator: np.random.Generator) -> str:
    """One line of the table; the standard error in points, and over what independent queries would have."""
    classes = np.repeat([f"class {number:04d}" for number in range(case.classes)], case.queries_per_class)
    thresholds = Thresholds(0.0)
    promoted, gains, alone = np.zeros(4), [], []
    for _ in range(trials):
        candidate, champion = draw(case, generator)
        new, old = evidence(candidate, classes), evidence(champion, classes)
        verdict = decide(new, old, thresholds)
        found = verdict.comparison
        assert found is not None
        promoted += [
            verdict.outcome == Outcome.PROMOTED,
            found.gain > 0 and found.low > -0.01,
            found.gain > 0,
            found.gain > 0 and found.p_value < 0.05,
        ]
        gains.append(found.gain)
        alone.append((found.fixed + found.broken) / found.queries)
    error = float(np.std(gains))
    by_query = (np.mean(alone) / len(classes)) ** 0.5
    gate, let, larger, mcnemar = promoted / trials
    return (
        f"{f'{case.classes} x {case.queries_per_class:,}':<19}{100 * case.gain:>10.1f}{gate:>19.1%}{let:>25.1%}"
        f"{larger:>9.1%}{mcnemar:>9.1%}{np.mean(alone):>13.1%}{100 * error:>7.2f}{error / by_query:>15.2f}"
    )


def draw(case: Case, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Answers of the candidate and of the champion: (q,) bool each, class after class."""
    shape = (case.classes, case.queries_per_class)
    ease = CLASS * generator.normal(size=(case.classes, 1)) + QUERY * generator.normal(size=shape)

    def answers(recall: float) -> np.ndarray:
        own = MODEL_CLASS * generator.normal(size=(case.classes, 1)) + MODEL_QUERY * generator.normal(size=shape)
        right: np.ndarray = (ease + own + SPREAD * ndtri(recall) > 0).ravel()
        return right

    return answers(RECALL + case.gain), answers(RECALL)


def evidence(correct: np.ndarray, classes: np.ndarray) -> Evidence:
    return Evidence(float(correct.mean()), "drawn", len(correct), correct=correct, classes=classes)


if __name__ == "__main__":
    main()
