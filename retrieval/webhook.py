"""Posts JSON to an address that is a secret: whoever knows it can post too, so that nothing here ever shows it."""

import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

ADDRESS = "RANKONE_WEBHOOK_URL"  # the variable that holds it
ATTEMPTS = 3
SECONDS_TO_ANSWER = 10.0  # of one attempt
SECONDS_BETWEEN = 2.0  # after the first attempt; twice as many after each further one
AGAIN = (408, 425, 429)  # answers after which another attempt may succeed, as it may after any of 500 and above


class DeliveryError(Exception):
    """The receiver did not take the message; says why, never where it was sent to."""

    def __init__(self, why: str, passing: bool) -> None:
        super().__init__(why)
        self.passing = passing


def check_address(address: str) -> None:
    """Refuse an address that is none of a receiver.

    Raises:
        ValueError: says what is wrong, and does not repeat the address.
    """
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  (raises where it is no number)
    except ValueError:
        raise ValueError(f"{ADDRESS} is no address; give that of the receiver, https://...") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{ADDRESS} is no address that begins with https:// or http://; nothing else is posted to.")
    if not parts.hostname or parts.username is not None or any(sign <= " " or sign > "~" for sign in address):
        raise ValueError(
            f"{ADDRESS} has no host, or a user's name before it, or signs that must be written as %XX; "
            "give the address as the receiver shows it."
        )


def deliver(
    address: str,
    body: Mapping[str, Any],
    attempts: int = ATTEMPTS,
    seconds_to_answer: float = SECONDS_TO_ANSWER,
    seconds_between: float = SECONDS_BETWEEN,
) -> None:
    """Post a JSON object, again after a failure that may pass; never waits longer than all attempts together may take.

    Redirects are not followed: they would carry the message to where nobody asked for it.

    Args:
        address: of the receiver.
        body: plain JSON.
        attempts: at most.
        seconds_to_answer: of one attempt, looking up the name and a receiver that sends a byte now and then included.
        seconds_between: before the second attempt; doubled before each further one.

    Raises:
        ValueError: the address is none; see `check_address`.
        DeliveryError: the receiver cannot be reached, refused the message, or did not answer in time.
    """
    check_address(address)
    data = json.dumps(body, allow_nan=False).encode()
    for attempt in range(attempts):
        try:
            return _within(seconds_to_answer, address, data)
        except DeliveryError as error:
            if not error.passing or attempt == attempts - 1:
                tried = f" ({attempt + 1} attempts)" if attempt else ""
                raise DeliveryError(f"{error}{tried}", error.passing) from None
        time.sleep(seconds_between * 2**attempt)


def _within(seconds: float, address: str, data: bytes) -> None:
    """Post once in a thread, which is left behind when its time is up: no time limit of a socket covers all of it."""
    failed: list[DeliveryError] = []

    def post() -> None:
        try:
            _post(address, data, seconds)
        except DeliveryError as error:
            failed.append(error)

    worker = threading.Thread(target=post, daemon=True)
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        raise DeliveryError(_too_late(seconds), passing=True)
    if failed:
        raise failed[0]


def _post(address: str, data: bytes, seconds: float) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "rankone"}
    request = urllib.request.Request(address, data, headers, method="POST")
    try:
        with urllib.request.build_opener(_StayHere).open(request, timeout=seconds):
            return
    except urllib.error.HTTPError as error:
        with error:
            passing = error.code >= 500 or error.code in AGAIN
            moved = ", a redirect, which is not followed" if 300 <= error.code < 400 else ""
            raise DeliveryError(f"it answered {error.code}{moved}", passing) from None
    except Exception as error:  # of any kind: its text may repeat the address
        raise DeliveryError(_why(error, seconds), passing=True) from None


def _too_late(seconds: float) -> str:
    """The same words whichever limit is first: that of the socket or that of the attempt."""
    return f"it did not answer within {seconds:g} s"


def _why(error: Exception, seconds: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLError):
        return "its certificate or its encryption was not accepted"
    if isinstance(reason, TimeoutError):
        return _too_late(seconds)
    text = reason.strerror if isinstance(reason, OSError) else None
    return f"it cannot be reached: {text or type(reason).__name__}"


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other that is not 200."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer becomes an error."""
        return
