"""The report of a finished run: one page that needs nothing but itself, no network and no script."""

import base64
import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from vae_runtime import outputs, records
from vae_runtime.figures import plus_minus
from vae_runtime.files import replacing
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import VECTOR
from vae_train import kept, metrics, pictures, state, unusual
from vae_train.bounds import bits_per_dimension
from vae_train.data import Data
from vae_train.pictures import Picture
from vae_train.prior import StandardNormal
from vae_train.run import Run
from vae_train.run_folder import read_metrics
from vae_train.state import Metrics

if TYPE_CHECKING:
    from vae_train.columns import Columns
    from vae_train.lines import Lines

PAGE = "report.html"
_MOST_ROWS = 30  # of the table of epochs

_TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #5c5c5c; --back: #fff; --card: #f4f4f4; --line: #ddd; }
body { margin: 0 auto; padding: 1rem; max-width: 56rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; line-height: 1.25; font-size: 1.6rem; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.2rem; }
h3 { margin: 1.25rem 0 .25rem; font-size: 1rem; }
p, ul { margin: .5rem 0; }
.poor { padding: .75rem 1rem; border-left: .25rem solid #b3261e; background: var(--card); }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.headline { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.headline div { flex: 1 1 12rem; padding: .75rem 1rem; border-radius: .5rem; background: var(--card); }
.headline b { display: block; font-size: 1.5rem; line-height: 1.3; white-space: nowrap; }
figure { margin: 0; }
figcaption { margin-bottom: .5rem; }
img { display: block; max-width: 100%; height: auto; }
.chart { width: 36rem; }
.hard { image-rendering: pixelated; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .5rem; }
.rows { display: flex; gap: .5rem; align-items: stretch; }
.rows ol { display: flex; flex: none; flex-direction: column; justify-content: space-around; margin: 0; padding: 0;
  list-style: none; font-size: .8rem; line-height: 1.2; white-space: nowrap; }
.rows img { align-self: flex-start; min-width: 0; max-width: calc(100% - 6.5em); }
.wide { overflow-x: auto; }
table { font-size: .9rem; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: normal; }
thead th { color: var(--soft); font-weight: normal; }
.best { font-weight: bold; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); gap: .1rem 1.5rem;
  margin: 0; }
dl div { display: flex; gap: .75rem; justify-content: space-between; border-bottom: 1px solid var(--line); }
dl .long { grid-column: 1 / -1; }
dt { color: var(--soft); flex: none; }
dd { margin: 0; text-align: right; }
pre { margin: .5rem 0; padding: .75rem 1rem; border-radius: .5rem; background: var(--card); overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --soft: #a8a8a8; --back: #1a1a1a; --card: #262626; --line: #3d3d3d; }
  .chart { filter: invert(.9) hue-rotate(180deg); }
}
@media (max-width: 54rem) {
  .hard { image-rendering: auto; }
}
</style>
</head>
<body>
$body
</body>
</html>
""")


def draw(folder: Path, run: Run, observations: Data) -> None:
    """Write the pictures of a run into its folder, and the page that shows them with the run's figures."""
    drawn = pictures.draw(folder, run, observations)
    rows = read_metrics(folder)
    sections = [
        _headline(run, rows),
        _kept(run, observations),
        _section("Signs of trouble", _trouble(run, rows, len(observations.train))),
        *(_lines(run, drawn.lines) if drawn.lines else []),
        *(_columns(run, drawn.columns) if drawn.columns else _grids(run, drawn.grids)),
        _section("Training", _charts(drawn.curves, run.observation.noun)),
        _section("Latent space", _chart(drawn.latents, "t-SNE of the test means mu", _map(observations))),
        _section("KL per dimension", _chart(drawn.kl, "Bars of the KL of each latent dimension", _used(run))),
        _section("Scores", _scores(run, drawn.scores, observations)),
        _section("Test figures", _figures(run)),
        _section("Epochs", _epochs(rows, run.observation.noun)),
        _section("Settings", _settings(run, observations)),
        _section("Go on", _commands(folder, run, rows)),
    ]
    title = escape(f"{run.config.data.dataset}, {run.config.made_by}")
    page = _TEMPLATE.substitute(title=title, body="\n".join(sections))
    with replacing(folder / PAGE) as file:
        file.write(page.encode(errors="replace"))  # a path may hold bytes that are no text


