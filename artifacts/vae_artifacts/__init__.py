"""The bundles that ship with the package, each a folder; `default` is what the runtime uses when none is named."""
