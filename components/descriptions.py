"""What each knob does, read from the docstring of its `Params`; for compiling and for `rankone parameters`."""

import inspect

import docstring_parser


def knob_descriptions(params: type) -> dict[str, str]:
    """The texts under `Attributes:` of a dataclass's docstring, by knob, each on one line."""
    described = docstring_parser.parse(inspect.getdoc(params) or "", style=docstring_parser.DocstringStyle.GOOGLE)
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in described.params}
