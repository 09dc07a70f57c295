"""Graphs that may become a bundle, in memory, and the VAE whose numbers they must give."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch

from vae_export import contract as contracts
from vae_export import golden, onnx_graph, prior_graph
from vae_runtime.bundle import Bundle, graphs_of
from vae_runtime.manifest import Contract, Manifest
from vae_runtime.observation import Observation, Shape
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train.flow import Flow
from vae_train.vae import VAE

GOLDEN = "golden.npz"
NETWORK = "the network in float64"

Graphs = dict[str, onnx.ModelProto]  # by their roles: encoder, decoder, and of a learned prior prior


@dataclass(frozen=True)
class Candidate:
    """What a bundle is made of, and the reference that the gate holds it against.

    vae: the reference, and `reference` what it is, for people. contract: what all graphs have in their metadata.
    files: the graphs with it, and golden vectors. float32_layers: of int8, those of encoder and decoder that are not.
    """

    precision: str
    reference: str
    vae: VAE
    contract: Contract
    graphs: Graphs
    files: dict[str, bytes]
    float32_layers: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all graphs."""
        return sum(len(self.files[name]) for name in graphs_of(self.contract))

    def runtime(self) -> RuntimeVAE:
        """The graphs in the shipped runtime, on one thread."""
        return RuntimeVAE(Bundle(Path(self.precision), Manifest("", self.contract, {}), self.files), num_threads=1)


def fp32(vae: VAE, observation: Observation, opset: int, reference: str = NETWORK) -> Candidate:
    """The graphs as they are computed: with float32 weights. reference: what `vae` is in float64, for people."""
    graphs = export(vae, observation.shape, opset)
    return assemble("fp32", reference, vae, observation, graphs)


def export(vae: VAE, shape: Shape, opset: int) -> Graphs:
    """The graphs of a VAE of observations [batch, *shape]."""
    x, z = torch.zeros(2, *shape), torch.zeros(2, *vae.latent_shape)
    graphs = {
        "encoder": onnx_graph.to_onnx(vae.encoder, x, "x", ["mu", "logsigma"], opset),
        "decoder": onnx_graph.to_onnx(vae.decoder, z, "z", [vae.likelihood.output], opset),
    }
    if contracts.learned_prior(vae):
        assert isinstance(vae.prior, Flow)  # which is the one that is learned
        graphs["prior"] = prior_graph.to_onnx(vae.prior, opset)
    return graphs


def assemble(precision: str, reference: str, vae: VAE, observation: Observation, graphs: Graphs) -> Candidate:
    """Give all graphs the contract that they must share, and golden vectors, which are the reference's."""
    models = b"".join(model.SerializeToString(deterministic=True) for model in graphs.values())
    contract = contracts.of(vae, observation, hashlib.sha256(models).hexdigest()[:16])
    files = {f"{role}.onnx": onnx_graph.stamp(model, contract.json(), role) for role, model in graphs.items()}
    return Candidate(precision, reference, vae, contract, graphs, {**files, GOLDEN: golden.archive(vae, observation)})
