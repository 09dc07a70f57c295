"""Score a job of table.py with vae_runtime: `python score.py JOB SEED` prints the result as JSON."""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from vae_runtime import VAE

job, seed = Path(sys.argv[1]), int(sys.argv[2])
vae = VAE.load(job)
x = np.fromfile(job / "x.f32", "<f4").reshape(-1, *vae.observation.shape)
eps = np.fromfile(job / "eps.f32", "<f4").reshape(-1, vae.latent_dim)
mu, logsigma = vae.encode(x)
arrays = {
    "elbo": vae.elbo(x, seed=seed),  # makes the same eps
    "mu": mu,
    "logsigma": logsigma,
    "parameters": vae.parameters(mu + np.exp(logsigma) * eps),
}
about = {"version": onnxruntime.__version__, "platform": f"{platform.machine()}, Python {platform.python_version()}"}
print(json.dumps(about | {name: array.ravel().tolist() for name, array in arrays.items()}))
