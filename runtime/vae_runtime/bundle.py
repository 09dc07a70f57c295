"""Read a bundle (its graphs, a manifest, golden vectors) and trust nothing in it before its hash matches."""

import hashlib
import io
import json
import mmap
import os
import shlex
import stat
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from io import BufferedReader
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_runtime import manifest as manifests
from vae_runtime import safety
from vae_runtime.errors import BundleError
from vae_runtime.manifest import Contract, File, Manifest

DEFAULT = "default"
ALIASES = {DEFAULT: "mnist"}  # of the bundles that ship with the package
METADATA_KEY = "vae_edge"
ENCODER, DECODER = GRAPHS = ("encoder.onnx", "decoder.onnx")
MANIFEST = "manifest.json"
FILES = (*GRAPHS, "golden.npz")  # beside the manifest
PRIOR = "prior.onnx"  # which a bundle with a learned prior has too
CALIBRATION = "calibration.json"  # which a bundle may have too
_TRIES, _PAUSE = 50, 0.01  # where every one meets a bundle that is just being replaced; seconds
_MANIFEST_LIMIT = 1 << 20  # bytes; a real one has a few thousand
_GOLDEN_LIMIT = 1 << 28  # bytes, inflated; two rows of each array need far less
RUN_CONFIG = "config.json"  # which vae-train writes into a run
_NAME_ANOTHER = "name a folder that vae-export wrote"
_LARGE = 1 << 19  # bytes
_MOST_OPEN = 100  # the highest descriptor that is taken: a process with more open files may need those that are left
_LISTED = 4  # of the bundles that lie where one was looked for


class Files(Mapping[str, bytes]):
    """The bytes of a bundle's files by name, as they were verified, also after another bundle has taken its place.

    Large ones are not held but stay open, and are read and verified again whenever they are asked for: a graph that
    nobody runs takes no memory. That raises BundleError where one was changed in its place. A copy holds all of them.
    """

    def __init__(self, path: Path, known: Mapping[str, File]) -> None:
        self._path, self._known = path, known
        self._held: dict[str, bytes] = {}
        self._open: dict[str, int] = {}

    def add(self, name: str, data: memoryview, file: BufferedReader) -> None:
        """Keep what was read and verified, or the file that it is from."""
        if sys.platform != "win32" and len(data) >= _LARGE:  # Windows replaces no file that is open
            with suppress(OSError):  # as many are open as may be
                descriptor = os.dup(file.fileno())
                if descriptor <= _MOST_OPEN:
                    self._open[name] = descriptor
                    weakref.finalize(self, os.close, descriptor).atexit = False
                    return
                os.close(descriptor)
        self._held[name] = bytes(data)

    def __getitem__(self, name: str) -> bytes:
        if sys.platform == "win32" or name in self._held:
            return self._held[name]
        parts, left = list[bytes](), self._known[name].size + 1
        try:
            while part := os.pread(self._open[name], left, self._known[name].size + 1 - left):
                parts.append(part)
                left -= len(part)
        except OSError as error:
            what = f"bundle unreadable ({error.strerror})"
            raise BundleError(what, self._path / name, "load it again") from None
        return _unchanged(b"".join(parts), self._path / name, self._known[name])  # one part is not copied

    def __iter__(self) -> Iterator[str]:
        return iter((*self._held, *self._open))

    def __len__(self) -> int:
        return len(self._held) + len(self._open)

    def __reduce__(self) -> tuple[type[dict[str, bytes]], tuple[dict[str, bytes]]]:
        return dict, (dict(self),)


