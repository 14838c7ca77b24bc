"""Where everything lives that Rankone keeps on one machine: one folder, `.rankone/`."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of the embedded default: artifacts, the step cache, the MLflow store.

    `RANKONE_HOME` names it; without that, it is `.rankone` in the current folder. It is made when missing.

    Raises:
        ValueError: a file is there, the folder cannot be made, or the path holds a sign that an address of an SQLite
            file cannot.
    """
    named = os.environ.get("RANKONE_HOME") or ".rankone"
    try:
        folder = Path(named).resolve()
    except RuntimeError:
        raise ValueError(f"RANKONE_HOME is '{named}', a link that leads to itself; name a folder.") from None
    if folder.is_file():
        raise ValueError(f"RANKONE_HOME is '{folder}', a file; name a folder.")
    if found := sorted({"?", "%"} & set(str(folder))):
        raise ValueError(
            f"RANKONE_HOME is '{folder}', with {' and '.join(found)} in it: MLflow is told its store as an address, in "
            "which they mean something else. Name a folder without."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"'{folder}' cannot be made ({error.strerror}); name in RANKONE_HOME a folder that this user may write."
        ) from error
    return folder
