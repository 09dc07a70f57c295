"""The graphs that tests write without the onnx package are graphs, and the tiny bundle is what its script makes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from support import bundles, graphs, make_tiny
from vae_runtime import VAE
from vae_runtime.bundle import GRAPHS, METADATA_KEY, read
from vae_train.config import parse


@pytest.mark.parametrize("likelihood", bundles.LIKELIHOODS)
def test_written_graphs_are_what_onnx_writes(forge: bundles.Forge, likelihood: str) -> None:
    """The onnx package's checker, with its shape inference, passes both graphs of a forged bundle."""
    out = bundles.linear(forge, likelihood, (2, 5, 6))
    for name in GRAPHS:
        model = onnx.load(out / name)
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == 17


def test_each_kind_of_attribute_is_read_as_it_was_meant() -> None:
    """An integer, a list, a tensor and a graph come back from onnx's parser; so do a domain and data elsewhere."""
    body = graphs.graph([graphs.node("Cos", ["n"], ["m"])], [], [graphs.value("m", [], graphs.BOOL)])
    written = graphs.node(
        "Any", ["a", ""], ["b"], "some.where", i=-3, axes=[1, 2], t=graphs.tensor("t", [[1.5]]), body=body
    )
    node = onnx.NodeProto.FromString(written)
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (node.op_type, node.domain, list(node.input), list(node.output)) == ("Any", "some.where", ["a", ""], ["b"])
    assert (found["i"], found["axes"]) == (-3, [1, 2])
    np.testing.assert_array_equal(numpy_helper.to_array(found["t"]), np.float32([[1.5]]))
    assert found["body"].output[0].type.tensor_type.elem_type == onnx.TensorProto.BOOL
    tensor = onnx.TensorProto.FromString(graphs.outside("w", 20, location="x", offset="4"))
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    assert {entry.key: entry.value for entry in tensor.external_data} == {"location": "x", "offset": "4"}


@pytest.mark.slow
def test_the_script_makes_such_a_bundle(tmp_path: Path) -> None:
    """support/make_tiny.py still makes a bundle of the committed one's contract, settings and kinds of steps."""
    make_tiny.make(tmp_path / "tiny", epochs=1)
    made, tiny = read(tmp_path / "tiny").manifest, read(bundles.TINY).manifest
    assert replace(made.contract, pair="") == replace(tiny.contract, pair="")
    settings = [parse(manifest.settings).replace(epochs=1) for manifest in (made, tiny)]
    assert settings[0] == settings[1]
    assert made.onnx == tiny.onnx
    for name in GRAPHS:
        stamps = [
            json.loads({it.key: it.value for it in onnx.load(path / name).metadata_props}[METADATA_KEY])
            for path in (tmp_path / "tiny", bundles.TINY)
        ]
        assert {**stamps[0], "pair": ""} == {**stamps[1], "pair": ""}
    assert VAE.load(tmp_path / "tiny").sample(2).shape == (2, 1, 28, 28)
