"""Open an ONNX graph from bytes with onnxruntime, quietly, and turn its exceptions into VaeError."""

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import BundleError, EnvironmentUnfit, ResourceError
from vae_runtime.extras import pip_install

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import: else a thread starts and a file is written
try:
    import onnxruntime
except ImportError as error:
    todo = f"install it: {pip_install('--upgrade', 'onnxruntime')}"
    raise EnvironmentUnfit("onnxruntime cannot be imported", error, todo) from None

Floats = NDArray[np.float32]


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
        _trim()
        if {node.type for node in (*self._session.get_inputs(), *self._session.get_outputs())} != {"tensor(float)"}:
            raise BundleError("graph of other types than float32", name, "export it again")
        self.inputs = {node.name: list(node.shape[1:]) for node in self._session.get_inputs()}
        self.outputs = {node.name: list(node.shape[1:]) for node in self._session.get_outputs()}

    def run(self, outputs: Sequence[str], x: Floats) -> list[Floats]:
        """Run the graph on its one input and return the outputs in the order asked for."""
        feed = {next(iter(self.inputs)): np.ascontiguousarray(x, np.float32)}
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
