import json
import math

import numpy as np

from retrieval.evidence import Evidence
from retrieval.gate import Thresholds, decide
from retrieval.gate_report import facts_of, page_of

CLASSES = np.repeat(["a|b", "c", "d"], 40)


def model(wrong: list[int], version: str = "") -> Evidence:
    correct = np.ones(120, bool)
    correct[wrong] = False
    return Evidence(float(correct.mean()), "e" * 64, 120, version, "", 128, None, correct, CLASSES)


def test_the_page_tells_what_fell_and_what_failed() -> None:
    verdict = decide(model([*range(20)]), model([*range(40, 100)], "4"), Thresholds(0.5, maximum_dimension=64))
    assert verdict.rule == "regression"
    page = page_of(verdict, "Rejected: m version 5")
    first, *_ = page.splitlines()
    assert first == f"**Rejected: m version 5**: {verdict.reason}"
    assert "| R@1 | 83.33% | 50.00% |" in page
    assert "| images/s embedded | not measured | not measured |" in page
    assert (
        "| class_drop | -50.00 points in class 'a\\|b' | -20.00 points or more in each | noted; does not decide |"
        in page
    )
    assert "| dimension | 128 numbers | 64 numbers or fewer | **fails** |" in page
    assert "60 are fixed and 20 broken" in page
    assert "1 of 3 classes fall, 1 by more than 20.00 points." in page
    assert "| a\\|b | 40 | 100.0% | 50.0% |" in page
    assert page.index("| c | 40 | 0.0% | 100.0% |") < page.index("| d | 40 | 50.0% | 100.0% |")


def test_a_first_model_has_a_page_without_a_champion() -> None:
    page = page_of(decide(model([]), None, Thresholds(0.5)), "Promoted")
    assert "champion, version" not in page
    assert "| floor | 100.00% | 50.00% | passes |" in page


def test_the_numbers_are_plain_json_whatever_was_measured() -> None:
    def strict(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    for candidate in (model([1]), Evidence(math.nan, "", 0, images_per_second=math.inf)):
        verdict = decide(candidate, model([2, 3], "4"), Thresholds(0.5, minimum_images_per_second=1.0))
        written = json.loads(json.dumps(facts_of(verdict), allow_nan=False), parse_constant=strict)
        assert (written["outcome"], written["rule"]) == (verdict.outcome, verdict.rule)
        assert len(written["checks"]) == len(verdict.checks)
    assert written["candidate"]["recall_at_1"] is None
    assert "correct" not in written["candidate"]
