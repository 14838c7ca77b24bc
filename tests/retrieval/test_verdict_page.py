import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from asked import answers_to

from retrieval.answers import Answers, evidence_from
from retrieval.gate import Outcome, Thresholds, Verdict, decide
from retrieval.pictures import encoded, uri_of
from retrieval.verdict_page import (
    Side,
    commands_for,
    cost_rows,
    lineage_rows,
    render_message,
    render_verdict,
    sections_of,
    side_by_side,
    web_address,
)

EVIL = "<b onclick=alert(1)>&\"'|cat"
NAMES = [f"{number:03}" for number in range(120)]
PICTURES = {name: encoded(np.full((8, 8, 3), int(name), np.uint8)) for name in NAMES}
TAGS = {
    "rankone.dataset_digest": "d" * 64,
    "rankone.pipeline_address": "javascript:alert(1)",
    "rankone.images": json.dumps({"pretrain": "c0de", EVIL: 3}),
    "rankone.image_digests": json.dumps({"pretrain": "there/training@sha256:1"}),
    "rankone.step_seconds": json.dumps({"pretrain": 61.26, "evaluate": 2}),
    "rankone.devices": json.dumps({"pretrain": "NVIDIA X, bfloat16"}),
    "rankone.training_images": "12345",
    "rankone.recall_at_1_low": "0.5",
    "rankone.recall_at_1_high": "0.75",
}


def answers(wrong: set[int], digest: str) -> Answers:
    classes = [EVIL if number % 3 == 0 else f"class {number % 3}" for number in range(120)]
    rows = [
        (name, classes[n], NAMES[n - 1], "nothing" if n in wrong else classes[n], 0.25 + n / 200)
        for n, name in enumerate(NAMES)
    ]
    return answers_to(rows, model_digest=digest)


NEW, OLD = answers({*range(3)}, "b" * 64), answers({*range(1, 60)}, "a" * 64)


def judged(new: Answers = NEW, old: Answers | None = OLD, **thresholds: Any) -> Verdict:
    champion = replace(evidence_from(old), version="4") if old else None
    return decide(evidence_from(new), champion, Thresholds(0.5, **thresholds))


def page(**changes: Any) -> str:
    given: dict[str, Any] = {
        "verdict": judged(),
        "headline": "Promoted: m version 5 is now champion",
        "candidate": Side("candidate", "m version 5", "https://mlflow.example/#/models/m/versions/5", TAGS, NEW),
        "champion": Side("champion", f"m version 4 {EVIL}", "javascript:alert(2)", {}, OLD),
        "pictures": PICTURES,
        "commands": commands_for("m", 5, judged(), 4, 4),
    }
    return render_verdict(**(given | changes))


