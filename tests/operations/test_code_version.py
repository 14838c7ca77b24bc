from pathlib import Path

import pytest

from operations import code_version


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project: one step that imports one library file, which imports another and has a template beside it."""
    files = {
        "components/__init__.py": "",
        "components/launch.py": "",
        "components/learn/__init__.py": "",
        "components/learn/step.py": "from components.launch import launch\nfrom retrieval import direct\n",
        "retrieval/__init__.py": "",
        "retrieval/direct.py": "def later():\n    import retrieval.indirect\n",
        "retrieval/direct.html": "page",
        "retrieval/indirect.py": "",
        "retrieval/unrelated.py": "",
        "requirements/rankone.txt": "torch==1",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    monkeypatch.setattr(code_version, "REQUIREMENTS", tmp_path / "requirements" / "rankone.txt")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "components/learn/step.py",
        "components/launch.py",
        "retrieval/direct.py",
        "retrieval/direct.html",
        "retrieval/indirect.py",
        "requirements/rankone.txt",
    ],
)
def test_changes_with_whatever_the_step_reaches(tree: Path, name: str) -> None:
    before = code_version.step_version("learn")
    (tree / name).write_text((tree / name).read_text() + "\n# changed\n")
    assert code_version.step_version("learn") != before


def test_stays_when_something_else_changes(tree: Path) -> None:
    before = code_version.step_version("learn")
    (tree / "retrieval/unrelated.py").write_text("changed = True\n")
    assert code_version.step_version("learn") == before
