"""Where everything lives that Rankone keeps on one machine: one folder, `.rankone/`."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of the embedded default: artifacts, the step cache, the MLflow store.

    `RANKONE_HOME` names it; without that, it is `.rankone` in the current folder. It is made when missing.

    Raises:
        ValueError: a file is there, or the path holds a sign that an address of an SQLite file cannot.
    """
    folder = Path(os.environ.get("RANKONE_HOME") or ".rankone").resolve()
    if folder.is_file():
        raise ValueError(f"RANKONE_HOME is '{folder}', a file; name a folder.")
    if found := sorted({"?", "%"} & set(str(folder))):
        raise ValueError(
            f"RANKONE_HOME is '{folder}', with {' and '.join(found)} in it: MLflow is told its store as an address, in "
            "which they mean something else. Name a folder without."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder
