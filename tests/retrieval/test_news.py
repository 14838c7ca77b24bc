import dataclasses
import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.news import FORMATS, LONGEST_REASON, Ending, News, brief, escaped, generic, news_of, slack
from retrieval.run_records import RunRecords, StepRecord

DECIDED = {
    "rankone.outcome": "promoted",
    "rankone.rule": "better",
    "rankone.reason": "R@1 96 % is above the champion's",
    "rankone.registered_model": "digits",
    "rankone.version": "7",
    "rankone.alias": "champion",
    "rankone.recall_at_1": "0.96",
    "rankone.champion_version": "5",
    "rankone.champion_recall_at_1": "0.95",
    "rankone.gain": "0.01",
    "rankone.gain_low": "0.002",
    "rankone.gain_high": "0.018",
}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6_000)


def records(*steps: StepRecord, page: str = "https://mlflow.example/#/experiments/1/runs/2") -> RunRecords:
    return RunRecords("key", "2", "digits run", {}, page, steps)


def step(name: str, status: str = "FINISHED", **tags: str) -> StepRecord:
    return StepRecord(name, status, {f"rankone.{key}": text for key, text in tags.items()})


def promoted(status: str = "FINISHED", **changes: str) -> StepRecord:
    return StepRecord("promote", status, DECIDED | {f"rankone.{name}": text for name, text in changes.items()})


def test_a_decision_is_told_with_its_numbers_and_links() -> None:
    news = news_of("key", records(step("evaluate"), promoted()), Ending("SUCCEEDED"), "https://kfp.example/runs/key")
    assert news == News(
        run="key",
        run_name="digits run",
        outcome="promoted",
        headline="Promoted: digits version 7 is now champion",
        reason="R@1 96 % is above the champion's",
        rule="better",
        state="SUCCEEDED",
        registered_model="digits",
        model_version="7",
        alias="champion",
        recall_at_1=0.96,
        champion_version="5",
        champion_recall_at_1=0.95,
        gain=0.01,
        gain_low=0.002,
        gain_high=0.018,
        links={"pipeline": "https://kfp.example/runs/key", "mlflow": "https://mlflow.example/#/experiments/1/runs/2"},
    )


@pytest.mark.parametrize(
    ("outcome", "headline"),
    [
        ("rejected", "Rejected (better): digits version 7"),
        ("skipped", "Skipped (better): digits version 7 stays as it is"),
        ("waiting", "Waiting for approval: digits version 7"),
    ],
)
def test_each_outcome_has_its_headline(outcome: str, headline: str) -> None:
    news = news_of("key", records(promoted(outcome=outcome)), Ending("SUCCEEDED"))
    assert (news.outcome, news.headline) == (outcome, headline)


def test_a_failure_names_the_step_and_its_error() -> None:
    failed = step("pretrain", "FAILED", error="ValueError: weights are gone")
    news = news_of("key", records(step("prepare_data"), failed), Ending("FAILED", "Task failed."))
    assert (news.outcome, news.failed_step, news.headline) == ("failed", "pretrain", "Failed at pretrain")
    assert news.reason == "ValueError: weights are gone"


def test_a_step_whose_process_vanished_is_the_one_that_failed() -> None:
    news = news_of("key", records(step("prepare_data"), step("pretrain", "RUNNING")), Ending("FAILED"))
    assert (news.outcome, news.failed_step) == ("failed", "pretrain")
    assert "killed, or out of memory" in news.reason


def test_a_step_that_left_no_record_is_looked_for_after_the_last() -> None:
    news = news_of("key", records(step("prepare_data")), Ending("FAILED", "pull of the image failed"))
    assert (news.outcome, news.failed_step) == ("failed", "")
    assert news.reason == "pull of the image failed. no step after prepare_data left a record in MLflow"


def test_the_runner_knows_which_step_was_at_work() -> None:
    before = records(step("prepare_data"), step("pretrain", "FAILED", error="of an attempt before"))
    news = news_of("key", before, Ending("CANCELLED", step="evaluate"))
    assert (news.failed_step, news.reason) == ("evaluate", "it left no record in MLflow")
    assert news_of("key", before, Ending("CANCELLED", step="pretrain")).reason == "of an attempt before"


def test_a_run_that_was_stopped_did_not_fail() -> None:
    stopped = step("pretrain", "KILLED", error="KeyboardInterrupt: ")
    news = news_of("key", records(stopped), Ending("CANCELLED"))
    assert (news.outcome, news.headline) == ("stopped", "Stopped at pretrain")


