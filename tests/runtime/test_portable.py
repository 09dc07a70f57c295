"""The runtime where what only Linux or POSIX has is missing: modules, functions, signals, /proc and /sys, and libc."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vae_runtime import VAE
from vae_runtime.errors import EnvironmentUnfit
from vae_runtime.extras import require_posix

ROOT = Path(__file__).parents[2]

# What stands before a script: it takes away what other systems lack, once the packages that are built for this one, and
# rely on it, are there.
HIDE = """
import ctypes, os, signal, subprocess, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import click._termui_impl, numpy, onnxruntime, PIL.Image
MODULES = {"fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty"}
FUNCTIONS = ("sched_getaffinity", "sysconf", "fork", "uname", "getuid", "geteuid", "getloadavg", "posix_fallocate",
             "sched_setaffinity", "fchmod", "mkfifo", "killpg", "getpgid", "setsid", "wait4")
SIGNALS = ("SIGPIPE", "SIGHUP", "SIGALRM", "SIGKILL", "SIGUSR1", "SIGQUIT", "SIGXFSZ")
for name in MODULES:
    sys.modules[name] = None  # an import of it is a ModuleNotFoundError
for name in FUNCTIONS:
    if hasattr(os, name):
        delattr(os, name)
for name in SIGNALS:
    if hasattr(signal, name):
        delattr(signal, name)

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])
    if event == "ctypes.dlopen" and arguments[0] is None:  # as on Windows; no malloc_trim, no renameat2
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

sys.addaudithook(refuse)
"""

SEEN = """
import json, pathlib
seen = []
for name in ("fcntl", "termios"):
    try:
        __import__(name)
        seen.append(name)
    except ImportError:
        pass
seen += [name for name in ("sched_getaffinity", "fork") if hasattr(os, name)]
try:
    ctypes.CDLL(None)
    seen.append("libc")
except TypeError:
    pass
for path in ("/proc/self/status", "/proc/cpuinfo", "/sys/fs/cgroup/cpu.max"):
    try:
        pathlib.Path(path).read_text()
        seen.append(path)
    except OSError:
        pass
print(json.dumps(seen))
"""

WORK = """
import json, sys
import numpy as np
from vae_runtime import VAE
from vae_runtime.cli import main

def command(*words):
    sys.argv = ["vae-infer", *words]
    try:
        main()
    except SystemExit as left:
        assert not left.code, (words, left.code)

vae = VAE.load()
x = vae.sample(4, seed=3)
np.savez("api.npz", x=x, elbo=vae.elbo(x, 8), mu=vae.encode(x)[0], reconstructed=vae.reconstruct(x))
command("sample", "-n", "4", "--seed", "3", "-o", "samples.npy")
command("sample", "-n", "4", "-o", "grid.png")
command("reconstruct", DIGITS, "-o", "pairs")
command("--threads", "2", "elbo", DIGITS, "-o", "scores.csv")
command("verify")
command("doctor")
"""


def hidden(script: str, folder: Path) -> str:
    """What a script prints in a process of its own, where all that is hidden."""
    done = subprocess.run([sys.executable, "-c", HIDE + script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_what_is_hidden_is_not_to_be_had(tmp_path: Path) -> None:
    """The checker itself: modules, functions, the C library and the kernel's files are gone, and were there before."""
    assert json.loads(hidden(SEEN, tmp_path)) == []
    shown = subprocess.run(
        [sys.executable, "-c", "import ctypes, os" + SEEN], capture_output=True, text=True, check=True
    )
    assert {"fcntl", "termios", "sched_getaffinity", "fork", "libc", "/proc/cpuinfo"} <= set(json.loads(shown.stdout))


def test_the_runtime_works_without_posix(tmp_path: Path) -> None:
    """It samples, encodes, reconstructs and scores, reads images and writes arrays, pictures, folders and tables."""
    said = hidden(f"DIGITS = {str(ROOT / 'examples' / 'digits')!r}\n" + WORK, tmp_path)
    assert "memory       unknown" in said
    assert "✗" not in said
    vae = VAE.load()
    x = vae.sample(4, seed=3)
    expected = {"x": x, "elbo": vae.elbo(x, 8), "mu": vae.encode(x)[0], "reconstructed": vae.reconstruct(x)}
    with np.load(tmp_path / "api.npz") as found:
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), x)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "pairs").glob("*.png"))) == 6
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 7


def test_tasks_that_need_posix_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and export lock files with fcntl: elsewhere they end in one line that names the task and the system."""
    require_posix("training")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EnvironmentUnfit, match="training needs a POSIX system: win32; "):
        require_posix("training")
