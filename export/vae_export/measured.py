"""The figures of a VAE that was trained elsewhere, measured by the runtime on given observations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import bounds, pixels, results
from vae_train.vae import VAE, Terms

MOST = 2000  # observations, from all over, that figures are measured on

Measure = Callable[[VAE, RuntimeVAE], dict[str, Any]]


def on(observations: NDArray[Any], name: str, num_samples: int) -> Measure:
    """What measures a bundle on these [n, *shape], at most MOST of them, as its manifest has it (docs/bundle.md).

    The ELBO takes one draw of z, as the test figures of a training do; the bound takes num_samples.
    """
    some = torch.from_numpy(observations[:: -(-len(observations) // MOST)])

    def measure(vae: VAE, runtime: RuntimeVAE) -> dict[str, Any]:
        drawn = pixels.drawn(vae.likelihood.binary, runtime.observation)
        observed = pixels.fixed_draw(some) if drawn else some
        x = pixels.unit(observed).numpy()
        terms = runtime.terms(x)
        kl = terms.kl[:, None] if terms.kl_per_dimension is None else terms.kl_per_dimension
        both = Terms(torch.from_numpy(terms.reconstruction), torch.from_numpy(terms.kl))
        nothing = torch.from_numpy(np.zeros((len(x), 0)))
        summary = bounds.summary(bounds.Measured(both, nothing, torch.from_numpy(kl)))
        bound = bounds.figure(torch.from_numpy(runtime.log_likelihood(x, num_samples)))
        summary["figures"][f"log_likelihood_{num_samples}"] = {"num_samples": num_samples, **bound}
        measured_on = results.protocol(name, runtime.observation, vae, observed)
        return {**measured_on, "split": "given", **summary}

    return measure
