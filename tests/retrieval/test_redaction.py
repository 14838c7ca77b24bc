"""No password in what is shown, and every other text as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.redaction import without_credentials

HOST = "kfp.example.com:8080"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://admin:geheim@{HOST}/x", f"http://{HOST}/x"),
        (f"http://token@{HOST}", f"http://{HOST}"),
        ("http://user:ge@heim@host/x", "http://host/x"),
        ("http://user:ge@heim@host/x@y", "http://host/x@y"),
        ("http://jane@example.com:geheim@host/x", "http://host/x"),
        ("postgresql+psycopg://mlflow:ge/he+im=@db:5432/mlflow", "postgresql+psycopg://db:5432/mlflow"),
        ("redis://:geheim@cache", "redis://cache"),
        (f"admin:geheim@{HOST}", HOST),
        ("admin:ge@heim@10.0.0.1", "10.0.0.1"),
        ("admin:ge:heim@localhost/x@y", "localhost/x@y"),
        ("admin:ge/heim@mlflow.example.com", "mlflow.example.com"),
        ("jane@example.com:geheim@host", "host"),
        (f"http:/admin:geheim@{HOST}", f"http:/{HOST}"),  # what was to begin with http://
        (f"http//admin:geheim@{HOST}", f"http//{HOST}"),
        (f"http:admin:geheim@{HOST}", HOST),
        (f"//admin:geheim@{HOST}", f"//{HOST}"),
    ],
)
@pytest.mark.parametrize(
    "text", ["{}", "unsupported URI '{}' for", 'at "{}",', "(see {} )", "RANKONE_KFP_HOST={}", "two: {}\n{}"]
)
def test_no_user_and_no_password_of_an_address_is_shown(address: str, shown: str, text: str) -> None:
    assert without_credentials(text.replace("{}", address)) == text.replace("{}", shown)


@pytest.mark.parametrize(
    "text",
    [
        f"http://{HOST}/#/runs/details/a@b",
        "http://[::1]:8080/models@champion",
        "http://host/at:noon@home",
        "s3://bucket/12:30@2x.png",
        "sqlite:////home/jane@work/mlflow.db",
        "models:/digits@champion",
        "runs:/1f2e/model@3",
        "git@github.com:rankone/rankone.git",
        "git clone https://github.com/rankone/rankone@v1",
        "there/training@sha256:1f2e",
        'Failed to pull image "localhost:5000/there/training:1.0@sha256:1f2e": rpc error: code = NotFound',
        "training:1.0@sha256:1f2e,data:1.0@sha256:2e3f",
        "pkg:pypi/torch@2.8.0",
        "ask jane@example.com, or <john@example.com>: they know",
        "mailto:jane@example.com",
        '{"time":"12:30:01","by":"jane@example.com"}',
        "R@1 96.00% reaches the floor; MAP@R: 0.5, recall@8:0.7",
        "R@1:0.96,R@5:0.98,MAP@R:0.71",
        "TypeError: unsupported operand for @: 'Tensor'",
        "weights @ values.T is (3,)@(4,)",
        "",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert without_credentials(text) == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="@")))
def test_a_text_without_the_sign_stays_as_it_is(text: str) -> None:
    assert without_credentials(text) == text


@given(
    st.text("abcXYZ019._~!$&*+;=,:@-", min_size=1),
    st.sampled_from(["http://admin:{}@host/x", "admin:{}@host:80", "postgresql://admin:{}@host/x"]),
)
def test_whatever_the_password_is_made_of(password: str, address: str) -> None:
    assert without_credentials(address.format(password)) == address.replace("admin:{}@", "")
