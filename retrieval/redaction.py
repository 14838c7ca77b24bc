"""Texts of others, such as messages of errors, without the credentials that addresses in them hold. No torch here."""

import re


def without_credentials(text: str) -> str:
    """The text with what stands before the @ of every address left out: a user's name and a password."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)
