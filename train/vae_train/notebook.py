"""How a run shows itself in a notebook: its figures, curves and pictures, in HTML that needs nothing but itself."""

import base64
from html import escape
from typing import TYPE_CHECKING, Any

from vae_runtime.figures import plus_minus

if TYPE_CHECKING:
    from vae_train.run import Run

_PICTURES = ("curves", "samples", "columns")  # those that there are
# No colour of its own: text and lines have the notebook's, light or dark, and pictures bring their background.
_BLOCK = '<div style="max-width: 56rem; font: 0.9rem/1.5 system-ui, sans-serif">{}</div>'
_CELL = '<t{0} style="text-align: {1}; padding: .15rem 1rem .15rem 0; background: none">{2}</t{0}>'
_IMAGE = '<img alt="{0}" style="display: block; max-width: 100%; margin-top: .75rem" src="data:image/png;base64,{1}">'


def html(run: "Run") -> str:
    """The run as a table of figures, and below it its curves and samples, where it has them."""
    evaluation, noun = run.evaluation, run.observation.noun
    rows = [(_name(name, figure), _text(figure)) for name, figure in evaluation["figures"].items()]
    weights = sum(weight.numel() for weight in run.vae.parameters())
    title = f"<b>{escape(run.config.data.dataset)}</b>, {escape(run.config.made_by)}"
    about = (
        f"{weights:,} weights, {run.vae.latent_dim} latents, {run.config.network.likelihood} likelihood; "
        f"{evaluation['observations']:,} test {noun}s; {escape(str(run.path))}"
    )
    head = _CELL.format("h", "left", "test") + _CELL.format("h", "right", f"nats per {escape(noun)}")
    body = [_CELL.format("h", "left", escape(name)) + _CELL.format("d", "right", escape(text)) for name, text in rows]
    table = f"<table>{''.join(f'<tr>{cells}</tr>' for cells in (head, *body))}</table>"
    paths = [run.path / f"{name}.png" for name in _PICTURES]
    shown = [_IMAGE.format(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in paths if path.exists()]
    return _BLOCK.format(f"<p>{title}<br>{about}</p>{table}{''.join(shown)}")


def _name(name: str, figure: dict[str, Any]) -> str:
    samples = figure.get("num_samples")
    return f"log p(x) ≥ (K = {samples:,})" if samples else {"elbo": "ELBO", "kl": "KL"}.get(name, name)


def _text(figure: dict[str, Any]) -> str:
    return plus_minus(figure["mean"], figure["standard_error"], ",.2f", "±")