class Reader(HTMLParser):
    """What a page holds: the text of its body, every tag, and every attribute that could load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self._body = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._body = self._body or tag == "body"
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "srcset", "action", "data", "poster"):
                self.loads.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        if self._body and data.strip():
            self.words.append(" ".join(data.split()))


def test_the_first_line_is_the_decision_and_the_second_says_why() -> None:
    words = Reader(page()).words
    assert words[0] == "Promoted: m version 5 is now champion"
    assert words[1] == judged().reason
    assert words[1].startswith("R@1 97.50% is above the 50.83% of the champion, version 4")


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = page()
    found = Reader(text)
    assert found.loads
    assert all(address.startswith("data:image/png;base64,") for address in found.loads)
    assert found.links == ["https://mlflow.example/#/models/m/versions/5"], "what is no address of the web is no link"
    its_run = TAGS | {"rankone.pipeline_address": "https://kfp.example/#/runs/details/1?a=1&b=2"}
    assert Reader(page(candidate=Side("candidate", "m", "", its_run, NEW))).links == [
        "https://kfp.example/#/runs/details/1?a=1&b=2"
    ]
    assert not found.handlers
    assert not found.tags & {"script", "iframe", "object", "embed", "form", "link", "base", "svg"}
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'; img-src data:" in text


def test_names_of_strangers_are_escaped() -> None:
    text = page()
    assert "<b onclick" not in text
    assert "&lt;b onclick=alert(1)&gt;&amp;&#34;&#39;|cat" in text
    assert "<b onclick" not in render_message(EVIL, EVIL)
    assert Reader(render_message(EVIL, "Why.")).words == [EVIL, "Why."]


def test_the_galleries_show_what_both_models_find() -> None:
    text = page(shown=2)
    words = Reader(text).words
    assert "57 fixed" in words
    assert "1 broken" in words
    assert "Wrong before, right now. 2 are shown." in words
    assert uri_of(PICTURES["059"]) in text, "of the last class, the surest mistake of the champion"
    assert text.count('<figure class="picture') == 3 * (2 + 1)
    assert text.count('<figure class="picture wrong') == 3
    assert text.count('<figure class="picture right') == 3
    assert f"{0.25 + 59 / 200:.3f}" in words


def test_pictures_that_are_gone_are_said_to_be() -> None:
    found = Reader(page(pictures={}))
    assert found.loads == []
    assert found.words.count("no picture kept") == 3 * (12 + 1)
    assert any("No pictures were kept with these versions" in words for words in found.words)
    some = {name: PICTURES[name] for name in (*NAMES[:58], NAMES[119])}
    text = page(pictures=some)
    assert uri_of(PICTURES["059"]) not in text
    assert "no picture kept" not in text, "queries with all their pictures come first"
    assert page(pictures=some, shown=60).count("no picture kept") == 1 + 3, "058; and 059, for which both found 058"


def test_what_cannot_be_compared_is_shown_without_galleries() -> None:
    other = replace(OLD, images=np.array([f"x{name}" for name in NAMES], object))
    text = page(champion=Side("champion", "m version 4", answers=other))
    assert "did not answer the same queries" in text
    assert "<figure" not in text
    first = page(champion=None, verdict=judged(old=None), headline="Promoted", commands=())
    assert Reader(first).words[0] == "Promoted"
    assert 'id="galleries"' not in first
    assert 'id="commands"' not in first
    broken = decide(replace(evidence_from(NEW), recall_at_1=float("nan")), None, Thresholds(0.5))
    assert "No rule was looked at" in page(champion=None, verdict=broken, headline="Rejected")


def test_the_gate_the_classes_the_cost_and_the_lineage_are_told() -> None:
    words = Reader(page()).words
    checks = judged().checks
    at = words.index("few_queries")
    assert words[at : at + 4] == ["few_queries", "120 queries", "100 queries or more", "passes"]
    assert sum(word in ("passes", "fails", "noted") for word in words) == len(checks)
    assert "+1.39" not in words
    change = judged().comparison
    assert change is not None
    assert f"{100 * change.gain:+.2f}" in words
    assert "57 / 1" in words
    assert "95 % interval 50.00% to 75.00%" in words
    assert "61.3 s on NVIDIA X, bfloat16" in words
    assert words[words.index("these steps together") + 1] == "63.3 s"
    assert "there/training@sha256:1" in words
    assert "not told" in words


@pytest.mark.parametrize("text", ["[1, 2]", "no json", '"text"', "null"])
def test_tags_that_somebody_wrote_by_hand_break_no_page(text: str) -> None:
    tags = {"rankone.images": text, "rankone.step_seconds": text, "rankone.training_images": text}
    assert (lineage_rows(tags), cost_rows(tags)) == ({}, {})
    assert cost_rows({"rankone.step_seconds": '{"a": "long"}'}) == {}
    assert len(lineage_rows({"rankone.dataset_digest": "x" * 9_999})["data"]) == 400


def test_the_sum_comes_last_whoever_tells_it_first() -> None:
    few, more = {"a": "1", "these steps together": "1"}, {"a": "2", "b": "3", "these steps together": "5"}
    assert side_by_side([few, more]) == [("a", ["1", "2"]), ("b", [None, "3"]), ("these steps together", ["1", "5"])]


def test_the_commands_are_those_that_a_person_needs() -> None:
    def lines(outcome: Outcome, previous: int | None, champion: int | None) -> list[str]:
        return [
            command.line for command in commands_for("m", 5, replace(judged(), outcome=outcome), previous, champion)
        ]

    compare = "rankone compare 4 5 --model m"
    assert lines(Outcome.PROMOTED, 4, 4) == ['rankone rollback --to 4 --model m --reason "..."', compare]
    assert lines(Outcome.PROMOTED, None, None) == []
    assert lines(Outcome.WAITING, 3, 4) == ['rankone approve --model m --reason "..."', compare]
    assert lines(Outcome.REJECTED, 3, 4) == [
        'rankone promote 5 --model m --reason "..."',
        'rankone rollback --to 4 --model m --reason "..."',
        compare,
    ]
    assert lines(Outcome.SKIPPED, 3, 5) == ['rankone rollback --to 3 --model m --reason "..."']


def test_markdown_tells_the_same() -> None:
    candidate = Side("candidate", "m version 5", "", TAGS)
    found = sections_of(
        candidate, Side("champion", "m version 4", "https://x.example"), commands_for("m", 5, judged(), 4, 4)
    )
    assert found["Versions"] == [("candidate", "m version 5"), ("champion", "[m version 4](https://x.example)")]
    assert ("Go back to version 4", '`rankone rollback --to 4 --model m --reason "..."`') in found["Commands"]
    assert ("images trained on", "12,345") in found["Cost"]
    assert ("image of pretrain", "there/training@sha256:1") in found["Lineage"]
    assert set(sections_of(Side("candidate", "m"), None, ())) == {"Versions"}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://a/b", "http://a/b"),
        ("HTTPS://a", "HTTPS://a"),
        ("javascript:x", ""),
        ("//a", ""),
        ("http:", ""),
        ("", ""),
    ],
)
def test_only_an_address_of_the_web_is_a_link(text: str, address: str) -> None:
    assert web_address(text) == address