def _grids(run: Run, grids: pictures.Grids | None) -> list[str]:
    if grids is None:
        none = f"There are none: what this model observes are {run.observation.noun}s of numbers."
        return [_section("Samples, reconstructions and traversals", f"<p>{none}</p>")]
    return [
        _section("Samples", _grid(grids.samples, "Pairs: a draw x ~ p(x|z), and E[x|z], at z ~ p(z).")),
        _section("Reconstructions", _grid(grids.reconstructions, "Pairs: a test image, and E[x|z] at its mean mu.")),
        _section("Latent traversals", _traversals(run, grids)),
    ]


def _lines(run: Run, lines: "Lines") -> list[str]:
    all_ = run.observation.shape[0]
    which = f" The first {lines.shown} of {all_} channels." if lines.shown < all_ else ""
    windows = f"Windows from all over the test part, a column for each, and E[x|z] at their means mu, in units.{which}"
    samples = f"Draws x ~ p(x|z) with z ~ p(z), and E[x|z].{which}"
    return [
        _section("Reconstructions", _chart(lines.reconstructions, "Test windows and reconstructions", windows)),
        _section("Samples", _chart(lines.samples, "Samples and their means", samples)),
    ]


def _columns(run: Run, columns: "Columns") -> list[str]:
    shown, all_ = columns.shown, run.observation.shape[0]
    which = f"The first {shown} of {all_} columns" if shown < all_ else "Each column"
    caption = (
        f"{which}: the rows of the test part, and of as many samples x ~ p(x|z), z ~ p(z), in units; what lies beyond "
        "the outer half percents of the test rows is left out."
    )
    same = "Where the two differ, the model has not learnt how columns move together."
    return [
        _section("Columns", _chart(columns.histograms, "Histograms of test rows and samples by column", caption)),
        _section("Correlations", _chart(columns.correlations, "Correlations of test rows and of samples", same)),
    ]


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _headline(run: Run, rows: list[Metrics]) -> str:
    config, evaluation = run.config, run.evaluation
    cards = [("test ELBO", evaluation["figures"]["elbo"]), *_bounds(run)]
    shown = "\n".join(f"<div>{escape(name)}<b>{_mean(found)}</b>{_unit(run, found)}</div>" for name, found in cards)
    measured = (
        f"{evaluation['observations']:,} {evaluation['split']} {run.observation.noun}s of {evaluation['dataset']}; "
        f"{evaluation['prior']} prior"
    )
    weights = sum(weight.numel() for weight in run.vae.parameters())
    latents = _number(run.vae.latent_dim, "latent dimension")
    model = f"{weights:,} weights, {latents}, {run.vae.likelihood.name} likelihood"
    trained = f"{_number(round(rows[-1]['epoch']), 'epoch')} in {_duration(run.provenance['training_seconds'])}"
    return (
        f"<header>\n<h1>{escape(Path(config.data.dataset).name)}, {escape(config.made_by)}</h1>\n"
        f'<div class="headline">\n{shown}\n</div>\n'
        f'<p class="soft">The ELBO is a lower bound on the log-probability that the model gives to an observation: the '
        f"higher, the better. A nat is the unit of such logarithms to base e. What follows ± is a standard error.</p>\n"
        f'<p class="soft">{escape(measured)}. {escape(model)}; {trained}.</p>\n</header>'
    )


