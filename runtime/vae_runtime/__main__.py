"""`python -m vae_runtime` is `vae-infer`."""

from vae_runtime.cli import program

program()
