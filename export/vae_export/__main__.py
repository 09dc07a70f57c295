"""`python -m vae_export` is `vae-export`."""

from vae_export.cli import main

main()
