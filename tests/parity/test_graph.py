"""What is refused in a graph's bytes before onnxruntime sees them, judged against the onnx package's parser."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto, helper

from support import operators
from vae_export import onnx_graph as exporter
from vae_runtime import VAE, BundleError
from vae_runtime.bundle import GRAPHS, shipped
from vae_runtime.safety import check, metadata
from vae_runtime.sessions import Session
from vae_train import networks
from vae_train.config import PRESETS

RANDOM = [
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
]
CONTROL = ["If", "Loop", "Scan", "SequenceMap"]
FILE = [onnx.StringStringEntryProto(key="location", value="weights.bin")]
FAST = [("deep", exporter.OLDEST_OPSET), ("resnet-colour", exporter.newest_opset())]  # 2 to 5 s each
EXAMPLES = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def value(name: str) -> onnx.ValueInfoProto:
    """A float32 input or output [batch, 3]."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])


def model(*nodes: onnx.NodeProto) -> ModelProto:
    """y = x + w, and the given nodes beside it."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    add = helper.make_node("Add", ["x", "w"], ["y"], name="add")
    graph = helper.make_graph([add, *nodes], "g", [value("x")], [value("y")], initializer=[weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")


def constant(tensor: TensorProto) -> onnx.NodeProto:
    """A Constant node that holds the tensor."""
    return helper.make_node("Constant", [], ["c"], value=tensor)


def outside() -> TensorProto:
    """A tensor whose data lie in another file."""
    return TensorProto(name="o", data_type=TensorProto.FLOAT, dims=[3], data_location=1, external_data=FILE)


def body() -> onnx.GraphProto:
    """The graph of a branch or a loop."""
    return helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "body", [], [value("b")])


def with_attribute(**fields: object) -> ModelProto:
    """A node that carries one attribute of these fields."""
    result = model(helper.make_node("Relu", ["x"], ["r"]))
    result.graph.node[1].attribute.append(AttributeProto(name="a", **fields))
    return result


def with_initializer(**fields: object) -> ModelProto:
    """An initializer more, of these fields."""
    result = model()
    result.graph.initializer.append(TensorProto(name="more", data_type=TensorProto.FLOAT, dims=[3], **fields))
    return result


def function() -> ModelProto:
    """A function defined in the model itself, and its call."""
    result = model(helper.make_node("F", ["x"], ["f"]))
    relu = helper.make_node("Relu", ["a"], ["b"])
    result.functions.append(helper.make_function("", "F", ["a"], ["b"], [relu], [helper.make_opsetid("", 17)]))
    return result


def training() -> ModelProto:
    """A training graph beside the main one."""
    result = model()
    result.training_info.add().algorithm.CopyFrom(body())
    return result


def sparse() -> onnx.SparseTensorProto:
    """A sparse tensor."""
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [3])


def sparse_initializer() -> ModelProto:
    """Weights stored sparsely."""
    result = model()
    result.graph.sparse_initializer.append(sparse())
    return result


def named(operator: str, domain: str = "") -> ModelProto:
    """A node of this operator and domain."""
    return model(helper.make_node(operator, ["x"], ["r"], domain=domain))


DOMAINS = ["com.microsoft", "ai.onnx.ml", "AI.ONNX", "ai.onnx ", "a" * 40]
HOSTILE: dict[str, tuple[Callable[[], ModelProto], str]] = {
    **{name: (partial(named, name), f"control flow, {name}") for name in CONTROL},
    **{name: (partial(named, name), f"a random operator, {name}") for name in RANDOM},
    **{f"domain {name}": (partial(named, "Relu", name), f"an operator of the domain '{name}'") for name in DOMAINS},
    "subgraph": (lambda: with_attribute(type=AttributeProto.GRAPH, g=body()), "a subgraph"),
    "empty subgraph": (lambda: with_attribute(g=onnx.GraphProto()), "a subgraph"),
    "subgraphs": (lambda: with_attribute(type=AttributeProto.GRAPHS, graphs=[body()]), "a subgraph"),
    "local function": (function, "a local function"),
    "training": (training, "a training graph"),
    "sparse initializer": (sparse_initializer, "a sparse tensor"),
    "sparse attribute": (lambda: with_attribute(sparse_tensor=sparse()), "a sparse tensor"),
    "sparse attributes": (lambda: with_attribute(sparse_tensors=[sparse()]), "a sparse tensor"),
    "initializer outside": (lambda: with_initializer(data_location=1), "weights in another file"),
    "initializer's file": (lambda: with_initializer(external_data=FILE), "weights in another file"),
    "constant outside": (lambda: model(constant(outside())), "weights in another file"),
    "list of constants": (lambda: with_attribute(tensors=[outside()]), "weights in another file"),
}
every_kind = pytest.mark.parametrize("kind", HOSTILE)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def is_hostile(parsed: ModelProto) -> bool:
    """What `check` promises to refuse, in terms of the onnx package's parsed model."""
    every = list(nodes(parsed.graph))
    attributes = [attribute for node in every for attribute in node.attribute]
    tensors = [*parsed.graph.initializer, *(a.t for a in attributes), *(t for a in attributes for t in a.tensors)]
    return (
        bool(parsed.functions or parsed.training_info or parsed.graph.sparse_initializer)
        or any(node.op_type in RANDOM + CONTROL or node.domain not in ("", "ai.onnx") for node in every)
        or any(a.HasField("g") or a.graphs or a.HasField("sparse_tensor") or a.sparse_tensors for a in attributes)
        or any(tensor.data_location or tensor.external_data for tensor in tensors)
    )


