"""The same command finds the states that it kept, and another one does not."""

from pathlib import Path

import pytest

from operations.run import checkpoints_of


def test_a_place_goes_with_the_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path))
    place = checkpoints_of({"seed": 1, "channels": (8, 16)})
    assert Path(place).parent == tmp_path / "checkpoints"
    assert checkpoints_of({"channels": [8, 16], "seed": 1}) == place
    assert checkpoints_of({"seed": 2, "channels": (8, 16)}) != place
    assert checkpoints_of({"checkpoints": "s3://bucket/kept/"}).startswith("s3://bucket/kept/")


def test_a_folder_is_the_same_wherever_a_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert checkpoints_of({"checkpoints": "kept"}).startswith(f"{tmp_path}/kept/")
    assert checkpoints_of({"checkpoints": "~/kept"}).startswith(f"{tmp_path}/me/kept/")
