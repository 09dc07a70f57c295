// The page of `vae-infer serve`: what it shows depends on the model, which says what it is.

import { ask, latest, said } from "./ask.js";
import { pad } from "./pad.js";
import { figures, make, nats, number, show, tiles } from "./show.js";

const $ = (id) => document.getElementById(id);
const KINDS = {
  image: ["PNG, JPEG, GIF, WebP, BMP or TIFF pictures, or an .npy, .npz or IDX array", ".png,.jpg,.jpeg,.gif,.webp,.bmp,.tif,.tiff,.pgm,.ppm,.npy,.npz,.gz"],
  vector: ["a table, CSV with a header, or an .npy or .npz array", ".csv,.tsv,.gz,.npy,.npz"],
  series: ["a table over time, CSV with a header, or an .npy or .npz array", ".csv,.tsv,.gz,.npy,.npz"],
};
const SHOWN = 24; // scores

const model = await ask("model").catch((error) => {
  $("name").textContent = "No model";
  $("about").textContent = `${error.message} Load this page again.`;
  throw error;
});
const { kind, shape, range } = model.observation;
const AT_ONCE = Math.min(kind === "series" ? 6 : 16, model.limits.observations); // samples
document.body.dataset.kind = kind;
const several = `${model.noun}s`;
const randomSeed = () => Math.floor(Math.random() * 2 ** 32);
const within = (x) => (Array.isArray(x) ? x.map(within) : Math.min(range[1], Math.max(range[0], x)));
// samples are sent again, to be scored or encoded: means of rows and series may be no observation, as 0.5 of 0 and 1
const MEAN = Number(kind === "image");
const samples = async (n, seed = randomSeed()) => {
  const { observations } = await ask(`sample?n=${n}&seed=${seed}&mean=${MEAN}&format=json`);
  return kind === "image" || !range ? observations : within(observations);
};
const one = async () => (await samples(1))[0];
let drawing = null; // the pad
let takeApart = () => {}; // shows the latents of an observation

function drawn() {
  if (drawing.state.blank) throw new Error("Nothing is drawn yet: the pad is under Draw.");
  return drawing.url();
}

function introduce() {
  const size = kind === "image" ? `images of ${shape[2]} × ${shape[1]} pixels${shape[0] === 1 ? "" : " in colour"}`
    : kind === "series" ? `windows of ${shape[1]} steps of ${shape[0]} channel${shape[0] > 1 ? "s" : ""}`
    : `rows of ${shape[0]} numbers`;
  $("name").textContent = model.name;
  document.title = `${model.name} · vae-edge`;
  $("about").textContent = `A model of ${size}${model.dataset ? `, trained on ${model.dataset}` : ""}. It describes each with ${model.latent_dim} numbers, its latents.`;
  if (model.elbo_nats !== null) {
    $("measured").textContent = `On ${model.test_observations.toLocaleString("en")} ${several} that it was not trained on, its mean ELBO is ${nats(model.elbo_nats, model.standard_error_nats)} nats.`;
  }
  const words = { a: `${/^[aeiou]/.test(model.noun) ? "an" : "a"} ${model.noun}`, many: several, values: kind === "image" ? "pixels" : "values" };
  document.querySelectorAll("[data-noun]").forEach((place) => (place.textContent = words[place.dataset.noun]));
  $("odd").hidden = false;
  if (model.detector) {
    const { threshold } = model.detector;
    $("odd").append(make("dfn", {}, "p"), ` is the share of normal ${several} that are as odd as the one at hand, or odder, as ${model.detector.observations.toLocaleString("en")} of them told;`,
      threshold === null ? ` where it is ${number(100 * model.detector.false_alarms)}% or less, ` : ` where its score, which is the higher the odder it is, reaches ${number(threshold)}, `,
      `the ${model.noun} is called `, make("dfn", {}, "odd"), ".");
  } else $("odd").append(`No ${model.noun} is called odd or usual here: for that, start the service with what `, make("code", {}, "vae-infer calibrate"), " wrote.");
}

function sampling() {
  const refresh = latest(said($("samples"), async () => {
    const seed = $("samples-seed").value;
    tiles(model, $("samples-tiles"), await samples(AT_ONCE, seed), `Samples of seed ${seed}`, takeApart);
    $("samples-said").textContent = `${AT_ONCE} samples of seed ${seed}`;
    const link = $("samples-file");
    link.download = `samples-${seed}.${kind === "image" ? "png" : "csv"}`;
    link.href = kind === "image" ? `sample?n=${AT_ONCE}&seed=${seed}&mean=1` : link.href;
  }));
  $("samples-new").onclick = () => {
    $("samples-seed").value = randomSeed();
    refresh();
  };
  $("samples-seed").oninput = () => $("samples-seed").checkValidity() && $("samples-seed").value && refresh();
  $("samples-hint").hidden = kind === "vector" || !model.sliders.length;
  $("samples-form").onsubmit = (event) => event.preventDefault();
  $("samples-file").onclick = async (event) => {
    if (kind === "image") return;
    event.preventDefault();
    const found = await samples(AT_ONCE, $("samples-seed").value);
    const rows = kind === "vector" ? found : found.flatMap((x, i) => x[0].map((_, t) => [i, t, ...x.map((channel) => channel[t])]));
    const head = [...(kind === "series" ? ["window", "step"] : []), ...model.columns.map(({ name }) => name)];
    const cell = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    const text = [head, ...rows].map((row) => row.map(cell).join(",")).join("\n");
    make("a", { href: `data:text/csv;charset=utf-8,${encodeURIComponent(text + "\n")}`, download: $("samples-file").download }).click();
  };
  return refresh();
}

