"""How many faults the numeric gate catches: single ones, put into good graphs, and what they do to the ELBO.

    python benchmarks/mutations.py [--each 2] [--seed 0] [--steps 300] [--model MODEL] [--list]

Small networks of every kind are trained for a moment on scikit-learn's digits and exported. Of every kind of fault, up
to so many sites in each graph are chosen by seed. Each faulty bundle goes through the checks of the graphs, the
runtime's loading, and the gate; its effect is the difference of the ELBO of 500 test images, same noise, in nats.
"""

import argparse
import copy
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vae_export import candidate, gate, onnx_graph
from vae_runtime import manifest as manifests
from vae_runtime.errors import VaeError
from vae_runtime.observation import Observation
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import likelihoods, networks, pixels
from vae_train.config import PRESETS, Config
from vae_train.vae import VAE

OPSET, TEST, BATCH, NOISE_SEED = 17, 500, 64, 7
IMAGES = Observation.image((1, 8, 8))
ENOUGH = 0.01  # nats: a fault that does more must be caught

Edit = Callable[[Any], None]  # of a graph, or of the contract, in place


@dataclass(frozen=True)
class Fault:
    """A single fault: its kind, where it is, and the edit that makes it. part: "encoder", "decoder" or "contract"."""

    kind: str
    part: str
    place: str
    edit: Edit


@dataclass(frozen=True)
class Outcome:
    """What became of a fault. caught: by what, or "". mean, largest: effect on the ELBO of the test images, nats."""

    model: str
    fault: Fault
    caught: str
    mean: float
    largest: float

    @property
    def name(self) -> str:
        """For people: which fault, and where."""
        return f"{self.fault.kind} ({self.model}, {self.fault.part}, {self.fault.place})"


