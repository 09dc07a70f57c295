// Score images with a bundle of vae-edge: the same module in Node.js, with onnxruntime-node, and in a browser, with
// onnxruntime-web. Arrays are flat: n images are a Float32Array [n * C * H * W] with values in [0, 1], rows one of
// [n * D], n latents one of [n * latent_dim]. Every figure is in nats, computed in double precision from what the graphs return.

export class VAE {
  constructor(ort, contract, encoder, decoder, prior, columns = []) {
    Object.assign(this, { ort, contract, encoder, decoder, prior, columns });
    this.likelihood = LIKELIHOODS[contract.likelihood.name];
    if (contract.format !== 2 || !PRIORS.includes(contract.prior.name) || !this.likelihood) {
      throw new Error(`bundle not understood: ${JSON.stringify(contract)}; use a newer release of this module`);
    }
  }

  /** Load a bundle. `ort` is the onnxruntime package; `read(name)` promises a file of the bundle, as a Uint8Array. */
  static async load(ort, read) {
    const { contract, files, preprocessing } = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
    const open = async (name) => {
      const bytes = await read(name);
      if ((await sha256(bytes)) !== files[name].sha256) {
        // a damaged download, or a cache that still has the file of another export
        throw new Error(`file is not the one of the manifest: ${name}; load the whole bundle again`);
      }
      return ort.InferenceSession.create(bytes);
    };
    const prior = contract.prior.name === "flow" ? await open("prior.onnx") : undefined;
    return new VAE(ort, contract, await open("encoder.onnx"), await open("decoder.onnx"), prior, preprocessing?.columns);
  }

  /** Rows [n * D] or windows [n * C * T] as they are measured, in the order of `columns`, as the others take them. */
  standardise(measured) {
    const [, steps = 1] = this.contract.observation.shape; // of each channel of a window
    return Float32Array.from(measured, (value, i) => {
      const { mean, scale } = this.columns[Math.floor(i / steps) % this.columns.length] ?? { mean: 0, scale: 1 };
      return (value - mean) / scale;
    });
  }

