import sys
from pathlib import Path

import pytest

from operations.command_line import main
from operations.yaml_file import read_yaml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\ndimension: [", "line 2: "),
        (b"seed: 1\n1: 2\n", "line 2: the key 1 is no text; quote it"),
        (b"on: 1\n", "line 1: the key on is no text"),
        (b"? [a]\n: 1\n", "line 1: the key .* is no text"),
        (b"a:\n  b:\n    2: c\n", "line 3: the key 2 is no text"),
        (b"seed: 1\nseed: 2\n", "line [12]: the key 'seed' is there twice"),
        (b"registered_model: caf\xe9\n", "its byte 22 is no UTF-8; save it as UTF-8"),
        (b"a: \x00\n", "special characters are not allowed"),
        (b"start: 2026-13-01\n", "month must be in 1..12"),
        (b"seed: 1\n---\nseed: 2\n", "line 2: but found another document"),
        (b"seed: !!python/object:os.system {}\n", "line 1: could not determine a constructor"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"mine.yaml cannot be read: .*{message}"):
        read_yaml(path)


def test_keys_may_be_merged(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("usual: &usual {a: 1, b: 2}\nother: {<<: *usual, b: 3}\n")
    assert read_yaml(path)["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize("content", [b"seed: [", b"1: 2\n", b"caf\xe9: 1\n"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("parameters", "--recipe", "mine.yaml"),
        ("compile", "--unpinned", "--profile", "mine.yaml"),
        ("schedule", "diff", "--file", "mine.yaml"),
        ("schedule", "diff", "--file", "recipe.yaml"),
        ("schedule", "diff", "--file", "profile.yaml"),
    ],
)
def test_the_command_line_ends_in_one_line(tmp_path, monkeypatch, capsys, content: bytes, arguments) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    for key in ("recipe", "profile"):
        entry = f"schedules:\n- name: nightly\n  every: 1h\n  {key}: mine.yaml\n"
        (tmp_path / f"{key}.yaml").write_text(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rankone", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1), said
    assert said.startswith("rankone: ")
    assert "mine.yaml cannot be read: " in said
