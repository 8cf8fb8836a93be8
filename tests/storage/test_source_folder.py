import pickle

import pytest

from retina_ray.data.images.files import read_image_file
from retina_ray.errors import DataError, SourceFileError, StorageError
from retina_ray.storage.files import read_bytes
from retina_ray.storage.source_folder import SourceFolder, map_ahead
from retina_ray.storage.uris import join_uri, parent_uri, shown_uri


@pytest.fixture(params=["path", "file", "memory"])
def folder(request, tmp_path) -> SourceFolder:
    """The same three files on a local disk, by its URI, and on a storage that is no disk."""
    files = {"a.txt": b"first", "sub/b.TXT": b"second", "sub/deep/c.txt": b"", "d.jpg": b"picture"}
    root = tmp_path / "source"
    if request.param == "memory":
        folder = SourceFolder(f"fsspec+memory://{root}")
        filesystem, base = folder._opened
        for name, data in files.items():
            filesystem.create_dir(f"{base}/{name}".rpartition("/")[0], recursive=True)
            with filesystem.open_output_stream(f"{base}/{name}") as stream:
                stream.write(data)
        return folder
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return SourceFolder(root if request.param == "path" else f"file://{root}")


def test_files_are_read_from_any_storage(folder):
    assert folder.read_bytes("a.txt") == b"first"
    assert folder.read_bytes("a.txt", 3) == b"fir"
    assert folder.read_bytes("a.txt", 99) == b"first"
    assert folder.read_bytes("sub/b.TXT") == b"second"
    assert folder.child("sub").read_bytes("deep/c.txt") == b""
    assert read_bytes(f"{folder}/a.txt") == b"first"
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("no.txt")


def test_what_is_there(folder):
    assert folder.is_dir()
    assert folder.is_dir("sub")
    assert not folder.is_dir("a.txt")
    assert not folder.is_dir("no")
    assert folder.exists("a.txt")
    assert not folder.exists("sub")
    assert not folder.exists("../source/a.txt")


def test_files_are_listed_in_order(folder):
    assert folder.list_files(suffixes=[".txt"]) == ["a.txt"]
    assert folder.list_files("sub", suffixes=[".txt"]) == ["sub/b.TXT"]
    everything = ["a.txt", "d.jpg", "sub/b.TXT", "sub/deep/c.txt"]
    assert folder.list_files(suffixes=[".txt", ".jpg"], recursive=True) == everything
    assert folder.list_files("no", suffixes=[".txt"]) == []


@pytest.mark.parametrize(
    "name", ["../x", "sub/../../x", "/etc/hostname", "C:\\x", "..\\x", "", "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(folder, name):
    calls = [lambda: folder.read_bytes(name), lambda: folder.child(name)]
    if name:  # "" is the folder itself
        calls.append(lambda: folder.list_files(name, suffixes=[".txt"]))
    for call in calls:
        with pytest.raises(SourceFileError) as caught:
            call()
        assert caught.value.kind == "file name leaves the folder"


def test_links_to_the_outside_are_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "source" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "source" / "inner").write_text("mine")
    (tmp_path / "source" / "alias").symlink_to(tmp_path / "source" / "inner")
    (tmp_path / "source" / "folder").symlink_to(tmp_path)
    (tmp_path / "root").symlink_to(tmp_path / "source")
    for folder in map(SourceFolder, (tmp_path / "source", tmp_path / "root")):
        assert folder.read_bytes("alias") == b"mine"
        for name in ("link", "folder/secret"):
            with pytest.raises(SourceFileError, match="is a link to"):
                folder.read_bytes(name)


def test_links_that_lead_back_to_themselves_cannot_be_read(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "one").symlink_to("two")
    (tmp_path / "source" / "two").symlink_to("one")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    folder = SourceFolder(tmp_path / "source")
    with pytest.raises(OSError, match="a link that leads back to itself; put the file in its"):
        folder.read_bytes("one")
    assert not folder.exists("one")
    assert folder.list_files(suffixes=["one"]) == []
    assert not SourceFolder(tmp_path / "loop").is_dir()
    with pytest.raises(OSError, match="back to itself"):
        SourceFolder(tmp_path / "loop").read_bytes("a")


def test_folder_travels_to_other_processes(folder):
    folder.read_bytes("a.txt")  # opens what cannot be pickled
    if not folder.uri.startswith("fsspec+memory"):
        assert pickle.loads(pickle.dumps(folder)).read_bytes("a.txt") == b"first"
    assert pickle.loads(pickle.dumps(folder)).uri == folder.uri


def test_relative_paths_survive_a_change_of_directory(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    monkeypatch.chdir(tmp_path)
    folder = SourceFolder("a")
    monkeypatch.chdir("/")
    assert folder.read_bytes("x") == b"1"


def test_unknown_scheme():
    with pytest.raises(DataError, match="nosuch://bucket"):
        SourceFolder("nosuch://bucket/a")


@pytest.mark.parametrize("is_local", [True, False])
def test_map_ahead_keeps_the_order_and_passes_errors_on(is_local):
    assert list(map_ahead(lambda i: i * i, range(100), is_local=is_local)) == [
        i * i for i in range(100)
    ]
    assert list(map_ahead(str, [], is_local=is_local)) == []
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda i: 1 // i, [2, 1, 0], is_local=is_local))


def raising(error):
    def read_bytes(*_):
        raise error

    return read_bytes


def test_storage_that_stays_away_is_no_fault_of_the_image(tmp_path, monkeypatch):
    """Otherwise an outage would drop images, where those that are bad may be dropped."""
    folder = SourceFolder(f"fsspec+memory://{tmp_path}")
    monkeypatch.setattr(folder, "read_bytes", raising(StorageError("gone")))
    with pytest.raises(StorageError, match="gone"):
        read_image_file(folder, "a.jpg")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("no such key"), "missing image"),
        (PermissionError("not yours"), "unreadable image"),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation"), "unreadable image"),
    ],
)
def test_what_cannot_be_had_is_a_fault_of_the_image(tmp_path, monkeypatch, error, kind):
    folder = SourceFolder(f"fsspec+memory://{tmp_path}")
    monkeypatch.setattr(folder, "read_bytes", raising(error))
    with pytest.raises(SourceFileError) as caught:
        read_image_file(folder, "a.jpg")
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("uri", "joined", "parent", "shown"),
    [
        ("a/b", "a/b/c", "a", "a/b"),
        ("/a", "/a/c", "/", "/a"),
        ("a?b", "a?b/c", ".", "a?b"),  # a plain file name
        ("s3://b/a/", "s3://b/a/c", "s3://b/a", "s3://b/a/"),
        (
            "s3://key:secret@b/a?scheme=http&endpoint_override=h:1",
            "s3://key:secret@b/a/c?scheme=http&endpoint_override=h:1",
            "s3://key:secret@b?scheme=http&endpoint_override=h:1",
            "s3://b/a",
        ),
    ],
)
def test_uris_with_options_and_passwords(uri, joined, parent, shown):
    assert join_uri(uri, "c") == joined
    assert parent_uri(uri) == parent
    assert shown_uri(uri) == shown
