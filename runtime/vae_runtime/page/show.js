// Observations and scores as elements of the page: images as pictures, series as lines, rows as tables.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; text among them is text, never markup. */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function" || name === "className" || name === "hidden") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const number = (value) => {
  const size = Math.abs(value);
  const text = size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : Number(value.toPrecision(4)).toString();
  return text.replace("-", "−");
};
/** Nats, and `± error`, with as many digits as people read of `like`. */
export function nats(value, error, like = value) {
  const digits = Math.abs(like) >= 1000 ? 0 : Math.abs(like) >= 100 ? 1 : 2;
  const written = (number) => number.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
  return written(value) + (error === undefined || error === null ? "" : ` ± ${written(error)}`);
}

/** An observation as an element; `under`: another one of series or rows, to compare with; `map`: where it is odd. */
export function show(model, x, label, under = null, map = null) {
  if (model.observation.kind === "image") return make("img", { src: x, alt: label });
  if (model.observation.kind === "series") return lines(model, x, label, under, map);
  return table(model, under ? ["value", "reconstructed"] : ["value"], under ? [x, under] : [x], label, map);
}

/** Several observations beside each other, in `place`; of images and series each is a button that `take`s it. */
export function tiles(model, place, observations, label, take) {
  if (model.observation.kind === "vector") {
    place.className = "tiles rows";
    Object.assign(place, { tabIndex: 0, role: "region", ariaLabel: label }); // so that the keyboard can scroll it
    const head = model.columns.map(({ name }) => make("th", { scope: "col" }, name));
    const rows = observations.map((row) => make("tr", {}, ...row.map((value) => make("td", {}, number(value)))));
    place.replaceChildren(make("table", {}, make("tr", {}, ...head), ...rows));
    return;
  }
  place.className = model.observation.kind === "series" ? "tiles lines" : "tiles";
  const called = (i) => `${label}, ${i + 1} of ${observations.length}`;
  place.replaceChildren(...observations.map((x, i) =>
    make("button", { type: "button", className: "tile", onclick: () => take(x) }, show(model, x, called(i)))));
}

/** A row, or two of them, with a line for each column. */
function table(model, heads, rows, label, map) {
  const head = make("tr", {}, make("th", { scope: "col" }, "column"), ...heads.map((text) => make("th", { scope: "col" }, text)));
  if (map) head.append(make("th", { scope: "col" }, "off by"));
  const body = model.columns.map(({ name }, i) => {
    const row = make("tr", {}, make("th", { scope: "row" }, name), ...rows.map((each) => make("td", {}, number(each[i]))));
    if (map) row.append(make("td", { className: map[i] > model.detector.high ? "odd" : "" }, `${nats(map[i])} sd`));
    return row;
  });
  return make("table", { "aria-label": label }, head, ...body);
}

/** Channels [C][T] one below the other, each over the range that the model's samples have, or wider. */
function lines(model, x, label, under, map) {
  const [width, height, gap] = [240, x.length > 3 ? 34 : 80, x.length > 1 ? 14 : 6]; // names stand in the gaps
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${x.length * (height + gap) + gap}`);
  svg.setAttribute("class", "plot");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  x.forEach((channel, i) => {
    const top = gap + i * (height + gap);
    const all = [...channel, ...(under?.[i] ?? [])];
    const [low, high] = [Math.min(model.columns[i].low, ...all), Math.max(model.columns[i].high, ...all)];
    const at = (values, t) => `${((t * width) / Math.max(1, values.length - 1)).toFixed(1)} ${(top + height * (1 - (values[t] - low) / (high - low || 1))).toFixed(1)}`;
    const path = (values) => "M" + values.map((_, t) => at(values, t)).join("L");
    const odd = (values) => values.map((_, t) => (t && map[i][t] > model.detector.high ? `M${at(values, t - 1)}L${at(values, t)}` : "")).join("");
    for (const [d, kind] of [[under && path(under[i]), "under"], [path(channel), "over"], [map && odd(under[i]), "off"]]) {
      if (!d) continue;
      const drawn = document.createElementNS(SVG, "path");
      drawn.setAttribute("d", d);
      drawn.setAttribute("class", kind);
      svg.append(drawn);
    }
    if (x.length > 1) {
      const text = document.createElementNS(SVG, "text");
      text.setAttribute("x", 4);
      text.setAttribute("y", top - 3);
      text.textContent = model.columns[i].name;
      svg.append(text);
    }
  });
  return svg;
}

const TRAITS = { // what a name says to those who know the field, in plain words
  "log p(x|z)": "how probable its values are from its latents",
  KL: "how many nats its latents take",
  entropy: "how unsure the reconstruction is",
  "log squared error": "how far the reconstruction is off",
  "log spread of nats": "how unevenly the error lies",
  "log |mu|^2": "how far its latents lie from their middle",
  "sum of logsigma": "how unsure its latents are",
};

/** What a score says, in sentences. */
export function figures(model, score) {
  const made = [
    make("p", {}, make("b", {}, `ELBO ${nats(score.elbo_nats, score.standard_error_nats)} nats`),
      ` = ${nats(score.reconstruction_nats, null, score.elbo_nats)} for its ${model.observation.kind === "image" ? "pixels" : "values"} − ${nats(score.kl_nats, null, score.elbo_nats)} of KL for its latents`),
  ];
  if (score.verdict) {
    const { p, odd, oddest, deviation, score: value } = score.verdict;
    const share = `${p < 0.01 ? (100 * p).toFixed(1) : Math.round(100 * p)}% of normal ${model.noun}s are as odd or odder`;
    made.push(make("p", {}, make("span", { className: odd ? "odd" : "usual" }, odd ? "Odd" : "Usual"), `: ${share} (p = ${Number(p.toPrecision(2))}${model.detector.threshold === null ? "" : `, score ${number(value)}`})`));
    const means = TRAITS[oddest] ? ` (${TRAITS[oddest]})` : "";
    if (odd) made.push(make("p", {}, `Farthest from usual: ${oddest}${means}, ${Math.abs(deviation).toFixed(1)} standard deviations ${deviation < 0 ? "below" : "above"}.`));
  }
  if (score.percentile_percent !== undefined) {
    const [lowest, highest] = model.ranks;
    const end = score.percentile_percent <= lowest ? "less than " : score.percentile_percent >= highest ? "more than " : "";
    const rank = end ? Number(score.percentile_percent.toPrecision(2)) : score.percentile_percent.toFixed(score.percentile_percent < 1 ? 1 : 0);
    made.push(make("p", { className: "quiet" }, `A higher ELBO than ${end}${rank}% of ${score.test_observations.toLocaleString("en")} test ${model.noun}s.`));
  }
  return made;
}
