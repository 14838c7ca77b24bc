"""Where everything lives that Rankone keeps on one machine: one folder, `.rankone/`."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of the embedded default: artifacts, the step cache, the MLflow store.

    `RANKONE_HOME` names it; without that, it is `.rankone` in the current folder. It is made when missing.
    """
    folder = Path(os.environ.get("RANKONE_HOME") or ".rankone").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
