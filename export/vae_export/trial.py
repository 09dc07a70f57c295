"""The export of a VAE, tried before it is trained: what would be refused, and what its graphs say of its outputs."""

import linecache
import re

import torch
from torch import fx
from torch.export import ExportedProgram

from vae_export import capture, code_lines, onnx_graph
from vae_export.ends import operator
from vae_runtime.errors import BundleError
from vae_runtime.observation import Shape
from vae_train.pitfalls import LOGITS, Found
from vae_train.vae import VAE

_HALVE = "return 0.5 * logvar in its place, which is log sigma"
_LOGVAR = re.compile(r"log_?var|log_?(?:sigma|std)_?(?:2|sq)|(?<![a-z])lv(?![a-z])", re.IGNORECASE)
_BOUNDED = ("sigmoid", "hardsigmoid", "softmax", "_softmax")
_MOVES = frozenset({"view", "reshape", "unflatten", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "clone"})


def try_out(vae: VAE, shape: Shape) -> Found:
    """What an export would refuse, by network, and what to write; the graphs are written, opened and run once.

    Also, by what the traced networks say: a sigmoid at the decoder's end, under a likelihood of binary pixels, and a
    second output of the encoder that is called a log variance and is not halved.
    """
    found = {}
    x, z = torch.zeros(2, *shape), torch.zeros(2, *vae.latent_shape)
    for name, module, example, input_name, outputs in (
        ("encoder", vae.encoder, x, "x", ["mu", "logsigma"]),
        ("decoder", vae.decoder, z, "z", [vae.likelihood.output]),
    ):
        try:
            onnx_graph.to_onnx(module, example, input_name, outputs, onnx_graph.OLDEST_OPSET)
        except BundleError as error:
            found[name] = f"vae-export would refuse the {name}: {error.which}; {error.todo}"
            continue
        program = capture.capture(module, example, name)
        owns, ends = code_lines.owner(module), program.graph.output_node().all_input_nodes
        if name == "decoder" and vae.likelihood.binary and (end := _bounded(ends[0])):
            found["likelihood"] = f"the decoder ends in a sigmoid{_at(end, owns)}; {LOGITS}"
        if name == "encoder" and (named := _log_variance(ends[-1], program, owns)):
            node, word = named
            found["posterior"] = f"the encoder gives {word} where log sigma is wanted{_at(node, owns)}; {_HALVE}"
    return found


def _at(node: fx.Node, owns: code_lines.Owns) -> str:
    """The line of a person's code, where it is known."""
    line = code_lines.of_node(node, owns)
    return f": {code_lines.shown(line)}" if line else ""


def _bounded(node: fx.Node) -> fx.Node | None:
    """The operator behind a network's output, shape aside, if it gives numbers in [0, 1]."""
    while operator(node) in _MOVES:
        node = node.all_input_nodes[0]
    return node if operator(node) in _BOUNDED else None


def _log_variance(node: fx.Node, program: ExportedProgram, owns: code_lines.Owns) -> tuple[fx.Node, str] | None:
    """What calls an output a log variance, back to the layer that made it: a layer's name or a line; None if halved."""
    parameters, queue, found = program.graph_signature.inputs_to_parameters, [node], None
    for of in queue:
        if operator(of) in ("mul", "div") and {0.5, 2} & {arg for arg in of.args if isinstance(arg, int | float)}:
            return None
        line = code_lines.of_node(of, owns)
        for words in (capture.module_of(of), linecache.getline(*line) if line else ""):
            if _LOGVAR.search(words) and found is None:
                found = of, next(word for word in re.findall(r"\w+", words) if _LOGVAR.search(word))
        if not any(made.name in parameters for made in of.all_input_nodes):
            queue += [made for made in of.all_input_nodes if made.op == "call_function" and made not in queue]
    return found
