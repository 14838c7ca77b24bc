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


def test_a_home_that_cannot_be_made_is_refused_with_how_to_name_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").touch()
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "notes" / "home"))
    with pytest.raises(ValueError, match=r"'.*/notes/home' cannot be made \(Not a directory\); name in RANKONE_HOME a"):
        home()


def test_a_home_that_is_a_link_to_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "round").symlink_to("round")
    monkeypatch.setenv("RANKONE_HOME", str(tmp_path / "round"))
    with pytest.raises(ValueError, match=r"RANKONE_HOME is '.*/round', a link that leads to itself; name a folder\."):
        home()
