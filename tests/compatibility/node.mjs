// Score a job of table.py with onnxruntime-node: `node node.mjs JOB` prints the result as JSON.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import { score } from "./score.mjs";

const scores = await score(ort, (name) => readFile(join(process.argv[2], name)));
const platform = `${process.arch}, Node.js ${process.versions.node}`;
console.log(JSON.stringify({ version: ort.env.versions.node, platform, ...scores }));
