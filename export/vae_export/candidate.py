"""Two graphs that may become a bundle, in memory, and the VAE whose numbers they must give."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch

from vae_export import contract as contracts
from vae_export import golden, onnx_graph
from vae_runtime.bundle import DECODER, ENCODER, Bundle
from vae_runtime.manifest import Contract, Manifest
from vae_runtime.observation import Observation, Shape
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train.vae import VAE

GOLDEN = "golden.npz"
NETWORK = "the network in float64"


@dataclass(frozen=True)
class Candidate:
    """What a bundle is made of, and the reference that the gate holds it against.

    vae: the reference, and `reference` what it is, for people. contract: what both graphs have in their metadata.
    files: the graphs with it, and golden vectors. float32_layers: of int8, those that are not.
    """

    precision: str
    reference: str
    vae: VAE
    contract: Contract
    encoder: onnx.ModelProto
    decoder: onnx.ModelProto
    files: dict[str, bytes]
    float32_layers: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of both graphs."""
        return len(self.files[ENCODER]) + len(self.files[DECODER])

    def runtime(self) -> RuntimeVAE:
        """The graphs in the shipped runtime, on one thread."""
        return RuntimeVAE(Bundle(Path(self.precision), Manifest("", self.contract, {}), self.files), num_threads=1)


def fp32(vae: VAE, observation: Observation, opset: int, reference: str = NETWORK) -> Candidate:
    """The graphs as they are computed: with float32 weights. reference: what `vae` is in float64, for people."""
    graphs = export(vae, observation.shape, opset)
    return assemble("fp32", reference, vae, observation, *graphs)


def export(vae: VAE, shape: Shape, opset: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graphs of a VAE's encoder and decoder, of observations [batch, *shape]."""
    x, z = torch.zeros(2, *shape), torch.zeros(2, *vae.latent_shape)
    encoder = onnx_graph.to_onnx(vae.encoder, x, "x", ["mu", "logsigma"], opset)
    return encoder, onnx_graph.to_onnx(vae.decoder, z, "z", [vae.likelihood.output], opset)


def assemble(
    precision: str,
    reference: str,
    vae: VAE,
    observation: Observation,
    encoder: onnx.ModelProto,
    decoder: onnx.ModelProto,
) -> Candidate:
    """Give both graphs the contract that they must share, and golden vectors, which are the reference's."""
    pair = hashlib.sha256(b"".join(m.SerializeToString(deterministic=True) for m in (encoder, decoder))).hexdigest()
    contract = contracts.of(vae, observation, pair[:16])
    files = {
        ENCODER: onnx_graph.stamp(encoder, contract.json(), "encoder"),
        DECODER: onnx_graph.stamp(decoder, contract.json(), "decoder"),
        GOLDEN: golden.archive(vae, observation),
    }
    return Candidate(precision, reference, vae, contract, encoder, decoder, files)
