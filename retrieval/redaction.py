"""Texts of others, such as messages of errors, without the credentials that addresses in them hold. No torch here."""

import re

AFTER_SCHEME = re.compile(
    r"""(?<=://)(?:
        [^/\s]*@                             # up to the last @ before the path
        | [^/\s:\[]*:(?!\d+/)[^\s"']*@       # a password with a slash: what follows the colon is no port
    )""",
    re.VERBOSE,
)
WITHOUT_SCHEME = re.compile(
    r"""(?<![^\s"'`(<\[{=,;])                # a word begins
    ((?:[\w+.-]*:?/{1,2})?)                  # stays: what was to be http://
    (?!mailto:|pkg:)
    [^\s"'`(<\[{=,;:/]+:(?!\d*/)             # the user; no host:port/ and no models:/
    (?:[^/\s"']+|[^\s"']+)                   # the password, up to the last @ before a path, else with a slash in it
    @(?!sha\d+:|(?:\d+|[kR])\b(?!\.\w))      # before a host: no digest of an image, no recall@1 and no MAP@R
    """,
    re.VERBOSE,
)


def without_credentials(text: str) -> str:
    """The text with what stands before the @ of every address left out: a user's name and a password.

    An address has ://, or begins with user:password@. Where that may be read in two ways too much is left out, as of
    by:jane@example.com; an e-mail address alone, a digest of an image and an alias of a model stay. Not found without
    :// is a password with a blank or a quotation mark in it.
    """
    return WITHOUT_SCHEME.sub(r"\1", AFTER_SCHEME.sub("", text))
