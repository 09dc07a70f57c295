"""Writing a file in one step: the old content or the new, and nothing beside it."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vae_runtime import ArgumentError, VaeError
from vae_runtime.files import check_output, replacing, write_lines


@pytest.mark.parametrize("old", [None, b"a longer old content"])
def test_new_content_takes_the_place_of_the_old(tmp_path: Path, old: bytes | None):
    """After the block the file holds the new content only, and the folder holds no other file."""
    path = tmp_path / "out.bin"
    if old is not None:
        path.write_bytes(old)
    with replacing(path) as file:
        file.write(b"new ")
        file.write(b"content")
    assert path.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_content_until_the_end(tmp_path: Path):
    """Inside the block, even after a flush, the file still holds the old content."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ArgumentError])
def test_a_failed_block_changes_nothing(tmp_path: Path, error: type[BaseException]):
    """When the block raises, the same error comes out, the old content stays and no leftover is seen."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    raised = error("what", "which", "todo")
    with pytest.raises(error) as caught, replacing(path) as file:
        file.write(b"new")
        raise raised
    assert caught.value is raised
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_block_makes_no_new_file(tmp_path: Path):
    """When the block raises and there was no file before, there is none afterwards."""
    with pytest.raises(RuntimeError), replacing(tmp_path / "out.bin"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_the_old_content(tmp_path: Path):
    """A process killed with SIGKILL in the middle of the block leaves the old content in place."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    script = (
        "import os, signal, sys; from pathlib import Path; from vae_runtime.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("missing/out.bin", "No such file or directory"),
        ("file/out.bin", "Not a directory"),
        ("folder", "directory"),
    ],
)
def test_an_impossible_place_is_named(tmp_path: Path, where: str, reason: str):
    """A missing folder, a file in a folder's place and a folder itself raise ArgumentError with the path and reason."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArgumentError, match=rf"cannot write: .*{where} \(.*{reason}\); choose another output"):  # noqa: SIM117
        with replacing(tmp_path / where) as file:
            file.write(b"new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_lines_are_written_as_utf8(tmp_path: Path):
    """Each line ends in one line feed, in UTF-8, in the place of what was there before; no lines make an empty file."""
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    write_lines(path, iter(["image,elbo", "ё,-1.5", "\U0001f600"]))
    assert path.read_bytes() == b"image,elbo\n\xd1\x91,-1.5\n\xf0\x9f\x98\x80\n"
    write_lines(path, [])
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


def test_lines_that_fail_change_nothing(tmp_path: Path):
    """When the lines' own generator raises, the old content stays."""
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write_lines(path, (str(1 / n) for n in (1, 0)))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


ANY = (".png", ".npy", "")


@pytest.mark.parametrize(
    ("name", "kinds", "words"),
    [
        ("new.png", ANY, None),
        ("old.png", ANY, None),
        ("new", ANY, None),
        ("empty", ANY, None),
        ("empty/", ANY, None),
        ("used/x.npy", ANY, None),
        ("used/new", ANY, None),
        (".png", ANY, None),  # a hidden name has no suffix
        ("new.PNG", ANY, "output of an unknown kind: {}; end its name in .png or .npy or no suffix (a folder)"),
        ("new.txt", ANY, "output of an unknown kind: {}; end its name in .png or .npy or no suffix (a folder)"),
        ("new", (".csv", ".json"), "output of an unknown kind: {}; end its name in .csv or .json"),
        ("missing/new.png", ANY, "output folder not found: {parent}; make it first"),
        ("missing/new", ANY, "output folder not found: {parent}; make it first"),
        ("old.png/new.png", ANY, "output folder not found: {parent}; make it first"),
        ("folder.png", ANY, "output is a folder: {}; name a file"),
        ("used", ANY, "output exists and is no empty folder: {}; name a new folder"),
        ("file", ANY, "output exists and is no empty folder: {}; name a new folder"),
        ("x" * 300 + ".png", ANY, "cannot write: {} (File name too long); choose another output"),
        ("x" * 300, ANY, "cannot write: {} (File name too long); choose another output"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_outputs_are_checked_before_the_work(tmp_path: Path, name: str, kinds: tuple[str, ...], words: str | None):
    """An output of another kind, in a missing folder, or in the place of a folder or of files raises ArgumentError; any
    other passes; the check itself changes nothing.
    """
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "file").write_bytes(b"old")
    for folder in ("empty", "used", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "used" / "x.npy").write_bytes(b"old")
    before = sorted(tmp_path.rglob("*"))
    path = tmp_path / name
    if words is None:
        check_output(path, *kinds)
    else:
        with pytest.raises(ArgumentError) as caught:
            check_output(path, *kinds)
        assert str(caught.value) == words.format(path, parent=path.parent)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_two_threads_write_is_whole(tmp_path: Path):
    """Eight threads that replace one file again and again leave the content of one of them, and no other file."""
    path = tmp_path / "out.bin"
    contents = [bytes([i]) * 100_000 for i in range(8)]

    def work(content: bytes) -> None:
        for _ in range(5):
            with replacing(path) as file:
                file.write(content[:50_000])
                file.write(content[50_000:])
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_resource_error():
    """ENOSPC becomes a VaeError with exit code 5 that names the file."""
    from vae_runtime.files import write_error

    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError) as caught:
        full.write(b"x")
    error = write_error(caught.value, Path("out.bin"))
    assert isinstance(error, VaeError)
    assert error.exit_code == 5
    assert str(error) == "disk full: out.bin; free some space and try again"
    assert os.strerror(caught.value.errno or 0) == "No space left on device"
