import socket
import time
from collections.abc import Iterator

import pytest

from retrieval.webhook import DeliveryError, check_address, deliver
from tests.receiver import TOKEN, Receiver, receiving


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "*")
    with receiving() as found:
        yield found


def refusal(address: str, **options: float) -> str:
    with pytest.raises(DeliveryError) as caught:
        deliver(address, {"a": 1}, seconds_between=0.01, **options)  # type: ignore[arg-type]
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "a traceback would show the address"
    return str(caught.value)


def test_a_message_arrives_whole_and_once(receiver: Receiver) -> None:
    deliver(receiver.address, {"text": "é <&>", "number": 0.5})
    assert receiver.messages == [{"text": "é <&>", "number": 0.5}]
    assert receiver.headers[0]["Content-Type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.answers = [status, status]
    deliver(receiver.address, {"a": 1}, seconds_between=0.01)
    assert len(receiver.messages) == 3


def test_a_receiver_that_goes_on_failing_is_given_up(receiver: Receiver) -> None:
    receiver.answers = [500] * 10
    assert refusal(receiver.address) == "it answered 500 (3 attempts)"
    assert len(receiver.messages) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_refusal_is_final(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    assert refusal(receiver.address) == f"it answered {status}"
    assert len(receiver.messages) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    assert refusal(receiver.address) == f"it answered {status}, a redirect, which is not followed"
    assert len(receiver.messages) == 1


@pytest.mark.parametrize("way", ["silent", "drips"])
def test_a_receiver_that_does_not_come_to_an_end_is_left(receiver: Receiver, way: str) -> None:
    setattr(receiver, way, True)
    started = time.monotonic()
    assert refusal(receiver.address, attempts=2, seconds_to_answer=1) == "it did not answer within 1 s (2 attempts)"
    assert time.monotonic() - started < 20  # a silent receiver waits for 60 s, one that drips for ever
    assert len(receiver.messages) == 2


def test_a_receiver_that_is_gone_is_given_up() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/{TOKEN}"
    assert refusal(address) == "it cannot be reached: Connection refused (3 attempts)"


def test_a_receiver_that_speaks_another_language_is_given_up(receiver: Receiver) -> None:
    assert "encryption" in refusal(receiver.address.replace("http:", "https:"), attempts=1)


@pytest.mark.parametrize(
    "address",
    [
        f"file:///etc/{TOKEN}",
        f"ftp://host/{TOKEN}",
        f"gopher://host/{TOKEN}",
        f"data:text/plain,{TOKEN}",
        f"hooks.example/{TOKEN}",
        f"https:///{TOKEN}",
        f"https://user:{TOKEN}@host/",
        f"https://{TOKEN}@host/",
        f"https://host:port/{TOKEN}",
        f"https://[host/{TOKEN}",
        f"https://host/{TOKEN} and more",
        f"https://host/{TOKEN}\nX-Header: 1",
        f"https://host/ü{TOKEN}",
        "",
    ],
)
def test_nothing_but_a_plain_web_address_is_posted_to(address: str) -> None:
    with pytest.raises(ValueError, match="RANKONE_WEBHOOK_URL") as caught:
        deliver(address, {})
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None


def test_addresses_of_receivers_are_taken() -> None:
    for address in ("https://hooks.example/services/T/B/x", "http://receiver:8080/a?token=x%20y", "https://[::1]:1/a"):
        check_address(address)
