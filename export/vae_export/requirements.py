"""What a bundle's graphs ask of a runtime: opset, IR version, operators, and the oldest onnxruntime that has them."""

from collections import Counter
from typing import Any

import onnx

# The first onnxruntime of each opset and IR version: onnxruntime.ai/docs/reference/compatibility up to 1.20. From there
# on, and for opset 19, whose Reshape 1.15 lacks, as measured with graphs of this package:
# tests/export/test_requirements.py.
_OPSETS = {17: (1, 12), 18: (1, 14), 19: (1, 16), 20: (1, 17), 21: (1, 18), 22: (1, 21), 23: (1, 23)}
_IR_VERSIONS = {8: (1, 9), 9: (1, 16), 10: (1, 18), 11: (1, 23)}
_FIRST_FOR_PYTHON = (1, 15)  # of the oldest Python that vae-edge runs on, 3.11
NEWEST_OPSET = max(_OPSETS)


def describe(encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> dict[str, Any]:
    """The entry `onnx` of a bundle's manifest; docs/bundle.md has its fields."""
    models = {"encoder": encoder, "decoder": decoder}
    opset = max(entry.version for model in models.values() for entry in model.opset_import)
    ir_version = max(model.ir_version for model in models.values())
    oldest = max(_OPSETS[opset], _IR_VERSIONS[ir_version], _FIRST_FOR_PYTHON)
    return {
        "opset": opset,
        "ir_version": ir_version,
        "min_onnxruntime": ".".join(map(str, (*oldest, 0))),
        "operators": {
            role: dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
            for role, model in models.items()
        },
    }
