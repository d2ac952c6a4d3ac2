// Run the network beside the page, so that the page stays responsive.

import * as ort from "./ort.wasm.min.mjs";
import { selectKeypoints } from "./matching.js";

ort.env.wasm.numThreads = 1; // more threads need cross-origin isolation
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;

const open = (name) => ort.InferenceSession.create(new URL(name, import.meta.url).href);
const sessions = (async () => [await open("spfpn-s.onnx"), await open("spfpn-s.describe.onnx")])();
sessions.catch(() => {}); // each call reports it

const held = new Map(); // the maps of each side's photograph

/** Run the network on gray values [H, W] in [0, 1]. */
async function computeMaps({ gray, width, height }) {
  const [detector] = await sessions;
  const start = performance.now();
  const maps = await detector.run({ image: new ort.Tensor("float32", gray, [1, 1, height, width]) });
  return { gray, width, height, maps, milliseconds: performance.now() - start };
}

/** Describe points [N, 2]: [N, 128]. */
async function describe({ fine, middle, coarse }, xy) {
  if (!xy.length) return new Float32Array(0);
  const [, describer] = await sessions;
  const points = new ort.Tensor("float32", xy, [xy.length / 2, 2]);
  return (await describer.run({ fine, middle, coarse, points })).descriptors.data;
}

async function detect({ side, picture, settings }) {
  if (picture) held.set(side, await computeMaps(picture));
  const { gray, width, height, maps, milliseconds } = held.get(side);
  const start = performance.now();
  const { xy, scores } = selectKeypoints(maps.heatmap.data, gray, width, height, settings);
  const descriptors = await describe(maps, xy);
  return { xy, scores, descriptors, milliseconds: milliseconds + performance.now() - start };
}

let queue = Promise.resolve(); // ONNX Runtime runs one call at a time
self.onmessage = ({ data }) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({ call: data.call, found: await detect(data) });
    } catch (error) {
      self.postMessage({ call: data.call, error: String(error?.message ?? error) });
    }
  });
};