  /** q(z|x) of each image: mu and logsigma, Float32Array [n * latent_dim] each. */
  async encode(x) {
    const { mu, logsigma } = await this.encoder.run({ x: this.#tensor(x, this.contract.observation.shape) });
    return { mu: mu.data, logsigma: logsigma.data };
  }

  /** The likelihood's parameters of each latent, for Bernoulli the logits: Float32Array [n * parameters of an image]. */
  async decode(z) {
    const outputs = await this.decoder.run({ z: this.#tensor(z, this.contract.latent_shape) });
    return outputs[this.likelihood.output].data;
  }

  /** z ~ p(z) that standard normal noise becomes, Float32Array [n * latent_dim] both; under N(0, I) the noise itself. */
  async latents(noise) {
    return this.prior ? this.#runPrior("z_of_noise", noise, []) : noise;
  }

  /** log p(z) of each latent, nats: Float64Array [n]. */
  async logPrior(z) {
    if (this.prior) return Float64Array.from(await this.#runPrior("log_prob", [], z));
    const n = z.length / this.#latentDim();
    return Float64Array.from({ length: n }, (_, i) => sum(row(z, i, n), (value) => normal(value, 0, 0)));
  }

  /**
   * ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) of each image, its two terms, and the arrays that they come from.
   *
   * One draw z = mu + sigma eps for each image; eps: standard normal noise, Float32Array [n * latent_dim]. x must be
   * what the likelihood knows: 0 or 1 for Bernoulli, level / 255 for the discretised logistic. The KL is in closed form,
   * or with a learned prior log q(z|x) - log p(z) of that draw.
   */
  async terms(x, eps) {
    const { mu, logsigma } = await this.encode(x);
    const z = Float32Array.from(eps, (e, i) => mu[i] + Math.exp(logsigma[i]) * e);
    const parameters = await this.decode(z);
    const n = eps.length / this.#latentDim();
    const logPrior = this.prior && (await this.logPrior(z));
    const reconstruction = new Float64Array(n);
    const kl = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      const [xi, pi, mi, li, ei] = [x, parameters, mu, logsigma, eps].map((array) => row(array, i, n));
      reconstruction[i] = this.likelihood.logProb(xi, pi, this.contract.likelihood.settings);
      kl[i] = logPrior
        ? sum(ei, (e, j) => normal(e, 0, 0) - li[j]) - logPrior[i]
        : sum(mi, (m, j) => 0.5 * (Math.exp(2 * li[j]) + m * m - 2 * li[j] - 1));
    }
    return { elbo: reconstruction.map((r, i) => r - kl[i]), reconstruction, kl, mu, logsigma, parameters };
  }

  /** One output of a learned prior's graph, which needs one input alone: the other one has no rows. */
  async #runPrior(output, ...inputs) {
    const [noise, z] = inputs.map((values) => this.#tensor(Float32Array.from(values), this.contract.latent_shape));
    return (await this.prior.run({ noise, z }, [output]))[output].data;
  }

  #latentDim() {
    return this.contract.latent_shape.reduce((a, b) => a * b);
  }

  #tensor(values, shape) {
    const size = shape.reduce((a, b) => a * b);
    return new this.ort.Tensor("float32", values, [values.length / size, ...shape]);
  }
}

const PRIORS = ["standard-normal", "flow"]; // that this module knows

/** By the name in the contract: the decoder's output, and log p(x|z) of one image x from that output. */
export const LIKELIHOODS = {
  bernoulli: {
    output: "logits",
    logProb: (x, logits) => sum(x, (pixel, i) => pixel * logits[i] - softplus(logits[i])),
  },
  gaussian: {
    output: "loc",
    logProb: (x, loc, { logsigma, log_unit = 0 }) =>
      sum(x, (value, i) => {
        const [log, unit] = [logsigma, log_unit].map((setting) => ofColumn(setting, i, x.length));
        return normal(value, loc[i], log) - unit;
      }),
  },
  "heteroscedastic-gaussian": {
    output: "parameters", // all of an observation's loc, then all of its logsigma
    logProb: (x, parameters, { log_unit = 0 } = {}) =>
      sum(x, (value, i) => {
        const logsigma = Math.min(Math.max(parameters[x.length + i], Math.log(1e-3)), 7);
        return normal(value, parameters[i], logsigma) - ofColumn(log_unit, i, x.length);
      }),
  },
  "student-t": {
    output: "loc",
    logProb: (x, loc, { logsigma, logdf, log_unit = 0 }) =>
      sum(x, (value, i) => {
        const [log, logDf, unit] = [logsigma, logdf, log_unit].map((setting) => ofColumn(setting, i, x.length));
        const [df, t] = [Math.exp(logDf), (value - loc[i]) / Math.exp(log)];
        const gammas = logGamma((df + 1) / 2) - logGamma(df / 2);
        return gammas - 0.5 * Math.log(df * Math.PI) - log - unit - 0.5 * (df + 1) * Math.log1p((t * t) / df);
      }),
  },
  mixed: {
    output: "parameters", // logits of binary columns, loc of others
    logProb: (x, parameters, { binary, logsigma, log_unit = 0 }) =>
      sum(x, (value, i) => {
        const [flag, log, unit] = [binary, logsigma, log_unit].map((setting) => ofColumn(setting, i, x.length));
        if (flag) return value * parameters[i] - softplus(parameters[i]);
        return normal(value, parameters[i], log) - unit;
      }),
  },
  "discretised-logistic": {
    output: "parameters", // all of an image's loc, then all of its log_scale
    logProb: (x, parameters) =>
      sum(x, (pixel, i) => logisticBin(pixel, parameters[i], parameters[x.length + i])),
  },
};

/**
 * The index of each of n observations x, flat, in the noise of vae_runtime, of its content alone: BigUint64Array [n].
 *
 * The first 8 bytes, little-endian, of the sha256 of its values as little-endian float32, with -0 made 0. Draw eps by it,
 * and equal observations get equal scores, whatever lies beside them.
 */
export async function noiseIndex(x, n) {
  const index = new BigUint64Array(n);
  for (let i = 0; i < n; i++) {
    const values = row(x, i, n);
    const bytes = new DataView(new ArrayBuffer(4 * values.length));
    values.forEach((value, j) => bytes.setFloat32(4 * j, value + 0, true)); // -0 + 0 is 0
    index[i] = new DataView(await crypto.subtle.digest("SHA-256", bytes)).getBigUint64(0, true);
  }
  return index;
}

/** A setting of value i of n: one number for all, or one for each column. */
function ofColumn(setting, i, n) {
  return Array.isArray(setting) ? setting[Math.floor((i * setting.length) / n)] : setting;
}

/** log N(value; loc, exp(logsigma)^2) */
function normal(value, loc, logsigma) {
  return -0.5 * ((value - loc) / Math.exp(logsigma)) ** 2 - logsigma - 0.5 * Math.log(2 * Math.PI);
}

/** log(F(pixel + 1/510) - F(pixel - 1/510)), F the logistic's distribution function; levels 0 and 255 have the tails. */
function logisticBin(pixel, loc, logScale) {
  const scale = Math.exp(Math.min(Math.max(logScale, -7), 7));
  const halfBin = 1 / 510;
  const upper = pixel > 1 - halfBin ? Infinity : (pixel + halfBin - loc) / scale;
  const lower = pixel < halfBin ? -Infinity : (pixel - halfBin - loc) / scale;
  // sigmoid(b) - sigmoid(a) = (1 - exp(a - b)) sigmoid(b) sigmoid(-a), where no two close numbers are subtracted
  const inside = upper - lower < Infinity ? Math.log(-Math.expm1((-2 * halfBin) / scale)) : 0;
  return inside - softplus(-upper) - softplus(lower);
}

/** log Gamma(x) of a positive x: by Stirling's series, of a number of at least 10, and Gamma(x + 1) = x Gamma(x). */
function logGamma(x) {
  if (x < 10) return logGamma(x + 1) - Math.log(x);
  const series = 1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * x * x)) / (x * x)) / (x * x);
  return (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series / x;
}

/** log(1 + exp(x)), finite for every finite x. */
function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

function sum(array, term) {
  return array.reduce((total, value, i) => total + term(value, i), 0);
}

function row(array, i, n) {
  const size = array.length / n;
  return array.subarray(i * size, (i + 1) * size);
}

async function sha256(bytes) {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) {
    throw new Error("a browser checks hashes only over HTTPS or on localhost: open this page at such an address");
  }
  const digest = await subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
