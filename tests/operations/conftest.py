from pathlib import Path

import pytest

from operations import code_version

DECLARED = '@container_component(image="rankone-{}", params=Params)\ndef step(): ...\n'
FILES = {
    "components/__init__.py": "",
    "components/launch.py": "",
    "components/learn/__init__.py": "",
    "components/learn/component.py": DECLARED.format("learning"),
    "components/learn/step.py": "from components.launch import launch\nfrom retrieval import direct\n",
    "components/keep/__init__.py": "",
    "components/keep/component.py": DECLARED.format("registry"),
    "components/keep/step.py": "from components.launch import launch\n",
    "retrieval/__init__.py": "",
    "retrieval/direct.py": "",
    "retrieval/unrelated.py": "",
    "requirements/uv.txt": "uv==1",
    "requirements/learning.txt": "torch==1",
    "requirements/registry.txt": "mlflow==1",
    "images/learning.Dockerfile": "FROM base\nCOPY requirements/uv.txt /\nCOPY requirements/learning.txt /\n",
    "images/registry.Dockerfile": "FROM base\nCOPY requirements/registry.txt /\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of two steps, each in an image of its own."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    return tmp_path
