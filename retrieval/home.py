"""Where everything lives that Rankone keeps on one machine: one folder, `.rankone/`."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of the embedded default: artifacts, the step cache, the MLflow store.

    `RANKONE_HOME` names it; without that, it is `.rankone` in the current folder. It is made when missing.

    Raises:
        ValueError: a file is there.
    """
    folder = Path(os.environ.get("RANKONE_HOME") or ".rankone").resolve()
    if folder.is_file():
        raise ValueError(f"RANKONE_HOME is '{folder}', a file; name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
