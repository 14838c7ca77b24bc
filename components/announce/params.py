"""The knobs of announce."""

from dataclasses import dataclass

from components.knobs import check_choices

WEBHOOK_FORMATS = ("generic", "slack")


@dataclass(frozen=True)
class Params:
    """How the receiver is told.

    Attributes:
        webhook_format: generic, documented JSON for programs, or slack. The receiver's address is a secret and no
            knob: RANKONE_WEBHOOK_URL in the environment.
    """

    webhook_format: str = "generic"

    def __post_init__(self) -> None:
        check_choices(self, webhook_format=WEBHOOK_FORMATS)