class Bundle(NamedTuple):
    """A verified bundle: the manifest and the bytes of every other file."""

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    def golden(self) -> dict[str, NDArray[np.float32]]:
        """The golden vectors by name; docs/bundle.md lists them. Raises BundleError where they cannot be read."""
        try:
            with np.load(io.BytesIO(self.files["golden.npz"]), allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > _GOLDEN_LIMIT:
                    raise ValueError("the archive inflates to too much")
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for damaged archives
            which = f"{self.path / 'golden.npz'} ({type(error).__name__}: {str(error)[:120]})"
            raise BundleError("golden vectors unreadable", which, "export it again") from None


def graphs_of(contract: Contract) -> tuple[str, ...]:
    """The names of the files of a bundle's graphs: a third one where its prior is learned."""
    return (*GRAPHS, PRIOR) if contract.learned_prior else GRAPHS


def files_of(contract: Contract) -> tuple[str, ...]:
    """The names of the files that a bundle must have beside its manifest."""
    return (*FILES, PRIOR) if contract.learned_prior else FILES


def locate(name: str | PathLike[str] | None = None) -> Path:
    """The folder of a bundle: a path, or the name of one that ships with the package where no file here is called so.

    Such names are "mnist", also called "default", which None stands for too, and "fashion-mnist".
    """
    if name is None:
        return shipped()
    path = Path(name)
    if len(path.parts) == 1 and not path.exists() and (found := shipped(path.name)).is_dir():
        return found
    return path


def shipped(name: str = DEFAULT) -> Path:
    """The folder where a bundle of that name would ship with the package."""
    import importlib.util

    spec = importlib.util.find_spec("vae_artifacts")
    if spec is None or not spec.submodule_search_locations:
        raise BundleError("no bundle ships with this installation", "vae_artifacts", "name a bundle's folder")
    return Path(next(iter(spec.submodule_search_locations))) / ALIASES.get(name, name)


def read(path: Path) -> Bundle:
    """Read and verify the bundle in the folder `path`; where it is replaced meanwhile, the old one or the new, whole.

    Raises BundleError where it is missing, damaged, or of a format that this release does not know.
    """
    tries = _TRIES
    while True:
        files: dict[str, BufferedReader] = {}
        with ExitStack() as stack:
            try:
                for name in (MANIFEST, *FILES):  # all are open before one is read: those of a replaced bundle vanish
                    files[name] = stack.enter_context(_open(path / name))
                if (path / PRIOR).exists():
                    files[PRIOR] = stack.enter_context(_open(path / PRIOR))
                return _verify(path, files)
            except BundleError:
                tries -= 1
                if tries == 0 or not _replaced(path, files.get(MANIFEST)):
                    raise


def reread(path: Path, sha256: str) -> Bundle:
    """The bundle of a known manifest again, for another process. Raises BundleError where it has changed."""
    bundle = read(path)
    if bundle.manifest.sha256 != sha256:
        raise BundleError("bundle changed since it was loaded", path, "load it again")
    return bundle


def carried(path: Path, manifest: Manifest, name: str) -> bytes | None:
    """A file that the bundle at `path` may have, of which its manifest knows; None where it has not.

    Raises BundleError where it is not what the manifest says: damaged, or of a bundle that took this one's place.
    """
    if (known := manifest.files.get(name)) is None:
        return None
    with _open(path / name) as file:
        return _unchanged(bytes(_content(file, path / name, known.size)), path / name, known)


def _unchanged(data: bytes, file: Path, known: File) -> bytes:
    """What a file holds, if the manifest says so."""
    if not _is(data, known):
        todo = "load it again; where that does not help, copy or export it again"
        raise BundleError("bundle changed or damaged (size or sha256 differs)", file, todo)
    return data


def _is(data: bytes | memoryview, known: File) -> bool:
    return len(data) == known.size and hashlib.sha256(data).hexdigest() == known.sha256


def _verify(path: Path, files: dict[str, BufferedReader]) -> Bundle:
    """The bundle that these open files are. Raises BundleError unless they belong together and are as they were."""
    written = bytes(_content(files[MANIFEST], path / MANIFEST, _MANIFEST_LIMIT))
    manifest = manifests.parse(written, path / MANIFEST, FILES)
    needed = files_of(manifest.contract)
    for name in needed:
        if name not in files or name not in manifest.files:
            raise _unreadable(FileNotFoundError(), path / name)
    kept = Files(path, manifest.files)
    pages = _pages(max(_most(files[name], manifest.files[name].size) for name in needed))
    for name in needed:
        data = _content(files[name], path / name, manifest.files[name].size, pages)
        if not _is(data, manifest.files[name]):
            raise BundleError("bundle damaged (size or sha256 differs)", path / name, "copy or export it again")
        if name in graphs_of(manifest.contract):
            safety.check(data, str(path / name), scans=name == PRIOR)
            _check_contract(data, path / name, manifest.raw["contract"])
        kept.add(name, data, files[name])
    return Bundle(path, manifest, kept)


def _replaced(path: Path, manifest: BufferedReader | None) -> bool:
    """Whether the folder has another manifest than the one that was opened, if one was, or may have one in a moment."""
    import glob

    folder = Path(os.path.realpath(path))
    # a file system that cannot exchange two folders has none here for an instant, but both beside it
    soon = manifest is None and any(folder.parent.glob(f".{glob.escape(folder.name)}.*"))
    try:
        now = (folder / MANIFEST).stat()
    except OSError:
        if soon:
            time.sleep(_PAUSE)
        return soon or manifest is not None
    return manifest is None or not os.path.samestat(now, os.fstat(manifest.fileno()))


def _check_contract(data: memoryview, file: Path, contract: dict[str, Any]) -> None:
    """A graph carries its role and its bundle's contract, so that a mixed pair is refused."""
    try:
        carried = json.loads(safety.metadata(data).get(METADATA_KEY, "null"))
    except (ValueError, RecursionError):
        carried = None
    if carried != {**contract, "role": file.stem}:
        raise BundleError("graph belongs to another bundle", file, "keep the files of one export together")


def _open(path: Path) -> BufferedReader:
    """One file of a bundle, open for reading. Raises BundleError where it is missing or no file."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe or a terminal makes one wait
            raise BundleError("bundle unreadable (no regular file)", path, _NAME_ANOTHER)
        return path.open("rb")
    except OSError as error:
        raise _unreadable(error, path) from None


def _most(file: BufferedReader, limit: int) -> int:
    """How many bytes of a file are read: limit + 1 at most, so that a longer one is noticed and never read whole."""
    return min(limit, os.fstat(file.fileno()).st_size) + 1


def _pages(size: int) -> mmap.mmap:
    """Memory that the system has back at once.

    Of what malloc gave and got back, the C library would keep some megabytes, also while a graph is opened, which is
    when a process has the most.
    """
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, size)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones are half as fast
    except OSError:
        raise MemoryError from None


def _content(file: BufferedReader, path: Path, limit: int, pages: mmap.mmap | None = None) -> memoryview:
    """What a file holds, at most limit + 1 bytes, in these pages until they are used for another, or in new ones."""
    most = _most(file, limit)
    room = memoryview(pages or _pages(most))[:most]
    try:
        return room[: file.readinto(room)]
    except OSError as error:
        raise _unreadable(error, path) from None


def _unreadable(error: OSError, path: Path) -> BundleError:
    """The error for a file of a bundle that cannot be opened or read, with a word on what the folder is instead."""
    folder = path.parent
    if isinstance(error, NotADirectoryError):
        return BundleError("a file, not a bundle", folder, _NAME_ANOTHER)
    if not isinstance(error, FileNotFoundError):
        return BundleError(f"bundle unreadable ({error.strerror})", path, _NAME_ANOTHER)
    if path.name != MANIFEST:
        return BundleError("bundle incomplete, no such file", path, "copy or export it again")
    if (folder / RUN_CONFIG).exists():
        return BundleError(
            "a training run, not a bundle", folder, f"export it: {shlex.join(['vae-export', str(folder)])}"
        )
    return _not_found(folder)


def _not_found(folder: Path) -> BundleError:
    """The error for a folder that is none, or has no manifest: where it was looked for, and which bundles there are."""
    there = folder.is_dir()
    where = f"no {MANIFEST} in it" if there else f"not in {folder.absolute().parent}"
    beside = folder if there else folder.parent
    found = [file.parent for way in ("*", "bundles/*") for file in islice(beside.glob(f"{way}/{MANIFEST}"), _LISTED)]
    listed = f", such as {' or '.join(map(str, sorted(found)[:_LISTED]))}" if found else ""
    ship = f", or {' or '.join(names)}" if (names := _shipped_names()) else ""
    return BundleError("bundle not found", f"{folder} ({where})", f"{_NAME_ANOTHER}{listed}{ship}")


def _shipped_names() -> list[str]:
    """Of the bundles that ship with the package, where any do."""
    try:
        return sorted(file.parent.name for file in shipped().parent.glob(f"*/{MANIFEST}"))
    except BundleError:
        return []
