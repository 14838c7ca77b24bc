from pathlib import Path

import pytest

from retrieval.home import home


def test_the_home_is_made_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "some" / "where"))
    assert home() == tmp_path / "some" / "where"
    assert home().is_dir()
    monkeypatch.delenv("RANKONE_HOME")
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / ".rankone"


@pytest.mark.parametrize("name", ["feature%2Fx", "a?b"])
def test_a_home_that_no_address_can_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / name))
    with pytest.raises(ValueError, match=r"RANKONE_HOME is .* in which they mean something else"):
        home()
    assert not list(tmp_path.iterdir())


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").touch()
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "notes"))
    with pytest.raises(ValueError, match=r"RANKONE_HOME is '.*/notes', a file; name a folder\."):
        home()
