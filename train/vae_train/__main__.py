"""`python -m vae_train` is `vae-train`."""

from vae_train.cli import main

main()
