"""PyTorch's table of the operators that it can export, made once in a process and not anew for each graph."""

from functools import lru_cache


@lru_cache
def remember() -> None:
    """Keep the table once it is made: that takes longer than to trace and to write a graph as small as those here."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(lru_cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