def _kept(run: Run, observations: Data) -> str:
    """How much the model tells of an observation, and in words where that is hardly anything."""
    found = kept.measure(run.vae, observations)
    words = kept.poor(found, observations)
    poor = f'<p class="poor"><b>A poor model:</b> {escape("; ".join(words))}.</p>\n' if words else ""
    return f"{poor}<p>{escape(found.line(run.observation.noun))}.</p>"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count > 1 else ''}"


def _bounds(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """The bounds of log p(x) that the run has been given, by name."""
    found = [figure for figure in run.evaluation["figures"].values() if "num_samples" in figure]
    return [(f"log p(x) ≥ (K = {figure['num_samples']:,})", figure) for figure in found]


def _mean(figure: dict[str, Any]) -> str:
    return plus_minus(figure["mean"], figure["standard_error"], ",.2f", "±")


def _unit(run: Run, figure: dict[str, float]) -> str:
    bits = _bits(run, figure)
    return f"nats per {run.observation.noun}{f'; {bits} bits per dimension' if bits else ''}"


def _bits(run: Run, figure: dict[str, float]) -> str:
    """Bits per dimension, where the figure is of a probability."""
    if not run.vae.likelihood.discrete:
        return ""
    return f"{bits_per_dimension(figure['mean'], run.observation.size):.3f}"


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _trouble(run: Run, rows: list[Metrics], observations: int) -> str:
    """All that the training warned of; `observations` is the number that it was trained on."""
    few, unreadable = metrics.few_steps(run.config, observations), run.settings.preprocessing.get("unreadable")
    found = [
        metrics.few_observations(run.observation.noun, observations),
        few,
        f"{_number(unreadable, 'image file')} could not be read; left out" if unreadable else "",
    ]
    said = run.settings.warnings
    optimiser = run.config.optimiser
    most, patient = optimiser.most_epochs(observations), optimiser.patient
    told = metrics.told(rows, most, run.vae.latent_dim, bool(few), bool(said), patient)
    found = [*filter(None, found), *said, *told]
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in found)}</ul>" if found else "<p>None.</p>"


def _image(picture: Picture, kind: str, alt: str) -> str:
    data = base64.b64encode(outputs.png(picture, scale=1)).decode()
    height, width = picture.shape[:2]
    size = f'width="{width}" height="{height}"'
    return f'<img class="{kind}" {size} alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _figure(caption: str, content: str) -> str:
    return f"<figure>\n<figcaption>{escape(caption)}</figcaption>\n{content}\n</figure>"


def _grid(picture: Picture, caption: str) -> str:
    return _figure(caption, _image(picture, "hard", caption))


def _chart(picture: Picture, alt: str, caption: str) -> str:
    return _figure(caption, _image(picture, "chart", alt))


def _charts(curves: list[Picture], noun: str) -> str:
    caption = (
        f"After each epoch, on the test {noun}s and on as many training {noun}s. A latent dimension is active where "
        f"the "
        f"variance of its mean mu over the {noun}s is above {metrics.ACTIVE}. A chart may leave out the first tenth "
        f"of the epochs."
    )
    names = ("ELBO", "reconstruction", "KL", "gradient norm", "active units", "speed")
    shown = "\n".join(
        _image(picture, "chart", f"{name} over the epochs, whose table is below")
        for name, picture in zip(names, curves, strict=True)
    )
    return _figure(caption, f'<div class="charts">\n{shown}\n</div>')


def _traversals(run: Run, grids: pictures.Grids) -> str:
    kl, span = run.evaluation["kl_per_dimension"], pictures.SPAN
    rest = "the others as of the first test image"
    learned = not isinstance(run.vae.prior, StandardNormal)
    about = " standard deviations about its mean under the prior" if learned else ""
    caption = f"E[x|z] with one latent dimension from -{span:g} to {span:g}{about} and {rest}; the largest KL first."
    names = "".join(f"<li>z<sub>{i}</sub> {kl[i]:.2f} nats</li>" for i in grids.traversed)
    image = _image(grids.traversals, "hard", caption)
    return _figure(caption, f'<div class="rows"><ol>{names}</ol>{image}</div>')


