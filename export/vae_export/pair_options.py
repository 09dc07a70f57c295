"""What `vae-export --encoder e.onnx --decoder d.onnx` says of a pair, as the arguments that `export` has for it."""

import json
from pathlib import Path
from typing import Any

import click

_WORDS = 'a word, or a JSON object such as {"name": "gaussian", "sigma": 0.1}'


def _shape(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """The sides of 1x28x28."""
    sides = value.lower().split("x") if value is not None else None
    if sides and not all(side.isdecimal() for side in sides):
        raise click.BadParameter(f"{value!r} is no shape such as 1x28x28")
    return tuple(map(int, sides)) if sides else None


def _said(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """A word, or what a JSON object says."""
    if value is None or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no JSON object: {error}") from None


OPTIONS = (
    click.option("--encoder", type=click.Path(path_type=Path), help="The encoder's ONNX file, made elsewhere."),
    click.option("--decoder", type=click.Path(path_type=Path), help="The decoder's."),
    click.option("--likelihood", metavar="WORDS", callback=_said, help=f"What the decoder was trained for: {_WORDS}."),
    click.option(
        "--encoder-gives", metavar="WORDS", callback=_said, help='Its outputs, where names do not say: "mu, logvar, _".'
    ),
    click.option(
        "--decoder-gives", metavar="WORDS", callback=_said, help="In the same way: logits, theta, loc, pixels."
    ),
    click.option("--shape", metavar="CxHxW", callback=_shape, help="An observation's, where the files take it flat."),
    click.option("--axes", metavar="AXES", help="The order of axes that the files take: HWC, TC."),
    click.option("--latent-scale", type=float, help="z is so many times what the encoder gives."),
    click.option(
        "--preprocessing", metavar="WORDS", callback=_said, help='How pixels became inputs: {"mean": 0.5, "std": 0.5}.'
    ),
)


def told(pair: dict[str, Any], observations: Path | None, out: Path | None) -> dict[str, Any]:
    """The arguments that were given. Raises UsageError where one is missing that a pair needs."""
    needed = {
        **{name: pair[name] for name in ("encoder", "decoder", "likelihood")},
        "observations": observations,
        "out": out,
    }
    if missing := [f"--{name}" for name, value in needed.items() if value is None]:
        raise click.UsageError(f"a pair of ONNX files needs {', '.join(missing)} too")
    return {name: value for name, value in pair.items() if value is not None}
