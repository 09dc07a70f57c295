// Score a job of table.py: `read(name)` promises a file of the job, and the result is what table.py reads as JSON.
import { VAE, noiseIndex } from "./vae.mjs";

export async function score(ort, read) {
  const floats = async (name) => new Float32Array(new Uint8Array(await read(name)).buffer); // a copy is aligned
  const vae = await VAE.load(ort, read);
  const x = await floats("x.f32");
  const { elbo, mu, logsigma, parameters } = await vae.terms(x, await floats("eps.f32"));
  const arrays = Object.entries({ elbo, mu, logsigma, parameters });
  const index = Array.from(await noiseIndex(x, elbo.length), String); // JSON has no integers of 64 bits
  return { index, ...Object.fromEntries(arrays.map(([name, values]) => [name, Array.from(values)])) };
}