def refuses(graph: bytes, words: str) -> None:
    """The check raises BundleError of one line with `words`, what to do, and the graph's name."""
    with pytest.raises(BundleError) as caught:
        check(graph, "some.onnx")
    text = str(caught.value)
    assert words in text
    assert "some.onnx" in text
    assert caught.value.todo.startswith("export it again")
    assert text.isprintable()


@every_kind
def test_what_no_vae_needs_is_refused(kind: str):
    """Each kind is refused in words that name it."""
    make, words = HOSTILE[kind]
    graph = make().SerializeToString()
    assert is_hostile(onnx.load_from_string(graph))
    refuses(graph, f"graph holds what no VAE needs: some.onnx ({words}")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_bundle_is_checked(tiny_bundle: Path, forge: Callable[..., Path], name: str):
    """Loading a bundle whose hashes and contract are valid checks both of its graphs."""
    graph = (tiny_bundle / name).read_bytes() + function().SerializeToString()
    assert onnx.load_from_string(graph).metadata_props
    out = forge({name: graph})
    with pytest.raises(BundleError, match="graph holds what no VAE needs") as caught:
        VAE.load(out)
    assert str(out / name) in str(caught.value)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_standard_operators_pass(domain: str):
    """A graph of the standard domain, under either of its names, passes, and constants inside it do too."""
    inside = constant(helper.make_tensor("c", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    graph = model(helper.make_node("Relu", ["x"], ["r"], domain=domain), inside).SerializeToString()
    assert not is_hostile(onnx.load_from_string(graph))
    check(graph, "some.onnx")
    Session(graph, "some.onnx")


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graphs_of_bundles_pass(tiny_bundle: Path, name: str):
    """The shipped graphs and those of the tiny bundle pass."""
    for folder in (shipped(), tiny_bundle):
        check((folder / name).read_bytes(), name)


@pytest.mark.parametrize(
    ("preset", "opset"),
    [
        pytest.param(preset, opset, marks=[] if (preset, opset) in FAST else pytest.mark.slow)
        for preset in PRESETS
        for opset in (exporter.OLDEST_OPSET, exporter.newest_opset())
    ],
)
def test_what_torch_exports_for_the_presets_passes(preset: str, opset: int):
    """Encoder and decoder of each preset, at the oldest and newest opset, are made of operators that pass."""
    config = PRESETS[preset]
    shape = (3, 32, 32) if preset == "resnet-colour" else (1, 28, 28)
    vae = networks.build(config.replace(hidden=(4,) * len(config.network.hidden)), shape)  # as deep, but narrow
    operators.remember()
    encoder = exporter.to_onnx(vae.encoder, torch.zeros(2, *shape), "x", ["mu", "logsigma"], opset)
    decoder = exporter.to_onnx(
        vae.decoder, torch.zeros(2, config.network.latent_dim), "z", [vae.likelihood.output], opset
    )
    for exported in (encoder, decoder):
        assert len(exported.graph.node) > 3
        check(exported.SerializeToString(), preset)


def test_a_second_part_is_seen():
    """A graph, an attribute or an operator's name that comes twice is merged by parsers, and both parts are looked at.

    Bytes of two messages, one after the other, are one message in protobuf.
    """
    good = model().SerializeToString()
    hidden = ModelProto(graph=helper.make_graph([helper.make_node("RandomNormalLike", ["x"], ["r"])], "g", [], []))
    for graph in (good + hidden.SerializeToString(), hidden.SerializeToString() + good):
        assert is_hostile(onnx.load_from_string(graph))
        refuses(graph, "a random operator, RandomNormalLike")
    for name in ("Loop", "If"):
        node = b"".join(onnx.NodeProto(op_type=part).SerializeToString() for part in ("Relu", name))
        assert onnx.NodeProto.FromString(node).op_type == name
        refuses(field(7, field(1, node)), f"control flow, {name}")


def scanning(*nodes: onnx.NodeProto, over: tuple[str, ...] = ("x", "w")) -> ModelProto:
    """A Scan whose body has these nodes, over what lies in `w`, a stored tensor."""
    body = helper.make_graph(nodes, "b", [], [])
    return model(helper.make_node("Scan", over, ["r"], num_scan_inputs=1, body=body))


def lets_pass(graph: ModelProto, found: str | None) -> None:
    """Where Scans may be, the graph passes, or is refused for what is `found`."""
    if found is None:
        check(graph.SerializeToString(), "some.onnx", scans=True)
        return
    with pytest.raises(BundleError, match=f"graph holds what no VAE needs: some.onnx \\({found}"):
        check(graph.SerializeToString(), "some.onnx", scans=True)


RELU = helper.make_node("Relu", ["x"], ["r"])


def test_a_scan_may_be_allowed():
    """Of a learned prior. Its body is looked into, and may hold neither another one nor a subgraph."""
    refuses(scanning(RELU).SerializeToString(), "control flow, Scan")
    lets_pass(scanning(RELU), None)
    (scan,) = (node for node in scanning(RELU).graph.node if node.op_type == "Scan")
    for node, found in (
        (helper.make_node("RandomNormalLike", ["x"], ["r"]), "a random operator, RandomNormalLike"),
        (helper.make_node("Relu", ["x"], ["r"], domain="com.microsoft"), "an operator of the domain 'com.microsoft'"),
        (constant(outside()), "weights in another file"),
        (helper.make_node("Loop", ["x"], ["r"]), "control flow, Loop"),
        (scan, "control flow, Scan"),
        (helper.make_node("Relu", ["x"], ["r"], body=body()), "a subgraph"),
    ):
        lets_pass(scanning(node), found)
    for name, (make, found) in HOSTILE.items():
        lets_pass(make(), "a Scan that need not end" if name == "Scan" else found)


def test_a_scan_must_end():
    """After the rows of a stored tensor, which may be cast. What is computed may have rows without number, and no size.

    All inputs of a Scan must have as many rows as the last one: else onnxruntime does not run it.
    """
    cast = scanning(RELU, over=("x", "v"))
    cast.graph.node.insert(0, helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT))
    lets_pass(cast, None)
    empty = scanning(RELU)
    empty.graph.initializer.append(helper.make_tensor("rows", TensorProto.INT64, [2], [1 << 62, 0]))
    empty.graph.node.insert(0, helper.make_node("ConstantOfShape", ["rows"], ["v"]))
    empty.graph.node[2].input[1] = "v"
    lets_pass(empty, "a Scan that need not end")
    for sizes in ([1 << 62, 0], [0]):
        hollow = scanning(RELU)
        hollow.graph.initializer.add(name="v", data_type=TensorProto.FLOAT, dims=sizes)
        lets_pass(hollow, "an empty tensor")
    packed = scanning(RELU).SerializeToString() + field(7, field(5, field(1, varint(1 << 62) + varint(0))))
    ModelProto.FromString(packed)
    with pytest.raises(BundleError, match="an empty tensor"):
        check(packed, "some.onnx", scans=True)
    lets_pass(scanning(RELU, over=()), "a Scan that need not end")
    x, y = value("x"), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "abc")
    inner = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "b", [a, b], [c])
    uneven = helper.make_graph(
        [helper.make_node("Scan", ["x", "w"], ["y"], num_scan_inputs=2, body=inner)], "g", [x], [y],
        initializer=[helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])],
    )  # fmt: skip
    made = helper.make_model(uneven, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    assert session.run(None, {"x": np.ones((3, 3), np.float32)})[0].shape == (3, 3)
    with pytest.raises(Exception, match="inconsistent sequence lengths"):
        session.run(None, {"x": np.ones((4, 3), np.float32)})


def test_onnxruntimes_own_format_is_refused(tmp_path: Path, tiny_bundle: Path):
    """onnxruntime opens bytes of its own format too, which the check cannot look into: their mark is refused."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "decoder.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(tiny_bundle / "decoder.onnx"), options)
    graph = (tmp_path / "decoder.ort").read_bytes()
    assert onnxruntime.InferenceSession(graph).get_inputs()[0].name == "z"
    refuses(graph, "graph in onnxruntime's own format")
    refuses(field(2, b"\0\0ORTM") + model().SerializeToString(), "graph in onnxruntime's own format")


@pytest.mark.parametrize(
    "entries", [{}, {"": ""}, {"key": "value"}, {"vae_edge": "{}", "ключ": "значение \U0001f600", "long": "x" * 10_000}]
)
def test_metadata_is_what_onnx_reads(entries: dict[str, str]):
    """The metadata of a graph are those that were set with the onnx package; of two equal keys, the last."""
    graph = model()
    helper.set_model_props(graph, entries)
    assert metadata(graph.SerializeToString()) == entries
    later = ModelProto()
    helper.set_model_props(later, {"key": "later"})
    assert metadata(graph.SerializeToString() + later.SerializeToString()) == {**entries, "key": "later"}


@pytest.mark.parametrize("graph", [b"\x00", b"\x72\x05", b"\x72\x02\x0a\x05", b"\x72\x03\x0a\x01\xff"])
def test_damaged_metadata_are_a_value_error(graph: bytes):
    """Bytes that are no protobuf, and text that is no UTF-8, raise ValueError."""
    with pytest.raises(ValueError, match=r"no protobuf|utf-8"):
        metadata(graph)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    groups = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(data)) + data


@pytest.mark.parametrize(
    "graph",
    [
        b"\x00",
        b"\x80",
        b"\xff" * 11,
        b"\x08",
        b"\x08" + b"\x80" * 10 + b"\x00",
        b"\x09\x00\x00\x00",
        b"\x0d\x00\x00",
        b"\x0f\x00",
        b"\x02\x00",
        varint((1 << 29) << 3 | 2) + b"\x00",
        varint(7 << 3 | 2 | 1 << 32) + b"\x00",
        varint(7 << 3 | 2) + varint(5) + b"\x00" * 4,
        varint(7 << 3 | 2) + varint(1 << 62),
        field(7, b"\x0a\x05"),
        field(7, field(1, b"\x22\x05If")),
        field(7, field(1, field(5, b"\x2a\x7f"))),
        field(7, field(5, b"\x4a\xff\xff\xff\xff\x0f")),
        b"not a graph at all",
    ],
    ids=lambda graph: graph.hex()[:24],
)
def test_bytes_that_are_no_protobuf_are_refused(graph: bytes):
    """Fields without end, of impossible numbers, kinds or lengths, at any depth, are damage in one line."""
    with pytest.raises(DecodeError):
        ModelProto.FromString(graph)
    refuses(graph, "graph damaged: some.onnx (no protobuf: ")


@pytest.mark.parametrize("more", [b"\x80\x00", b"\x01" + bytes(8), b"\x02\x03" + bytes(3), b"\x05" + bytes(4)])
def test_unknown_fields_are_stepped_over(more: bytes):
    """A field that ONNX does not have, of each kind that protobuf has, hides nothing that comes after it."""
    number, wire = 1000 << 3, more[0] & 7
    unknown = varint(number | wire) + more[1 if wire else 0 :]
    good, bad = model().SerializeToString(), named("RandomUniform").SerializeToString()
    assert ModelProto.FromString(unknown + good).graph == ModelProto.FromString(good).graph
    check(unknown + good, "some.onnx")
    refuses(unknown + bad, "a random operator, RandomUniform")


def test_groups_are_refused():
    """Protobuf's old groups, which no ONNX graph has, are refused rather than looked into."""
    group = varint(1 << 3 | 3) + varint(1 << 3 | 4)
    ModelProto.FromString(group)
    refuses(group, "graph damaged: some.onnx (no protobuf: field 1 of wire type 3)")


def test_a_claimed_length_is_not_allocated(peak_memory):
    """A dimension of 2^62 and a field that claims 2^62 bytes cost no memory to speak of."""
    tensor = varint(1 << 3) + varint(1 << 62) + field(9, b"1234") + varint(9 << 3 | 2) + varint(1 << 62)
    graph = field(7, field(5, tensor))
    assert peak_memory(lambda: refuses(graph, "graph damaged")) < 200_000


def test_weights_are_neither_copied_nor_read(peak_memory):
    """The shipped encoder's 2.7 MB are checked in a few kB of memory; megabytes of weights more do not change that."""
    graph = (shipped() / "encoder.onnx").read_bytes()
    heavy = onnx.load_from_string(graph)
    heavy.graph.initializer.add(name="heavy", data_type=TensorProto.FLOAT, dims=[1 << 24], raw_data=bytes(1 << 26))
    for data in (graph, heavy.SerializeToString()):
        assert peak_memory(partial(check, data, "encoder.onnx")) < 50_000


def test_depth_does_not_matter():
    """Branches nested 20,000 deep are refused at the first, without recursion."""
    node = b""
    for _ in range(20_000):
        node = field(4, b"Relu") + field(5, field(6, field(1, node)))
    refuses(field(7, field(1, node)), "a subgraph")


def test_every_beginning_of_a_graph_is_damage_or_harmless():
    """A graph cut at any byte raises BundleError or passes; where it passes, the onnx package parses it too."""
    graph = model(helper.make_node("Relu", ["x"], ["r"])).SerializeToString()
    passed = 0
    for size in range(len(graph)):
        try:
            check(graph[:size], "some.onnx")
        except BundleError:
            continue
        passed += 1
        ModelProto.FromString(graph[:size])
    assert 0 < passed < 10  # the ends of the model's few fields


@st.composite
def damaged(draw: st.DrawFn, graph: bytes) -> bytes:
    """The graph after one to four random changes: bytes overwritten, bits flipped, cut, doubled or cut out."""
    data = bytearray(graph)
    for kind in draw(st.lists(st.sampled_from(["byte", "bit", "cut", "double", "remove"]), min_size=1, max_size=4)):
        i = draw(st.integers(0, len(graph))) % (len(data) + 1)
        size = draw(st.integers(1, 20))
        if kind == "cut":
            del data[i:]
        elif kind == "double":
            data[i:i] = data[i : i + size]
        elif kind == "remove":
            del data[i : i + size]
        elif i < len(data):
            data[i] = draw(st.integers(0, 255)) if kind == "byte" else data[i] ^ 1 << size % 8
    return bytes(data)


def judged(graph: bytes) -> bool:
    """Whether the check passes the bytes; anything but None or BundleError fails the test."""
    try:
        check(graph, "some.onnx")
    except BundleError as error:
        assert str(error).isprintable()
        return False
    return True


@EXAMPLES
@given(graph=damaged(model(helper.make_node("Relu", ["x"], ["r"], domain="ai.onnx")).SerializeToString()))
def test_damage_ends_in_a_bundle_error_or_nothing(graph: bytes):
    """300 random damages of a valid graph raise BundleError or nothing; what passes is harmless to onnx's parser."""
    if judged(graph):
        try:
            parsed = ModelProto.FromString(graph)
        except DecodeError:
            return  # damage in a part that the check does not look into, which is left to onnxruntime
        assert not is_hostile(parsed)


MADE = [make().SerializeToString() for make, _ in HOSTILE.values()]


@EXAMPLES
@given(graph=st.sampled_from(MADE).flatmap(damaged))
def test_damage_hides_nothing(graph: bytes):
    """300 random damages of hostile graphs: where onnx's parser still finds something hostile, the check refuses."""
    try:
        hostile = is_hostile(ModelProto.FromString(graph))
    except DecodeError:
        hostile = False
    assert not (judged(graph) and hostile)


def test_damage_is_of_both_kinds():
    """The reference of the property tests can tell: one byte changed makes some graphs hostile, and others not."""
    graph = model(helper.make_node("Relu", ["x"], ["r"], domain="ai.onnx")).SerializeToString()
    verdicts = set()
    for i, byte in itertools.product(range(len(graph)), (0, 88)):
        try:
            parsed = ModelProto.FromString(graph[:i] + bytes([byte]) + graph[i + 1 :])
        except DecodeError:
            verdicts.add("damaged")
        else:
            verdicts.add("hostile" if is_hostile(parsed) else "harmless")
    assert verdicts == {"damaged", "hostile", "harmless"}