function drawingPad() {
  const section = $("draw");
  section.hidden = false;
  const look = latest(said(section, async () => {
    if (drawing.state.blank) {
      $("draw-seen").replaceChildren();
      $("draw-made").replaceChildren();
      $("draw-odd").replaceChildren();
      $("draw-figures").textContent = "";
      return;
    }
    const url = drawing.url();
    const { scores: [score] } = await ask("score?show=1", [url]);
    if (drawing.state.blank) return;
    $("draw-seen").replaceChildren(show(model, url, "The drawing at the model's size"));
    $("draw-made").replaceChildren(show(model, score.reconstructed, "Reconstruction of the drawing"));
    if (score.map) $("draw-odd").replaceChildren(show(model, score.map, "The drawing, red where odd"));
    $("draw-figures").replaceChildren(...figures(model, score));
  }));
  $("draw-odd").parentElement.hidden = !model.detector;
  drawing = pad($("pad"), shape[1], shape[2], look);
  $("draw-clear").onclick = () => {
    drawing.clear();
    look();
  };
  $("draw-sample").onclick = said(section, async () => drawing.put(await one()));
  $("draw-width").oninput = (event) => (drawing.state.width = Number(event.target.value));
  $("draw-colour-label").hidden = shape[0] === 1;
  $("draw-colour").oninput = (event) => (drawing.state.colour = event.target.value);
  if (shape[0] !== 1) $("draw-sample").click(); // photos are painted on, digits drawn on black
}

