"""Score a job of table.py with onnx's ReferenceEvaluator: `python reference.py JOB float32|float64` prints JSON.

With float64, weights and all steps between are double: the reference, whose own rounding does not count. The terms of
the ELBO are summed in double either way, by formulas that share no code with the runtime's.
"""

import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from vae_export.reference import readable


def main(job: Path, dtype: str) -> None:
    """Print the scores of the job's images as JSON."""
    contract = json.loads((job / "manifest.json").read_bytes())["contract"]
    x = np.fromfile(job / "x.f32", "<f4").reshape(-1, *contract["observation"]["shape"]).astype(dtype)
    eps = np.fromfile(job / "eps.f32", "<f4").reshape(-1, *contract["latent_shape"]).astype(dtype)
    mu, logsigma = evaluator(job / "encoder.onnx", dtype).run(["mu", "logsigma"], {"x": x})
    z = mu + np.exp(logsigma) * eps
    (parameters,) = evaluator(job / "decoder.onnx", dtype).run(None, {"z": z})
    arrays = {"mu": mu, "logsigma": logsigma, "parameters": parameters}
    if wrong := [name for name, array in arrays.items() if array.dtype != dtype]:
        raise TypeError(f"not {dtype} throughout: {', '.join(wrong)}")
    if contract["prior"]["name"] == "standard-normal":
        of_z = kl(np.float64(mu), np.float64(logsigma))
    else:
        (log_prior,) = evaluator(job / "prior.onnx", dtype).run(["log_prob"], {"noise": z[:0], "z": z})
        entropies = 0.5 * (np.float64(eps) ** 2 + math.log(2 * math.pi)) + logsigma  # of this draw
        of_z = -entropies.reshape(len(z), -1).sum(axis=1) - log_prior
    elbo = log_prob(contract["likelihood"], np.float64(x), np.float64(parameters)) - of_z
    about = {"version": onnx.__version__, "platform": f"{platform.machine()}, Python {platform.python_version()}"}
    print(json.dumps(about | {name: array.ravel().tolist() for name, array in ({"elbo": elbo} | arrays).items()}))


def evaluator(path: Path, dtype: str) -> ReferenceEvaluator:
    """The graph, with float64 in the place of every float32 if `dtype` asks for it."""
    model = readable(onnx.load(path))
    if dtype == "float64":
        tensors = [*model.graph.initializer]
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    tensors.append(attribute.t)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.DOUBLE
        for tensor in tensors:
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(np.float64(numpy_helper.to_array(tensor)), tensor.name))
        del model.graph.value_info[:]
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return ReferenceEvaluator(model)


def kl(mu: NDArray[np.float64], logsigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(N(mu, sigma^2) || N(0, I)), nats, [batch]."""
    return (0.5 * np.expm1(2 * logsigma) - logsigma + 0.5 * mu**2).sum(axis=1)


def log_prob(
    likelihood: dict[str, Any], x: NDArray[np.float64], parameters: NDArray[np.float64]
) -> NDArray[np.float64]:
    """log p(x|z), nats, [batch]."""
    match likelihood["name"]:
        case "bernoulli":
            terms = -np.logaddexp(0, np.where(x == 1, -parameters, parameters))
        case "gaussian":
            variance = math.exp(2 * likelihood["settings"]["logsigma"])
            terms = -0.5 * ((x - parameters) ** 2 / variance + math.log(2 * math.pi * variance))
        case "heteroscedastic-gaussian":
            loc, logsigma = np.split(parameters, 2, axis=1)
            variance = np.exp(2 * np.clip(logsigma, math.log(1e-3), 7))
            terms = -0.5 * ((x - loc) ** 2 / variance + np.log(2 * math.pi * variance))
        case "student-t":
            logsigma, df = likelihood["settings"]["logsigma"], math.exp(likelihood["settings"]["logdf"])
            t = (x - parameters) / math.exp(logsigma)
            constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi) - logsigma
            terms = constant - (df + 1) / 2 * np.log1p(t**2 / df)
        case "mixed":
            settings = likelihood["settings"]
            flags, logsigma = (np.reshape(settings[name], (-1, 1, 1)) for name in ("binary", "logsigma"))
            of_flags = -np.logaddexp(0, np.where(x == 1, -parameters, parameters))
            variance = np.exp(2 * logsigma)
            terms = np.where(
                flags, of_flags, -0.5 * ((x - parameters) ** 2 / variance + np.log(2 * math.pi * variance))
            )
        case "discretised-logistic":
            loc, log_scale = np.split(parameters, 2, axis=1)
            scale, level = np.exp(np.clip(log_scale, -7, 7)), np.rint(255 * x)
            upper = np.where(level == 255, np.inf, (x + 1 / 510 - loc) / scale)
            lower = np.where(level == 0, -np.inf, (x - 1 / 510 - loc) / scale)
            # F(upper) - F(lower) on the side where both are below 1/2, in logarithms
            flip = lower > 0
            upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
            log_upper, log_lower = -np.logaddexp(0, -upper), -np.logaddexp(0, -lower)
            terms = log_upper + np.log(-np.expm1(log_lower - log_upper))
    return terms.sum(axis=(1, 2, 3))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
