"""Files and folders that are there as a whole or not at all."""

import os

import pyarrow.fs as pafs
import pytest

from retina_ray.storage.files import AtomicFile, atomic_folder, read_text, write_text


@pytest.fixture(params=["disk", "memory"])
def uri(request, tmp_path):
    return str(tmp_path / "new" / "a") if request.param == "disk" else f"fsspec+memory://{tmp_path}"


def test_text_is_written_over_and_read_back(uri):
    assert read_text(f"{uri}/x") is None
    for text in ("first", "ä"):
        write_text(f"{uri}/x", text)
        assert read_text(f"{uri}/x") == text
    assert read_text(f"{uri}/x/y") is None  # x is no folder


def test_a_file_that_breaks_off_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(TypeError), AtomicFile(pafs.LocalFileSystem(), str(path)) as sink:
        sink.writelines([b"half", 2])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_mix(tmp_path):
    fs, path = pafs.LocalFileSystem(), str(tmp_path / "a")
    with AtomicFile(fs, path) as first:
        first.write(b"11")
        with AtomicFile(fs, path) as second:
            second.write(b"2")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"11"]


@pytest.mark.parametrize("durable", [True, False])
def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch, durable):
    steps, rename = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("name"), rename(*names)))
    with AtomicFile(pafs.LocalFileSystem(), str(tmp_path / "a"), durable=durable):
        pass
    assert steps == (["sync", "name", "sync"] if durable else ["name"])


def test_the_longest_names(tmp_path):
    write_text(tmp_path / ("ä" * 127), "x")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_as_a_whole(tmp_path):
    folder = tmp_path / "new" / "a"
    with atomic_folder(folder) as made:
        (made / "x").write_text("1")
        assert not folder.exists()
    for fill in (lambda made: 1 / 0, lambda made: None):  # it breaks off; it is there already
        with pytest.raises((ZeroDivisionError, OSError)), atomic_folder(folder) as made:
            fill(made)
    with atomic_folder(folder, overwrite=True) as made:
        (made / "y").write_text("2")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "new",
        "new/a",
        "new/a/y",
    ]
