"""What the shipped runtime measures of a bundle while it is made: figures on given observations, and what is usual."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime.detector import Detector
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import bounds, pixels, results
from vae_train.vae import VAE, Terms

MOST = 2000  # observations, from all over, that figures are measured on

CALIBRATED = 1000  # of which a bundle keeps what is usual

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
        kl = terms.kl_per_dimension
        if kl is None:
            of_each = bounds.kl_of_each(vae, *map(torch.from_numpy, runtime.encode(x)))
        else:
            of_each = torch.from_numpy(kl)
        both = Terms(torch.from_numpy(terms.reconstruction), torch.from_numpy(terms.kl))
        nothing = torch.from_numpy(np.zeros((len(x), 0)))
        summary = bounds.summary(bounds.Measured(both, nothing, of_each))
        bound = bounds.figure(torch.from_numpy(runtime.log_likelihood(x, num_samples)))
        summary["figures"][f"log_likelihood_{num_samples}"] = {"num_samples": num_samples, **bound}
        measured_on = results.protocol(name, runtime.observation, vae, observed)
        return {**measured_on, "split": "given", **summary}

    return measure


def usual(runtime: RuntimeVAE, normal: NDArray[Any]) -> bytes:
    """The calibration of a bundle by normal observations [n, *shape], levels or float32.

    At most CALIBRATED of them are taken, from all over. Raises InputError where they say too little of what is usual.
    """
    some = pixels.unit(torch.tensor(normal[:: -(-len(normal) // CALIBRATED)])).numpy()
    return Detector.fit(runtime, some).dump()
