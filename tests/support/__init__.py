"""What several parts of the tests share: bundles, graphs, runs and image sets to test on, and how commands are run.

Nothing is imported here, and `bundles`, `graphs` and `commands` need no more than the runtime does.
"""