def test_a_decision_that_promote_could_not_end_with_is_no_outcome() -> None:
    failed = promoted("FAILED", error="ConflictError: the champion is another one")
    news = news_of("key", records(failed), Ending("FAILED"))
    assert (news.outcome, news.failed_step) == ("failed", "promote")
    assert news.reason.startswith("ConflictError")
    assert news.recall_at_1 is None


def test_a_decision_holds_though_the_run_failed_after_it() -> None:
    news = news_of("key", records(promoted()), Ending("FAILED", "upload failed"))
    assert (news.outcome, news.state) == ("promoted", "FAILED")
    assert news.reason.endswith("The run itself ended as FAILED: upload failed")


@pytest.mark.parametrize("state", ["FAILED", "", "RUNNING"])
def test_without_records_a_run_that_is_not_known_to_have_gone_well_failed(state: str) -> None:
    assert news_of("key", None, Ending(state), trouble="no server").outcome == "failed"


def test_without_records_a_run_that_went_well_is_not_called_a_failure() -> None:
    news = news_of("key", None, Ending("SUCCEEDED"), trouble="no server")
    assert (news.outcome, news.reason) == ("unknown", "no server")


def test_numbers_that_are_none_are_left_out() -> None:
    news = news_of("key", records(promoted(recall_at_1="nan", gain="inf", gain_low="?")), Ending())
    assert (news.recall_at_1, news.gain, news.gain_low) == (None, None, None)
    json.dumps(generic(news), allow_nan=False)


def test_credentials_in_addresses_are_told_to_nobody() -> None:
    failed = step("pretrain", "FAILED", error="TrackingError: https://user:secret@mlflow.example refused")
    found = news_of("key", records(failed, page="javascript:alert(1)"), Ending("FAILED"), "ftp://kfp.example")
    assert "secret" not in repr(found)
    assert found.links == {}


def test_a_long_error_keeps_both_ends() -> None:
    text = brief("begin " + "x" * 10_000 + " end")
    assert text.startswith("begin")
    assert text.endswith("end")
    assert len(text) <= LONGEST_REASON + 5


def test_the_same_outcome_of_the_same_run_has_the_same_id() -> None:
    news = news_of("key", records(promoted()), Ending())
    assert generic(news)["id"] == generic(dataclasses.replace(news, reason="in other words"))["id"]
    assert generic(news)["id"] != generic(dataclasses.replace(news, run="other"))["id"]
    assert generic(news)["id"] != generic(dataclasses.replace(news, outcome="failed"))["id"]


SAID = st.builds(
    News,
    run=TEXTS,
    run_name=TEXTS,
    outcome=TEXTS,
    headline=TEXTS.filter(str.strip),
    reason=TEXTS,
    champion_version=TEXTS,
    recall_at_1=st.none() | st.floats(0, 1),
    champion_recall_at_1=st.none() | st.floats(0, 1),
    links=st.dictionaries(TEXTS, TEXTS.map("https://".__add__), max_size=3),
)


@given(SAID)
def test_whatever_is_said_fits_slack_and_commands_nothing(news: News) -> None:
    message = json.loads(json.dumps(slack(news), allow_nan=False))
    assert set(message) == {"text", "blocks"}
    texts = [message["text"]]
    for block in message["blocks"]:
        texts += [entry["text"] for entry in ([block["text"]] if "text" in block else block["elements"])]
    assert all(0 < len(text) <= 3_000 for text in texts)
    assert sum(map(len, texts[1:])) < 13_000, "of all blocks together"
    for text in texts:
        without_links = re.sub(r"<https://[^<>|]*\|[^<>]*>", "", text)
        assert not set("<>") & set(without_links)
        assert not re.search(r"&(?!amp;|lt;|gt;)", without_links)


@given(TEXTS, st.integers(10, 500))
def test_an_escaped_text_reads_as_it_was_and_is_no_longer_than_allowed(text: str, most: int) -> None:
    sent = escaped(text, most)
    assert len(sent) <= most
    plain = sent.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert text == plain or (plain.endswith("...") and text.startswith(plain[:-3]))
    assert html.escape(text, quote=False) == sent or len(html.escape(text, quote=False)) > most - 6


def test_every_format_is_a_choice_of_the_step() -> None:
    from components.announce.params import WEBHOOK_FORMATS

    assert set(FORMATS) == set(WEBHOOK_FORMATS)
