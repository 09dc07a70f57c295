"""The graphs of a bundle in onnxruntime: opened quietly when they are first used, again after a fork, and closed."""

import ctypes
import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vae_runtime import bundle as bundles
from vae_runtime.errors import ArgumentError, BundleError, EnvironmentUnfit, ResourceError
from vae_runtime.extras import pip_install
from vae_runtime.observation import Shape

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import: else a thread starts and a file is written
try:
    import onnxruntime
except ImportError as error:
    todo = f"install it: {pip_install('--upgrade', 'onnxruntime')}"
    raise EnvironmentUnfit("onnxruntime cannot be imported", error, todo) from None

Floats = NDArray[np.float32]


class Sessions:
    """The networks of a bundle. They may be used from many threads at once, and after a fork."""

    def __init__(self, bundle: bundles.Bundle, output: str, parameter_shape: Shape) -> None:
        """output, parameter_shape: the name and the shape of what the decoder gives, as the likelihood has them."""
        contract = bundle.manifest.contract
        latent = list(contract.latent_shape)
        self.output = output
        self._shapes = {
            bundles.ENCODER: ({"x": list(contract.observation.shape)}, {"mu": latent, "logsigma": latent}),
            bundles.DECODER: ({"z": latent}, {output: list(parameter_shape)}),
        }
        if contract.learned_prior:
            self._shapes[bundles.PRIOR] = (
                {"noise": latent, "z": latent}, {"z_of_noise": latent, "noise_of_z": latent, "log_prob": []}
            )  # fmt: skip
        self._path, self._files = bundle.path.absolute(), bundle.files
        self._opened: dict[str, Session] | None = {}
        self._process = os.getpid()
        self._locks: dict[int, threading.Lock] = {}  # one for each process: a fork may copy one that is held

    def encode(self, x: Floats) -> tuple[Floats, Floats]:
        """mu and logsigma, [rows, *latent shape] each, of observations x [rows, *shape], in one run."""
        mu, logsigma = self._session(bundles.ENCODER).run(("mu", "logsigma"), x)
        return mu, logsigma

    def decode(self, z: Floats) -> Floats:
        """The likelihood's parameters, [rows, *parameter shape], of latents z [rows, *latent shape], in one run."""
        return self._session(bundles.DECODER).run((self.output,), z)[0]

    def from_noise(self, noise: Floats) -> Floats:
        """z of standard normal noise under a learned prior, both [rows, *latent shape], in one run."""
        self._session(bundles.DECODER)  # it is needed next, and opened before this one its peak of memory is lower
        return self._session(bundles.PRIOR).run(("z_of_noise",), _in_company(noise), "noise")[0][: len(noise)]

    def to_noise(self, z: Floats) -> tuple[Floats, Floats]:
        """The noise [rows, *latent shape] that becomes z under a learned prior, and log p(z) [rows], in one run."""
        noise, log_prob = self._session(bundles.PRIOR).run(("noise_of_z", "log_prob"), _in_company(z), "z")
        return noise[: len(z)], log_prob[: len(z)]

    def _session(self, name: str) -> "Session":
        """The session of a graph, opened at its first use, and anew after a fork, where an inherited one may hang.

        Raises ArgumentError where they are closed, BundleError where the graph is not what the contract says.
        """
        if self._process != os.getpid() or name not in (self._opened or ()):
            with self._lock():
                self._open(name)
        if (opened := self._opened) is None:
            raise ArgumentError("closed VAE", self._path, "load it again")
        return opened[name]

    def close(self) -> None:
        """Free all of them."""
        with self._lock():
            self._opened, self._files = None, {}

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _open(self, name: str) -> None:
        """Open a graph in this process, unless that is done, and check that it is what the contract says."""
        if self._opened is None:
            return
        if self._process != os.getpid():
            self._opened, self._process = {}, os.getpid()
        if name in self._opened:
            return
        session = Session(self._files[name], str(self._path / name))
        if (session.inputs, session.outputs) != self._shapes[name]:
            found = f"{session.name} ({session.inputs} to {session.outputs})"
            raise BundleError("graph's shapes are not the contract's", found, "export it again")
        self._opened[name] = session


class Session:
    """One graph, run on the CPU by the thread that calls."""

    def __init__(self, graph: bytes, name: str) -> None:
        """Raises BundleError where onnxruntime refuses the graph."""
        self.name = name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # threads.py says why, and no pinning of threads, which containers forbid
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # weights are embedded; a graph that names other files finds none below this path
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            if _of_memory(error):
                raise ResourceError("out of memory", f"loading {name}", "free memory and try again") from None
            raise BundleError("onnxruntime refuses the graph", f"{name} ({_short(error)})", "export it again") from None
        self._session._model_bytes = None  # which it would keep for other providers
        _trim()
        if {node.type for node in (*self._session.get_inputs(), *self._session.get_outputs())} != {"tensor(float)"}:
            raise BundleError("graph of other types than float32", name, "export it again")
        self.inputs = {node.name: list(node.shape[1:]) for node in self._session.get_inputs()}
        self.outputs = {node.name: list(node.shape[1:]) for node in self._session.get_outputs()}

    def run(self, outputs: Sequence[str], x: Floats, given: str | None = None) -> list[Floats]:
        """Run the graph on its one input, or on the one `given`, and return the outputs in the order asked for.

        Other inputs have no rows: what is asked for must not depend on them.
        """
        given = given or next(iter(self.inputs))
        feed = {name: np.empty((0, *shape), np.float32) for name, shape in self.inputs.items() if name != given}
        feed[given] = np.ascontiguousarray(x, np.float32)
        try:
            results = list(self._session.run(list(outputs), feed))
        except Exception as error:  # as above
            if _of_memory(error):
                todo = "free memory or use smaller batches"
                raise ResourceError("out of memory", f"running {self.name}", todo) from None
            raise BundleError(
                "onnxruntime cannot run the graph", f"{self.name} ({_short(error)})", "export it again"
            ) from None
        for output, result in zip(outputs, results, strict=True):
            if result.shape != (len(x), *self.outputs[output]):
                which = f"{self.name} ({output} {list(result.shape)})"
                raise BundleError("graph gives another shape than it declares", which, "export it again")
        return results


def _in_company(rows: Floats) -> Floats:
    """The rows; one alone twice.

    onnxruntime adds up the products of one row with weights that it takes from a stack in another order than those of
    several rows, and no observation's figures may depend on the others.
    """
    return rows.repeat(2, axis=0) if len(rows) == 1 else rows


def _trim() -> None:
    """Give memory back to the system, where the C library can: opening a graph takes its weights' size three times."""
    with suppress(AttributeError, OSError, TypeError):  # other libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out; what onnxruntime raises has no type of its own for that."""
    return isinstance(error, MemoryError) or "bad allocation" in str(error) or "Failed to allocate" in str(error)


def _short(error: Exception) -> str:
    """The first line of an exception's text, cut to what fits on a terminal."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:400]
