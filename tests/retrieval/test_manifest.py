"""The manifest: equal content, equal digest; damage and strangers are named."""

import json

import pytest

from retrieval.manifest import FILE_NAME, digest_of, file_digest, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")
    write_manifest(tmp_path, "thing", 1, made_from={"origin": "0" * 64}, facts={"n": 2})
    return tmp_path


def test_what_is_written_is_read(folder):
    manifest = read_manifest(folder, "thing", 1)
    assert (manifest.kind, manifest.facts, manifest.made_from) == ("thing", {"n": 2}, {"origin": "0" * 64})
    assert manifest.files == {name: file_digest(folder / name) for name in ("a.txt", "b.txt")}


def test_facts_do_not_change_the_digest_and_content_does(folder):
    before = read_manifest(folder, "thing", 1).digest
    assert write_manifest(folder, "thing", 1, facts={"n": 3}).digest == before
    (folder / "a.txt").write_text("Alpha")
    assert write_manifest(folder, "thing", 1).digest != before


def test_digest_is_blind_to_key_order():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(ValueError, match=r"is no thing: it has no manifest\.json"):
        read_manifest(tmp_path, "thing", 1)


@pytest.mark.parametrize(("kind", "version"), [("other", 1), ("thing", 2)])
def test_another_kind_or_format(folder, kind, version):
    with pytest.raises(ValueError, match=f"holds a thing of format 1; expected a {kind} of format {version}"):
        read_manifest(folder, kind, version)


def test_a_missing_file_is_named(folder):
    (folder / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a\.txt is missing"):
        read_manifest(folder, "thing", 1)


def test_an_altered_file_is_named(folder):
    (folder / "b.txt").write_text("bet")
    with pytest.raises(ValueError, match=r"b\.txt was truncated or altered"):
        read_manifest(folder, "thing", 1)


@pytest.mark.parametrize("text", ["{", json.dumps({"kind": "thing"}), json.dumps({"stranger": 1})])
def test_an_unreadable_manifest(folder, text):
    (folder / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match="cannot be read"):
        read_manifest(folder, "thing", 1)
