"""What an ONNX graph is made of, read from its bytes without running it, and what a VAE's graph has no need of."""

from collections.abc import Iterator

from vae_runtime.errors import BundleError

_CONTROL = (b"If", b"Loop", b"Scan", b"SequenceMap")
_RANDOM = (
    b"RandomNormal",
    b"RandomNormalLike",
    b"RandomUniform",
    b"RandomUniformLike",
    b"Multinomial",
    b"Bernoulli",
    b"Dropout",
)

# Field numbers of onnx.proto: the messages to look into, and what is refused wherever it is found. No message holds
# itself here, but for a Scan's body where one is allowed, so the depth of the walk is bounded.
_INSIDE = {
    ("model", 7): "graph", ("graph", 1): "node", ("graph", 5): "tensor",
    ("node", 5): "attribute", ("attribute", 5): "tensor", ("attribute", 10): "tensor",
}  # fmt: skip
_REFUSED = {
    ("model", 20): "a training graph", ("model", 25): "a local function", ("graph", 15): "a sparse tensor",
    ("attribute", 6): "a subgraph", ("attribute", 11): "a subgraph", ("attribute", 22): "a sparse tensor",
    ("attribute", 23): "a sparse tensor", ("tensor", 13): "weights in another file",
}  # fmt: skip
_METADATA = 14  # of a model: pairs of a key, 1, and a value, 2
_GRAPH, _NODE, _TENSOR, _SIZES, _NAME = 7, 1, 5, 1, 8  # of a model, of a graph twice, of a tensor twice
_BODY, _OPERATOR, _DOMAIN, _LOCATION = ("attribute", 6), ("node", 4), ("node", 7), ("tensor", 14)


def check(graph: bytes | memoryview, name: str, scans: bool = False) -> None:
    """Raise BundleError where the graph holds what no VAE needs, or is no well-formed protobuf.

    scans: whether it may hold Scans, whose bodies hold none, over tensors that are stored in it: they end.

    Refused are subgraphs, control flow, local functions, random operators, operators of other domains than ONNX's own,
    sparse tensors and weights in other files. With them, a bundle whose hashes are valid could run forever, give other
    numbers each time, or read other files. What the remaining operators compute, and how much, is not judged here.
    """
    if graph[4:8] == b"ORTM":  # by these bytes onnxruntime knows its own format, which can hold all of that too
        raise BundleError("graph in onnxruntime's own format", name, "export it again, as ONNX")
    try:
        found = next(_findings(memoryview(graph), "model", int(scans)), None)
        if found is None and scans:
            found = next(_endless(memoryview(graph)), None)
    except ValueError as error:
        raise BundleError("graph damaged", f"{name} ({error})", "export it again") from None
    if found is not None:
        raise BundleError("graph holds what no VAE needs", f"{name} ({found})", "export it again without it")


def metadata(graph: bytes | memoryview) -> dict[str, str]:
    """The graph's metadata_props. Raises ValueError where the bytes are no protobuf or hold no text."""
    entries = [dict(_fields(value)) for number, value in _fields(memoryview(graph)) if number == _METADATA]
    return {str(entry.get(1, b""), "utf-8"): str(entry.get(2, b""), "utf-8") for entry in entries}


def _findings(data: memoryview, message: str, scans: int) -> Iterator[str]:
    """What is refused in the bytes of one message, in words. scans: how many may be nested."""
    for number, value in _fields(data):
        field = (message, number)
        if field in _INSIDE:
            yield from _findings(value, _INSIDE[field], scans)
        elif field == _BODY and scans:
            yield from _findings(value, "graph", scans - 1)
        elif field in _REFUSED:
            yield _REFUSED[field]
        elif field in (_OPERATOR, _DOMAIN, _LOCATION):
            text = bytes(value[:40])
            if field == _OPERATOR and text in _CONTROL + _RANDOM and not (text == b"Scan" and scans):
                yield f"{'control flow' if text in _CONTROL else 'a random operator'}, {text.decode()}"
            elif field == _DOMAIN and text not in (b"", b"ai.onnx"):
                yield f"an operator of the domain {ascii(text)[1:]}"
            elif field == _LOCATION and text != b"\0":
                yield "weights in another file"


def _endless(model: memoryview) -> Iterator[str]:
    """What is refused where Scans may be: one whose rounds are not the rows of a stored tensor, and other bodies.

    onnxruntime refuses a Scan whose inputs have different numbers of rows, so that the last one stands for all.
    """
    graph = [part for number, value in _fields(model) if number == _GRAPH for part in _fields(value)]
    tensors = [[*_fields(value)] for number, value in graph if number == _TENSOR]
    stored = {bytes(value) for tensor in tensors for number, value in tensor if number == _NAME}
    if any(0 in _varints(value) for tensor in tensors for number, value in tensor if number == _SIZES):
        yield "an empty tensor"  # which has any number of rows
    for node in ([*_fields(value)] for number, value in graph if number == _NODE):
        inputs, outputs, operators = ([bytes(value) for found, value in node if found == part] for part in (1, 2, 4))
        if operators[-1:] == [b"Cast"] and stored.issuperset(inputs):
            stored.update(outputs)
        if operators[-1:] == [b"Scan"]:
            if stored.isdisjoint(inputs[-1:]):
                yield "a Scan that need not end"
        elif any(number == _BODY[1] for part, value in node if part == 5 for number, _ in _fields(value)):
            yield _REFUSED[_BODY]


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and undecoded value, not copied, of each field of a message. Raises ValueError where it is no protobuf."""
    i, end = 0, len(data)
    while i < end:
        key, i = _varint(data, i)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29 or wire not in (0, 1, 2, 5):
            raise ValueError(f"no protobuf: field {number} of wire type {wire}")
        start = i
        if wire == 0:
            _, i = _varint(data, i)
        elif wire == 2:
            size, start = _varint(data, i)
            i = start + size
        else:
            i += 8 if wire == 1 else 4
        if i > end:
            raise ValueError("no protobuf: a field is longer than what holds it")
        yield number, data[start:i]


def _varints(data: memoryview) -> Iterator[int]:
    """The numbers of a field: one, or several that are packed."""
    i = 0
    while i < len(data):
        number, i = _varint(data, i)
        yield number


def _varint(data: memoryview, i: int) -> tuple[int, int]:
    """The base-128 number at index i, and the index after it."""
    if i < len(data) and data[i] < 128:  # nearly all have one byte
        return data[i], i + 1
    number = 0
    for k, byte in enumerate(data[i : i + 10]):
        number |= (byte & 127) << 7 * k
        if byte < 128:
            return number, i + k + 1
    raise ValueError("no protobuf: a number without an end")
