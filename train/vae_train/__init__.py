"""Fit a variational autoencoder in PyTorch and keep it in a run folder that explains itself."""