def _map(observations: Data) -> str:
    if len(observations.test) < pictures.FEWEST_MAPPED:
        return f"A map needs {pictures.FEWEST_MAPPED} test {observations.observation.noun}s."
    about = "Distances between far groups mean little."
    if len(observations.names) == 1:
        return about
    numbers = pictures.labelled(observations.names)  # a page can write what a picture's font cannot
    named = (
        ""
        if numbers == observations.names
        else f": {', '.join(map(' '.join, zip(numbers, observations.names, strict=True)))}"
    )
    return f"Each point is a test {observations.observation.noun}, coloured by its class{named}. {about}"


def _used(run: Run) -> str:
    kl, noun = run.evaluation["kl_per_dimension"], run.observation.noun
    together = f"Together {sum(kl):.2f} nats per {noun}."
    if run.config.network.prior != StandardNormal.name:
        together = f"To the Gaussian of its mean and variance over the test {noun}s, since the prior is learned."
    return f"{together} Dimensions near 0 carry nothing about it."


def _scores(run: Run, picture: Picture, observations: Data) -> str:
    noun = run.observation.noun
    shown = _chart(picture, f"Share of the test {noun}s by ELBO", f"How many of the test {noun}s have a lower ELBO.")
    if run.observation.kind != VECTOR:
        return shown
    found = unusual.find(run.vae, observations)
    cells = []
    for elbo, kl, column, below, values in zip(*found[2:], found.values, strict=True):
        least = f"{found.names[column]} ({below:,.1f})"
        cells.append((f"{elbo:,.2f}", [f"{kl:,.2f}", least, *(f"{value:,.6g}" for value in values)]))
    caption = (
        f"The {len(cells)} test rows of the lowest ELBO, in their units. Least likely is the column whose log p(x|z) "
        "is furthest below its mean over the test rows, by so many nats; where these are few and the KL is large, the "
        "row is unusual as a whole."
    )
    return f"{shown}\n{_table(caption, ['ELBO', 'KL', 'least likely', *found.names], cells)}"