/** A labelled slider with its value beside it; `set(value)` moves it. */
function slider(name, note, { low, high, step = (high - low) / 200, value }, moved) {
  const track = make("span", { className: "track" });
  const input = make("input", { type: "range", min: low, max: high, step, "aria-label": note ? `${name}, ${note}` : name });
  const output = make("output");
  const set = (next) => {
    input.value = next;
    output.textContent = number(Number(next)); // which may lie beyond the ends
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.oninput = () => {
    set(input.value);
    moved();
  };
  track.append(input);
  set(value);
  const words = make("span", {}, name, ...(note ? [make("small", {}, note)] : []));
  return { element: make("label", {}, words, track, output), input, track, set };
}

function ownRow() {
  const section = $("row");
  section.hidden = false;
  let row = model.columns.map(({ usual }) => usual);
  const look = latest(said(section, async () => {
    const { scores: [score] } = await ask("score?show=1", [row]);
    score.reconstructed.forEach((value, i) => {
      const { low, high } = model.columns[i];
      marks[i].style.left = `${Math.min(100, Math.max(0, (100 * (value - low)) / (high - low || 1)))}%`;
      marks[i].title = `expected ${number(value)}`;
    });
    $("row-figures").replaceChildren(...figures(model, score));
  }));
  const sliders = model.columns.map(({ name, low, high, usual, whole }, i) =>
    slider(name, "", { low, high: high > low ? high : low + 1, step: whole ? 1 : undefined, value: usual }, () => {
      row[i] = Number(sliders[i].input.value);
      look();
    }));
  const marks = sliders.map(({ track }) => {
    const mark = make("span", { className: "mark", "aria-hidden": "true" });
    track.append(mark);
    return mark;
  });
  const put = (values) => {
    row = [...values];
    row.forEach((value, i) => sliders[i].set(value));
    look();
  };
  $("row-sliders").replaceChildren(...sliders.map(({ element }) => element));
  $("row-sample").onclick = said(section, async () => put(await one()));
  $("row-usual").onclick = () => put(model.columns.map(({ usual }) => usual));
  return look();
}

function latentSliders() {
  const section = $("latents");
  if (!model.sliders.length) return undefined;
  section.hidden = false;
  let z = [...model.rest];
  const decode = latest(said(section, async () => {
    const { observations: [x] } = await ask("decode", { z: [z] });
    $("latents-shown").replaceChildren(show(model, x, `What these latents give: ${model.noun}`));
  }));
  const sliders = model.sliders.map(({ latent, kl, low, high }) => ({
    latent,
    ...slider(`z${latent}`, `${kl.toFixed(2)} nats`, { low, high, value: z[latent] }, () => {
      z[latent] = Number(sliders.find((each) => each.latent === latent).input.value);
      decode();
    }),
  }));
  const put = (values) => {
    z = [...values];
    sliders.forEach(({ latent, set }) => set(z[latent]));
    decode();
  };
  const encoded = async (x) => (await ask("encode", [x])).latents[0].mu;
  $("latents-sliders").replaceChildren(...sliders.map(({ element }) => element));
  takeApart = said(section, async (x) => {
    section.scrollIntoView({ block: "start" });
    put(await encoded(x));
  });
  $("latents-rest").onclick = () => put(model.rest);
  $("latents-sample").onclick = said(section, async () => put(await encoded(await one())));
  $("latents-drawing").hidden = kind !== "image";
  $("latents-drawing").onclick = said(section, async () => takeApart(drawn()));
  return decode();
}

function theWay() {
  const section = $("way");
  const ends = {};
  let steps = [];
  const at = $("way-at");
  at.max = Math.min(at.max, model.limits.observations - 1);
  const place = () => steps.length && $("way-shown").replaceChildren(show(model, steps[at.value], `Step ${Number(at.value) + 1} of ${steps.length} on the way`));
  const go = latest(said(section, async () => {
    const { observations } = await ask(`interpolate?steps=${Number(at.max) + 1}`, [ends.a, ends.b]);
    steps = observations;
    place();
  }));
  at.oninput = place;
  const end = (name, word) => {
    const frame = make("div", { className: "frame" });
    const put = (x) => {
      ends[name] = x;
      frame.replaceChildren(show(model, x, `The ${word} ${model.noun}`));
      return ends.a && ends.b && go();
    };
    const file = make("input", { type: "file", hidden: true, accept: KINDS[kind][1] });
    file.onchange = said(section, async () => {
      const form = new FormData();
      form.append("file", file.files[0]);
      await put((await ask("score?samples=1&show=1", form)).scores[0].observation);
    });
    const button = (text, work) => make("button", { type: "button", "aria-label": `${text} as the ${word} ${model.noun}`, onclick: work }, text);
    const buttons = [button("A sample", said(section, async () => put(await one()))), button("A file", () => file.click())];
    if (drawing) buttons.splice(1, 0, button("The drawing", said(section, async () => put(drawn()))));
    $(`way-${name}`).replaceChildren(frame, ...buttons, file);
    return put;
  };
  const [a, b] = [end("a", "first"), end("b", "second")];
  return said(section, async () => {
    const [x, y] = await samples(2, 5);
    a(x);
    return b(y);
  })();
}

function scoring() {
  const section = $("file");
  const drop = $("file-drop");
  $("file-kinds").textContent = KINDS[kind][0];
  $("file-input").accept = KINDS[kind][1];
  const score = said(section, async (files) => {
    if (!files.length) return;
    const form = new FormData();
    for (const file of files) form.append("file", file);
    $("file-scores").setAttribute("aria-busy", "true");
    try {
      const answer = await ask("score?show=1", form);
      $("file-scores").replaceChildren(...results(answer));
    } finally {
      $("file-scores").removeAttribute("aria-busy");
    }
  });
  $("file-input").onchange = (event) => score([...event.target.files]);
  for (const name of ["dragover", "dragenter"]) drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    score([...event.dataTransfer.files]);
  });
}

/** The answer of /score as elements. */
function results({ scores, notes }) {
  const odd = scores.filter(({ verdict }) => verdict?.odd).length;
  const count = `${scores.length} ${scores.length > 1 ? several : model.noun}${model.detector ? `, ${odd} odd` : ""}`;
  const made = [make("p", { className: "quiet" }, [count, ...notes].join(" · "))];
  const order = scores.length > SHOWN && model.detector ? [...scores].sort((a, b) => a.verdict.p - b.verdict.p) : scores;
  for (const each of order.slice(0, SHOWN)) made.push(scored(each));
  if (scores.length > SHOWN) made.push(make("p", { className: "quiet" }, `${model.detector ? "The oddest" : "The first"} ${SHOWN} are shown.`));
  return made;
}

function scored(score) {
  const words = make("div", { className: "figures" }, make("h3", {}, score.name), ...figures(model, score));
  const picture = (x, text, under, map) => make("figure", {}, show(model, x, `${score.name}: ${text}`, under, map), make("figcaption", {}, text));
  const pictures = kind === "image" ? [picture(score.observation, "as it is seen"), picture(score.reconstructed, "reconstructed"), ...(score.map ? [picture(score.map, "red: odd, blue: smoother")] : [])]
    : kind === "series" ? [picture(score.reconstructed, `values in grey, reconstructed in colour${score.map ? ", red where odd" : ""}`, score.observation, score.map)]
    : [picture(score.observation, `values, and what the model expects${score.map ? "; off by so many standard deviations" : ""}`, score.reconstructed, score.map)];
  return make("div", { className: kind === "image" ? "scored" : "scored lines" }, make("div", { className: "pictures" }, ...pictures), words);
}

introduce();
if (kind === "image") drawingPad();
if (kind === "vector") ownRow();
scoring();
await Promise.all([latentSliders(), sampling(), theWay()]);
document.body.dataset.ready = "yes";