class Standardised(nn.Module):
    """Pixels less their mean, in units of their spread."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.3))
        self.register_buffer("spread", torch.tensor(0.4))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return (x - self.mean) / self.spread


class NormedEncoder(nn.Module):
    """Convolutions with every norm."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Standardised(),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 4, stride=2, padding=1),
            nn.BatchNorm2d(12),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 32),
            nn.LayerNorm(32),
            nn.Tanh(),
            nn.Linear(32, 2 * latent_dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images to mu and logsigma."""
        mu, logsigma = self.body(x).chunk(2, dim=1)
        return mu, logsigma.clamp(-10, 10)


class NormedDecoder(nn.Module):
    """Transposed convolutions, upsampling and norms."""

    def __init__(self, latent_dim: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(latent_dim, 48),
            nn.LayerNorm(48),
            nn.SiLU(),
            nn.Unflatten(1, (12, 2, 2)),
            nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1),
            nn.GroupNorm(4, 8),
            nn.ELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, out, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents to the likelihood's parameters."""
        parameters: Tensor = self.body(z)
        return parameters


def small(preset: str, likelihood: str, **sizes: Any) -> Config:
    """A preset's networks made small."""
    return PRESETS[preset].replace(likelihood=likelihood, latent_dim=8, precision="float32", **sizes)


MODELS = {
    "tutorial, bernoulli": small("tutorial", "bernoulli", hidden=(64,)),
    "deep, gaussian": small("deep", "gaussian", hidden=(48, 48)),
    "gated, discretised-logistic": small("gated", "discretised-logistic", hidden=(40,)),
    "resnet, bernoulli": small("resnet", "bernoulli", hidden=(8, 12), dense=32),
    "resnet, discretised-logistic": small("resnet", "discretised-logistic", hidden=(8, 12), dense=32),
    "norms, gaussian": small("tutorial", "gaussian"),
}


def train(name: str, levels: Tensor, steps: int) -> VAE:
    """The model of that name after so many steps of Adam."""
    config = MODELS[name]
    torch.manual_seed(0)
    shape = (levels.shape[1], levels.shape[2], levels.shape[3])
    if name.startswith("norms"):
        likelihood, latent_dim = likelihoods.KNOWN[config.network.likelihood](), config.network.latent_dim
        parts = NormedEncoder(latent_dim), NormedDecoder(latent_dim, likelihood.parameters_per_value)
        vae = VAE(*parts, latent_dim, likelihood)
        likelihood.constant(*pixels.moments(levels))
    else:
        vae = networks.build(config, shape)
        networks.start_at_constant(vae, *pixels.moments(levels))
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    vae.train()
    for _ in range(steps):
        some = levels[torch.randint(len(levels), (BATCH,))]
        x = pixels.binarise(some, torch.default_generator) if vae.likelihood.binary else pixels.unit(some)
        optimizer.zero_grad()
        (-vae.elbo(x).mean()).backward()
        optimizer.step()
    return vae.eval()


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits as uint8 [n, 1, 8, 8]: to train on, and 500 to test on."""
    from sklearn.datasets import load_digits

    levels = torch.from_numpy(np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[:, None])
    return levels[:-TEST], levels[-TEST:]


class Subject:
    """A trained model with its good graphs, what the gate expects, and the ELBO of the test images."""

    def __init__(self, name: str, steps: int, folder: Path) -> None:
        trained, self.test = digits()
        self.name, self.folder = name, folder
        self.vae = train(name, trained, steps)
        probe = self.test[: gate.BATCHES[-1]].numpy()
        made = candidate.fp32(self.vae, IMAGES, OPSET)
        self.contract, self.encoder, self.decoder = made.contract.json(), made.graphs["encoder"], made.graphs["decoder"]
        self.cases = gate.expect(self.vae, IMAGES, probe)
        good = self.load(self.contract, self.encoder, self.decoder)
        failed = [row.name for row in gate.judge(self.cases, good) if not row.passed]
        assert not failed, failed
        levels = pixels.fixed_draw(self.test) if self.vae.likelihood.binary else self.test
        self.x = pixels.unit(levels).numpy()
        self.elbo = good.elbo(self.x, seed=NOISE_SEED)

    def load(self, contract: dict[str, Any], encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> RuntimeVAE:
        """The runtime's VAE of these graphs, which have passed every check before the gate, or VaeError."""
        files = {"golden.npz": b"-"}
        for role, model in (("encoder", encoder), ("decoder", decoder)):
            onnx_graph.check(model, OPSET)
            files[f"{role}.onnx"] = onnx_graph.stamp(model, contract, role)
        listed = {n: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in files.items()}
        manifest = manifests.dump({"contract": contract, "files": listed})
        for file, data in {**files, "manifest.json": manifest}.items():
            (self.folder / file).write_bytes(data)
        return RuntimeVAE.load(self.folder, threads=1)

    def put(self, fault: Fault) -> Outcome:
        """Put the fault into a copy of the good graphs, and see who notices."""
        parts = {name: copy.deepcopy(getattr(self, name)) for name in ("contract", "encoder", "decoder")}
        fault.edit(parts[fault.part])
        try:
            faulty = self.load(**parts)
        except VaeError as error:
            return Outcome(self.name, fault, f"refused: {error.what}", math.inf, math.inf)
        failed = [row.name for row in gate.judge(self.cases, faulty) if not row.passed]
        try:
            off = np.abs(faulty.elbo(self.x, seed=NOISE_SEED) - self.elbo)
        except VaeError:
            off = np.array([math.inf])
        return Outcome(self.name, fault, ", ".join(failed), float(off.mean()), float(off.max()))

    def faults(self, each: int, rng: np.random.Generator) -> Iterator[Fault]:
        """Up to `each` faults of every kind in each part, chosen by `rng`."""
        by_kind: dict[tuple[str, str], list[Fault]] = {}
        for part in ("encoder", "decoder"):
            for fault in in_graph(getattr(self, part), part, rng):
                by_kind.setdefault((part, fault.kind), []).append(fault)
        for fault in in_contract(self.contract):
            by_kind.setdefault(("contract", fault.kind), []).append(fault)
        for found in by_kind.values():
            yield from (found[i] for i in rng.permutation(len(found))[:each])


def in_graph(model: onnx.ModelProto, part: str, rng: np.random.Generator) -> Iterator[Fault]:
    """Every fault that fits a graph somewhere."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            for kind, change in in_weights(tensor.name, numpy_helper.to_array(tensor), rng):
                yield Fault(kind, part, tensor.name, on_weights(tensor.name, change))
    for i, node in enumerate(model.graph.node):
        for kind, place, change in in_node(node):
            yield Fault(kind, part, f"{node.op_type} {i}{place}", on_node(i, change))
    if part == "encoder":
        yield Fault("outputs swapped", part, "mu, logsigma", swap_outputs)
    yield Fault("constant batch", part, "input", fix_input)
    for name in {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}:
        if name in {tensor.name for tensor in model.graph.initializer}:
            yield Fault("constant batch", part, name, on_weights(name, fix_batch))
    for bits in ("bfloat16", "float16"):
        yield Fault(f"all weights in {bits}", part, "all", on_all_weights(torch.__dict__[bits]))


Weights = NDArray[Any]


def in_weights(name: str, w: Weights, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[Weights], Weights]]]:
    """Faults of one tensor of weights or constants."""

    def scale(at: Any, factor: float) -> Callable[[Weights], Weights]:
        def change(w: Weights) -> Weights:
            w[at] *= np.float32(factor)
            return w

        return change

    def swap(a: Any, b: Any) -> Callable[[Weights], Weights]:
        def change(w: Weights) -> Weights:
            w[a], w[b] = w[b].copy(), w[a].copy()
            return w

        return change

    if w.size == 1:
        yield "a constant off by 1%", lambda w: w * np.float32(1.01)
        return
    one, other = (np.unravel_index(i, w.shape) for i in rng.choice(w.size, 2, replace=False))
    yield "one weight off by 1%", scale(one, 1.01)
    yield "one weight off by 0.01%", scale(one, 1.0001)
    yield "one weight off by 0.0001%", scale(one, 1.000001)
    yield "one weight zero", scale(one, 0)
    yield "one weight's sign", scale(one, -1)
    yield "a tensor off by 1%", scale(..., 1.01)
    yield "two weights swapped", swap(one, other)
    yield "a tensor in bfloat16", lambda w: torch.from_numpy(w).bfloat16().float().numpy()
    if len(w) > 1:
        a, b = rng.choice(len(w), 2, replace=False)
        yield "one channel off by 1%", scale(a, 1.01)
        yield "two channels swapped", swap(a, b)
    if name.endswith("bias"):
        yield "a bias dropped", np.zeros_like
    if w.ndim == 4 and w.shape[2] > 1:
        yield "a kernel transposed", lambda w: w.swapaxes(2, 3)
        yield "a kernel flipped", lambda w: w[:, :, ::-1, ::-1]
    if w.ndim == 2:
        yield "a kernel transposed", lambda w: w.T.reshape(w.shape)
        yield "a kernel flipped", lambda w: w[:, ::-1]


ACTIVATIONS = {
    "Relu": ("LeakyRelu", "Elu", "Identity", "Softplus"),
    "Sigmoid": ("HardSigmoid", "Tanh", "Identity"),
    "Tanh": ("Sigmoid", "Softsign", "Identity"),
    "Elu": ("Selu", "Relu", "Identity"),
    "Erf": ("Tanh",),
}
Change = Callable[[onnx.NodeProto], None]


def in_node(node: onnx.NodeProto) -> Iterator[tuple[str, str, Change]]:
    """Faults of one operator: kind, what becomes of it, and how."""

    def to(operator: str) -> Change:
        def change(node: onnx.NodeProto) -> None:
            node.op_type = operator
            del node.attribute[:]

        return change

    def attribute(name: str, value: Any) -> Change:
        def change(node: onnx.NodeProto) -> None:
            kept = [old for old in node.attribute if old.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])

        return change

    def reverse(node: onnx.NodeProto) -> None:
        node.input[:] = list(node.input)[::-1]

    has = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    for operator in ACTIVATIONS.get(node.op_type, ()):
        yield "another activation", f" to {operator}", to(operator)
    if node.op_type in ("Sub", "Div", "Concat"):
        yield "operands swapped", "", reverse
    if "epsilon" in has:
        for factor in (0.1, 10, 100):
            yield "a norm's epsilon", f" x {factor}", attribute("epsilon", has["epsilon"] * factor)
    if "pads" in has and any(has["pads"]):
        up, left, down, right = has["pads"]
        yield "padding", " shifted", attribute("pads", [up + 1, left, down - 1, right])
        yield "padding", " none", attribute("pads", [0, 0, 0, 0])
    if "strides" in has:
        yield "an attribute", " strides", attribute("strides", [step % 2 + 1 for step in has["strides"]])
    if "dilations" in has:
        yield "an attribute", " dilations", attribute("dilations", [2, 2])
    if node.op_type == "Gemm":
        yield "an attribute", " alpha", attribute("alpha", 1.01)
        yield "an attribute", " beta", attribute("beta", 0.99)
        yield "an attribute", " transB", attribute("transB", 1 - has.get("transB", 0))
    if node.op_type == "DepthToSpace":
        yield "an attribute", " mode", attribute("mode", "DCR" if has.get("mode") == b"CRD" else "CRD")
    if node.op_type == "Resize":
        yield "an attribute", " mode", attribute("mode", "linear")
        yield "an attribute", " nearest", attribute("nearest_mode", "ceil")
    if node.op_type == "Elu":
        yield "an attribute", " alpha", attribute("alpha", 1.01)


def in_contract(contract: dict[str, Any]) -> Iterator[Fault]:
    """Faults of the likelihood that the contract names."""
    likelihood = contract["likelihood"]
    if "settings" in likelihood:
        for off in (0.01, -0.1, 1e-4):
            changed = {**likelihood, "settings": {"logsigma": likelihood["settings"]["logsigma"] + off}}
            yield Fault("the likelihood", "contract", f"logsigma + {off}", on_key("likelihood", changed))
    for name in ("bernoulli", "gaussian", "discretised-logistic"):
        if name != likelihood["name"]:
            other = {"name": name} | ({"settings": {"logsigma": -1.0}} if name == "gaussian" else {})
            yield Fault("the likelihood", "contract", name, on_key("likelihood", other))


def on_key(key: str, value: Any) -> Edit:
    """Replace a value of the contract."""
    return lambda contract: contract.__setitem__(key, value)


def on_weights(name: str, change: Callable[[Weights], Weights]) -> Edit:
    """Change one tensor of a graph."""

    def edit(model: onnx.ModelProto) -> None:
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
        changed = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.array(changed, order="C"), name))

    return edit


def on_all_weights(dtype: torch.dtype) -> Edit:
    """Round all weights of a graph."""

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                values = torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(dtype).float().numpy()
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return edit


def on_node(i: int, change: Change) -> Edit:
    """Change one operator of a graph."""
    return lambda model: change(model.graph.node[i])


def swap_outputs(model: onnx.ModelProto) -> None:
    """The nodes that compute mu and logsigma write to each other's output."""
    other = {"mu": "logsigma", "logsigma": "mu"}
    for node in model.graph.node:
        node.output[:] = [other.get(name, name) for name in node.output]


def fix_input(model: onnx.ModelProto) -> None:
    """The batch size 2 is baked into the input's shape."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def fix_batch(shape: Weights) -> Weights:
    """The batch size 2 is baked into the shape that a Reshape gives."""
    shape[0] = 2
    return shape


def table(outcomes: list[Outcome]) -> str:
    """By kind: how many, how many without any effect, how many of the others were caught, and the worst missed."""
    lines = [f"{'fault':26}{'faults':>8}{'no effect':>11}{'caught':>8}{'missed':>8}{'largest effect missed':>24}"]
    kinds = sorted({outcome.fault.kind for outcome in outcomes})
    for kind in [*kinds, "all"]:
        some = [outcome for outcome in outcomes if kind in (outcome.fault.kind, "all")]
        equivalent = [outcome for outcome in some if outcome.largest == 0 and not outcome.caught]
        missed = [outcome for outcome in some if outcome.largest > 0 and not outcome.caught]
        largest = f"{max(o.largest for o in missed):.1e} nats" if missed else ""
        caught = len(some) - len(equivalent) - len(missed)
        lines.append(f"{kind:26}{len(some):8d}{len(equivalent):11d}{caught:8d}{len(missed):8d}{largest:>24}")
    return "\n".join(lines)


def run(names: Iterable[str], each: int, seed: int, steps: int) -> Iterator[Outcome]:
    """What became of the faults of these models."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(name, steps, Path(folder))
            for fault in subject.faults(each, np.random.default_rng(seed)):
                yield subject.put(fault)


def main() -> None:
    """Make the faults and print the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=2, help="faults of a kind in each graph, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--model", choices=MODELS, help="only one of the models")
    parser.add_argument("--list", action="store_true", help="list all faults with their effects, mean and largest")
    given = parser.parse_args()
    outcomes = []
    for outcome in run([given.model] if given.model else MODELS, given.each, given.seed, given.steps):
        outcomes.append(outcome)
        if given.list or not (outcome.caught or outcome.largest == 0):
            print(f"{outcome.largest:8.1e} {outcome.mean:8.1e} {outcome.name}: {outcome.caught[:60] or 'missed'}")
    print(table(outcomes))
    harmful = [outcome for outcome in outcomes if outcome.largest > ENOUGH]
    caught = sum(bool(outcome.caught) for outcome in harmful)
    print(f"{caught} of {len(harmful)} caught that change the ELBO of an image by more than {ENOUGH} nats")
    refused = sum(outcome.caught.startswith("refused") for outcome in outcomes)
    print(f"{refused} of all are refused by the checks before the gate")


if __name__ == "__main__":
    main()