def _table(caption: str, head: Iterable[str], rows: Iterable[tuple[str, list[str]]], best: str | None = None) -> str:
    """Rows of a name and cells; the row named `best` stands out."""
    line = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = []
    for name, cells in rows:
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        kind = ' class="best"' if name == best else ""
        lines.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{row}</tr>')
    body = "\n".join(lines)
    return (
        f'<p class="soft">{escape(caption)}</p>\n<div class="wide"><table>\n'
        f"<thead><tr>{line}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _figures(run: Run) -> str:
    evaluation = run.evaluation
    names = {"ELBO": "elbo", "reconstruction": "reconstruction", "KL": "kl"}
    rows = [*((name, evaluation["figures"][key]) for name, key in names.items()), *_bounds(run)]
    head = [f"nats per {run.observation.noun}", "mean", "standard error"]
    cells = []
    for name, figure in rows:
        error = figure["standard_error"]
        cells.append((name, [f"{figure['mean']:,.3f}", "" if error is None else f"{error:,.3f}"]))
    if _bits(run, evaluation["figures"]["elbo"]):
        head.append("bits per dimension")
        for (name, figure), (_, row) in zip(rows, cells, strict=True):
            row.append(_bits(run, figure) if name == "ELBO" or "num_samples" in figure else "")
    noun = f"{run.observation.noun}s"
    about = {**evaluation, noun: f"{evaluation['observations']:,}"}
    caption = "; ".join(f"{name}: {about[name]}" for name in ("dataset", "split", noun, "binarisation", "prior"))
    return _table(caption, head, cells)


def _epochs(rows: list[Metrics], noun: str) -> str:
    best = state.best(rows)
    step = (len(rows) - 1) / max(1, min(len(rows), _MOST_ROWS - 1) - 1)
    chosen = {round(i * step) for i in range(min(len(rows), _MOST_ROWS - 1))} | {rows.index(best)}
    columns = {
        "epoch": ("epoch", ".0f"), "train ELBO": ("train_elbo", ",.2f"), "test ELBO": ("test_elbo", ",.2f"),
        "±": ("test_standard_error", ",.2f"), "reconstruction": ("test_reconstruction", ",.2f"),
        "KL": ("test_kl", ".2f"), "active": ("active_units", ".0f"), "gradient": ("gradient_norm", ",.1f"),
        "skipped": ("skipped_steps", ".0f"), "seconds": ("seconds", ",.1f"),
    }  # fmt: skip
    cells = [
        [f"{rows[i][name]:{style}}" if name in rows[i] else "" for name, style in columns.values()]
        for i in sorted(chosen)
    ]
    which = f"{len(chosen)} of {len(rows)} measured epochs" if len(chosen) < len(rows) else "All measured epochs"
    caption = f"{which}, nats per {noun}; the best in bold. metrics.jsonl has every figure."
    return _table(caption, columns, [(name, rest) for name, *rest in cells], best=f"{best['epoch']:.0f}")


def _settings(run: Run, observations: Data) -> str:
    config = {"preset": run.config.preset}
    for part in (run.config.data, run.config.network, run.config.objective, run.config.optimiser):
        config |= {name: value for name, value in vars(part).items() if value is not None}
    noun = f"{run.observation.noun}s"
    shape = {"shape": " x ".join(map(str, run.observation.shape)), f"training {noun}": f"{len(observations.train):,}"}
    shape |= {f"test {noun}": f"{len(observations.test):,}", "classes": f"{len(observations.names):,}"}
    groups = {
        "Configuration": config,
        noun.capitalize(): shape | _prepared(run) | {"sha256": run.settings.data_sha256},
        "Made by": run.provenance,
    }
    return "\n".join(f"<h3>{title}</h3>\n{_list(values)}" for title, values in groups.items())


def _prepared(run: Run) -> dict[str, Any]:
    """How files became observations, where that has parts in words: columns and their scales, and windows."""
    how, known = dict(run.settings.preprocessing), records.parse(Preprocessing, run.settings.preprocessing)
    if known.columns:
        how["columns"] = [f"{column.name} ({column.mean:.4g} +- {column.scale:.4g})" for column in known.columns]
    if known.windows is not None:
        how["windows"] = known.windows.in_words()
    return how


def _list(values: dict[str, Any]) -> str:
    def item(name: str, value: object) -> str:
        text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        text = text or "none"
        long = ' class="long"' if len(text) > 24 else ""
        return f"<div{long}><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text)}</dd></div>"

    return f"<dl>{''.join(item(name, value) for name, value in values.items())}</dl>"


def _commands(folder: Path, run: Run, rows: list[Metrics]) -> str:
    at, bundle = shlex.quote(str(folder)), shlex.quote(f"bundles/{folder.resolve().name}")
    own = f" --model {shlex.quote(run.config.network.model)}" if run.config.network.model else ""
    lines = [
        f"vae-train evaluate {at} --samples 500{own}",
        f"vae-train report {at}{own}",
        f"vae-export {at} --out {bundle}{own}",
        f"vae-infer --bundle {bundle} sample -n 16",
    ]
    best, patient = state.best(rows), run.config.optimiser.patient
    hint = (
        f"The weights are those of epoch {best['epoch']:.0f}, with the highest test ELBO."
        if patient
        else f"The weights are the last epoch's; --best makes evaluate and export take those of epoch "
        f"{best['epoch']:.0f}."
    )
    note = "" if best is rows[-1] else f'\n<p class="soft">{hint}</p>'
    return f"<pre>{escape(chr(10).join(lines))}</pre>{note}"
