"""The bundles that ship with the package, each a folder of its name; `vae_runtime.bundle` says which is the default."""
