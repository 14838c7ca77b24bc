"""The manifest: equal content, equal digest; damage and strangers are named."""

import json

import pytest

from retrieval import manifest
from retrieval.manifest import FILE_NAME, digest_of, file_digest, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")
    write_manifest(tmp_path, "thing", 1, made_from={"origin": "0" * 64}, facts={"n": 2})
    return tmp_path


def test_what_is_written_is_read(folder):
    found = read_manifest(folder, "thing", 1)
    assert (found.kind, found.facts, found.made_from) == ("thing", {"n": 2}, {"origin": "0" * 64})
    assert found.files == {name: file_digest(folder / name) for name in ("a.txt", "b.txt")}


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


def test_files_of_inner_folders_are_covered(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "c.txt").write_text("c")
    found = write_manifest(folder, "thing", 1)
    assert list(found.files) == ["a.txt", "b.txt", "inner/c.txt"]
    (folder / "inner" / "c.txt").write_text("d")
    with pytest.raises(ValueError, match=r"inner/c\.txt was truncated or altered"):
        read_manifest(folder, "thing", 1)


def test_a_file_that_the_manifest_does_not_name_is_named(folder):
    (folder / ".hidden").write_text("an editor's")
    read_manifest(folder, "thing", 1)
    (folder / "images-00007.npy").write_text("left from another attempt")
    with pytest.raises(ValueError, match=r"images-00007\.npy is not in the manifest"):
        read_manifest(folder, "thing", 1)


@pytest.mark.parametrize("altered", [{"facts": {"n": 3}}, {"made_from": {}}, {"digest": "0"}, {"seal": "0"}])
def test_an_altered_manifest_is_refused(folder, altered):
    values = json.loads((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(json.dumps(values | altered))
    with pytest.raises(ValueError, match=r"manifest\.json was altered"):
        read_manifest(folder, "thing", 1)


def test_a_manifest_of_before_there_were_seals_is_read(folder):
    values = json.loads((folder / FILE_NAME).read_text())
    del values["seal"]
    (folder / FILE_NAME).write_text(json.dumps(values))
    assert read_manifest(folder, "thing", 1).facts == {"n": 2}


def test_facts_with_numbers_for_keys_are_sealed_as_they_are_read_back(folder):
    write_manifest(folder, "thing", 1, facts={"by number": {10: 1, 9: (1, 2)}})
    assert read_manifest(folder, "thing", 1).facts == {"by number": {"10": 1, "9": [1, 2]}}


def test_a_settled_file_is_read_once_and_an_altered_one_again(tmp_path, monkeypatch):
    read, path = [], tmp_path / "file"
    path.write_text("alpha")
    digest = manifest.hashlib.file_digest
    monkeypatch.setattr(manifest.hashlib, "file_digest", lambda *given: read.append(1) or digest(*given))
    assert file_digest(path) == file_digest(path)
    assert len(read) == 2, "a file that was just written may change within its times"
    monkeypatch.setattr(manifest, "SECONDS_TO_SETTLE", -1.0)
    before = file_digest(path)
    assert file_digest(path) == before
    assert len(read) == 3
    path.write_text("alphA")
    assert file_digest(path) != before
