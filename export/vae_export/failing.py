"""Keep what repeats a failure of the numeric gate: the graphs, the inputs, and a line that compares them again."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_export import golden
from vae_export.gate import ROUND_TRIP, Comparison
from vae_runtime.errors import ArgumentError
from vae_runtime.files import folder_beside, write_errors

ARRAYS, LINE = "failing.npz", "rerun.txt"
_OF_SEVERAL = ("ELBO", ROUND_TRIP)  # what no graph gives at once
_OF_PRIOR = ("z_of_noise", "noise_of_z", "log_prob")


def check_new(folder: Path) -> None:
    """Raise ArgumentError where there is something already."""
    if folder.exists() or folder.is_symlink():
        raise ArgumentError("folder exists", folder, "choose another with --keep-failing")


def keep(folder: Path, bundle: Path, rows: list[Comparison]) -> None:
    """Make `folder`: a copy of the files of the bundle that failed, failing.npz and rerun.txt.

    failing.npz: `rows`, the names of the failing rows; for row i of them `i/x`, `i/z` or `i/noise`, the batch, for the
    ELBO its noise `i/eps`, `i/worst`, the row of the input that is furthest off, and there `i/expected` and `i/got`;
    `got` is missing where there was an error instead. Raises ArgumentError or ResourceError where that cannot be
    written.
    """
    failed = [row for row in rows if not row.passed]
    arrays: dict[str, NDArray[Any]] = {"rows": np.array([row.name for row in failed])}
    for i, row in enumerate(failed):
        arrays[f"{i}/worst"] = np.array(row.worst)
        for name, values in row.evidence.items():
            arrays[f"{i}/{name}"] = values[row.worst] if name in ("expected", "got") else values
    check_new(folder)
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(folder) as made, write_errors(folder):
        for file in bundle.iterdir():
            shutil.copyfile(file, made / file.name)
        np.savez_compressed(made / ARRAYS, **arrays)  # type: ignore[arg-type]
        (made / LINE).write_text(_rerun(failed) + "\n")
        made.rename(folder)


def _rerun(failed: list[Comparison]) -> str:
    """A line for the shell that says how far off one failing row is, a tensor's where there is one."""
    i, row = next(((i, row) for i, row in enumerate(failed) if row.tensor not in _OF_SEVERAL), (0, failed[0]))
    arrays = f"import numpy; f = numpy.load('{ARRAYS}')"
    vae = "__import__('vae_runtime').VAE.load('.', standardised=True)"
    if row.tensor == "ELBO":
        got = f"{vae}.elbo(f['{i}/x'], seed={golden.SEED})"
    elif row.tensor == ROUND_TRIP:
        got = f"(lambda prior: prior.to_noise(prior.from_noise(f['{i}/noise'])))({vae}.prior)"
    else:
        given = next(name for name in ("x", "z", "noise") if name in row.evidence)
        feed, graph = f"'{given}': f['{i}/{given}']", "encoder" if given == "x" else "decoder"
        if row.tensor in _OF_PRIOR:
            other, graph = "z" if given == "noise" else "noise", "prior"
            feed += f", '{other}': f['{i}/{given}'][:0]"
        session = f"__import__('onnxruntime').InferenceSession('{graph}.onnx')"
        got = f"{session}.run(['{row.tensor}'], {{{feed}}})[0]"
    off = f"print(abs({got}[f['{i}/worst']] - f['{i}/expected']).max())"
    return f'python3 -c "{arrays}; {off}"  # in this folder: {row.name}, {row.tolerance:.1e} is allowed'
