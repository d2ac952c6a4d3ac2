// The page: photographs in, keypoints, matches and the aligned overlay out.

import { homography, invert, match, transform } from "./matching.js";

export { homography, match };

const LONG_SIDE = 640; // pixels of a photograph; larger ones are shrunk
const LUMA = [0.299, 0.587, 0.114];
const COLORS = { inlier: "#56B4E9", other: "#D55E00", ring: "#FFFFFF", edge: "#000000" };
const NARROW = 560; // pixels; a narrower page shows the photographs one below the other
const GAP = 8; // pixels between the photographs
const NOT_THE_SAME = "These photographs do not seem to show the same place.";
const EXAMPLES = ["coffee.png", "coffee_again.png"];

const find = (id) => document.getElementById(id);

// ---- the network ----

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const calls = new Map(); // the promises that the worker will settle
const held = new Map(); // the picture whose maps the worker holds, by side
let lastCall = 0;

worker.onmessage = ({ data: { call, found, error } }) => {
  const { resolve, reject } = calls.get(call);
  calls.delete(call);
  if (error) reject(new Error(error));
  else resolve(found);
};
worker.onerror = (event) => {
  event.preventDefault();
  const error = new Error(event.message || "its files did not load");
  for (const { reject } of calls.values()) reject(error);
  calls.clear();
  showMessage(`The detector does not run in this browser: ${error.message}.`, true);
};

/**
 * Find and describe the keypoints of a picture: `gray` [H, W] in [0, 1], `width`, `height`.
 * Settings are `maxKeypoints` and `nmsRadius`. Return `xy`, `scores`, `descriptors` and
 * `milliseconds`. The network runs once for a picture that stays on its `side`.
 */
export function detect(picture, settings = {}, side = "other") {
  const call = ++lastCall;
  const known = held.get(side) === picture;
  held.set(side, picture);
  const { gray, width, height } = picture;
  return new Promise((resolve, reject) => {
    calls.set(call, { resolve, reject });
    worker.postMessage({ call, side, settings, picture: known ? null : { gray, width, height } });
  }).catch((error) => {
    held.delete(side);
    throw error;
  });
}

// ---- photographs ----

/** Return the luma of RGBA pixels, in [0, 1]. */
function toGray(pixels) {
  const gray = new Float32Array(pixels.length / 4);
  for (let i = 0; i < gray.length; i++) {
    const [r, g, b] = [pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2]];
    const luma = r === g && g === b ? r : LUMA[0] * r + LUMA[1] * g + LUMA[2] * b;
    gray[i] = luma / 255;
  }
  return gray;
}

/** Draw an image or a video into a canvas of at most `LONG_SIDE` pixels; return the picture. */
function toPicture(source, fullWidth, fullHeight, name) {
  const scale = Math.min(1, LONG_SIDE / Math.max(fullWidth, fullHeight));
  const width = Math.max(1, Math.round(scale * fullWidth));
  const height = Math.max(1, Math.round(scale * fullHeight));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind transparent pixels
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return { name, canvas, pixels: data, gray: toGray(data), width, height };
}

/** Read a file or blob. Throws an error with a message for the reader. */
export async function readPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`The browser cannot read ${name}. Choose a JPEG, PNG or WebP file.`);
  }
  const picture = toPicture(bitmap, bitmap.width, bitmap.height, name);
  bitmap.close();
  return picture;
}

// ---- state ----

const sides = [0, 1].map((k) => ({ k, picture: null, keypoints: null, element: find(`side${k}`) }));
let matches = { pairs: [], inliers: new Set(), matrix: null };
let overlay = null; // the first photograph in the frame of the second

function setting(id) {
  return Number(find(id).value);
}

/** Show a sentence above the photographs. */
function showMessage(text, isError = false) {
  find("message").textContent = text;
  find("message").classList.toggle("error", isError);
}

function describeSide({ k, picture, keypoints }) {
  const size = `${picture.name}: ${picture.width} × ${picture.height} px`;
  const found = `${keypoints.scores.length} keypoints in ${keypoints.milliseconds.toFixed(0)} ms`;
  find(`count${k}`).textContent = `${size}, ${found}`;
}

/** Detect in one photograph. */
async function detectSide(side) {
  const settings = { maxKeypoints: setting("points"), nmsRadius: setting("radius") };
  const { picture } = side;
  const keypoints = await detect(picture, settings, side.k);
  if (side.picture === picture) Object.assign(side, { keypoints });
  describeSide(side);
}

/** Match the keypoints of both photographs and align them. */
function matchSides() {
  const [one, two] = sides.map(({ keypoints }) => keypoints);
  const settings = { ratio: setting("ratio"), minScore: setting("score") };
  const { pairs } = match(one.descriptors, two.descriptors, settings);
  const point = ({ xy }, k) => [xy[2 * k], xy[2 * k + 1]];
  const points0 = pairs.map(([i]) => point(one, i));
  const points1 = pairs.map(([, j]) => point(two, j));
  const { matrix, inliers } = homography(points0, points1);
  matches = { pairs, inliers: new Set(inliers), matrix };
  const counts = `${pairs.length} matches, ${inliers.length} inliers.`;
  showMessage(matrix ? counts : `${counts} ${NOT_THE_SAME}`);
  overlay = matrix ? warp(sides[0].picture, sides[1].picture, matrix) : null;
}

let stale = false; // a change waits for the pass that runs
let running = null;

/** Detect, match and draw; changes meanwhile lead to one more pass. */
export function update() {
  stale = true;
  running ??= (async () => {
    document.body.setAttribute("aria-busy", "true");
    while (stale) {
      stale = false;
      await pass().catch((error) => showMessage(`The detector failed: ${error.message}`, true));
    }
    running = null;
    document.body.setAttribute("aria-busy", "false");
  })();
  return running;
}

async function pass() {
  const shown = sides.filter(({ picture }) => picture);
  for (const side of shown) {
    if (!side.keypoints) showMessage("The detector works …");
    await detectSide(side);
  }
  if (stale) return;
  if (sides.every(({ keypoints }) => keypoints)) matchSides();
  else showMessage(`Choose the ${sides[0].picture ? "second" : "first"} photograph.`);
  draw();
}

/** Put a picture on a side. */
function setPicture(k, picture) {
  Object.assign(sides[k], { picture, keypoints: null });
  matches = { pairs: [], inliers: new Set(), matrix: null };
  overlay = null;
  find(`count${k}`).textContent = picture.name;
  draw();
  return update();
}

async function setFile(k, file) {
  if (!file) return;
  try {
    await setPicture(k, await readPicture(file, file.name));
  } catch (error) {
    showMessage(error.message, true);
  }
}

// ---- drawing ----

/** Give a canvas a size in CSS pixels, sharp on dense screens; return its context. */
function sized(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(density, density);
  return context;
}

/** Return where each photograph lies on the canvas, and the canvas's height. */
function layOut(width) {
  const stacked = width < NARROW;
  const wide = stacked ? width : (width - GAP) / 2;
  let [x, y, height] = [0, 0, 0];
  const frames = sides.map(({ picture }) => {
    if (!picture) return null;
    const scale = wide / picture.width;
    const frame = { x, y, scale, width: wide, height: picture.height * scale };
    height = Math.max(height, y + frame.height);
    if (stacked) y += frame.height + GAP;
    return frame;
  }).map((frame, k) => (frame && !stacked && k ? { ...frame, x: wide + GAP } : frame));
  return { frames, height };
}

function ring(context, [x, y], color) {
  context.beginPath();
  context.arc(x, y, 3, 0, 2 * Math.PI);
  context.lineWidth = 2.5;
  context.strokeStyle = COLORS.edge;
  context.globalAlpha = 0.4;
  context.stroke();
  context.lineWidth = 1.2;
  context.strokeStyle = color;
  context.globalAlpha = 1;
  context.stroke();
}

function drawMatches() {
  const canvas = find("matches");
  const width = canvas.parentElement.clientWidth;
  const { frames, height } = layOut(width);
  const context = sized(canvas, width, height);
  const place = (k, n) => {
    const { xy } = sides[k].keypoints;
    const { x, y, scale } = frames[k];
    return [x + (xy[2 * n] + 0.5) * scale, y + (xy[2 * n + 1] + 0.5) * scale];
  };
  frames.forEach((frame, k) => {
    if (!frame) return;
    const { x, y, width: wide, height: high } = frame;
    context.drawImage(sides[k].picture.canvas, x, y, wide, high);
    const count = sides[k].keypoints?.scores.length ?? 0;
    for (let n = 0; n < count; n++) ring(context, place(k, n), COLORS.ring);
  });
  const isInlier = (k) => matches.inliers.has(k) && matches.matrix;
  for (const wanted of [false, true]) {
    const color = wanted ? COLORS.inlier : COLORS.other;
    matches.pairs.forEach(([i, j], k) => {
      if (Boolean(isInlier(k)) !== wanted) return;
      const [from, to] = [place(0, i), place(1, j)];
      ring(context, from, color);
      ring(context, to, color);
      context.globalAlpha = 0.65;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
      context.globalAlpha = 1;
    });
  }
  const shown = `${matches.pairs.length} lines between matched keypoints`;
  canvas.setAttribute("aria-label", `Both photographs with their keypoints, and ${shown}`);
}

/** Return the color of a picture at a point, between pixels, as RGBA in an array; null outside. */
function sample({ pixels, width, height }, x, y, into, at) {
  if (!(x >= 0 && y >= 0 && x <= width - 1 && y <= height - 1)) return;
  const [left, top] = [Math.min(Math.floor(x), width - 2), Math.min(Math.floor(y), height - 2)];
  const [right, low] = [x - left, y - top];
  for (let c = 0; c < 3; c++) {
    const p = 4 * (top * width + left) + c;
    const q = p + 4 * width;
    const upper = pixels[p] * (1 - right) + pixels[p + 4] * right;
    const lower = pixels[q] * (1 - right) + pixels[q + 4] * right;
    into[at + c] = upper * (1 - low) + lower * low;
  }
  into[at + 3] = 255;
}

/** Return the first picture in the frame of the second, as a canvas. */
function warp(first, second, matrix) {
  const { width, height } = second;
  const back = invert(matrix);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      const [u, v] = transform(back, x, y);
      sample(first, u, v, image.data, at);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawOverlay() {
  find("aligned").hidden = !overlay;
  if (!overlay) return;
  const canvas = find("overlay");
  const { picture } = sides[1];
  const width = Math.min(canvas.parentElement.clientWidth, 1.5 * picture.width);
  canvas.style.width = `${width}px`;
  const height = (width * picture.height) / picture.width;
  const context = sized(canvas, width, height);
  context.drawImage(picture.canvas, 0, 0, width, height);
  context.globalAlpha = setting("opacity");
  context.drawImage(overlay, 0, 0, width, height);
}

function draw() {
  drawMatches();
  drawOverlay();
}

/** Return what the page shows, for tests. */
export function state() {
  return { sides, ...matches, inliers: [...matches.inliers] };
}

// ---- the camera ----

/** Show the camera; return a picture, or null when the reader cancels. */
async function takePicture() {
  const video = { facingMode: "environment", width: { ideal: 1280 } };
  const stream = await navigator.mediaDevices.getUserMedia({ video });
  const [dialog, view] = [find("camera"), find("view")];
  try {
    view.srcObject = stream;
    await view.play();
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "take") return null;
    return toPicture(view, view.videoWidth, view.videoHeight, "camera");
  } finally {
    view.srcObject = null;
    for (const track of stream.getTracks()) track.stop();
  }
}

async function useCamera(k) {
  try {
    const picture = await takePicture();
    if (picture) await setPicture(k, picture);
  } catch (error) {
    showMessage(`The camera gives no photograph: ${error.message}.`, true);
  }
}

// ---- controls ----

const examples = Promise.all(
  EXAMPLES.map(async (name) => {
    const answer = await fetch(new URL(name, import.meta.url));
    return readPicture(await answer.blob(), name);
  }),
);

async function useExamples() {
  try {
    const pictures = await examples;
    await Promise.all(pictures.map((picture, k) => setPicture(k, picture)));
  } catch (error) {
    showMessage(`The examples did not load: ${error.message}`, true);
  }
}

function connectSide({ k, element }) {
  find(`file${k}`).addEventListener("change", ({ target }) => {
    setFile(k, target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
  const button = find(`camera${k}`);
  button.disabled = !navigator.mediaDevices?.getUserMedia;
  if (button.disabled) button.title = "The browser gives a camera only to pages over https.";
  button.addEventListener("click", () => useCamera(k));
  for (const kind of ["dragenter", "dragover"]) {
    element.addEventListener(kind, () => element.classList.add("over"));
  }
  for (const kind of ["dragleave", "drop"]) {
    element.addEventListener(kind, () => element.classList.remove("over"));
  }
  element.addEventListener("drop", (event) => setFile(k, event.dataTransfer.files[0]));
}

function connectSlider(id, changed) {
  const input = find(id);
  const show = () => (find(`${id}Value`).textContent = input.value);
  show();
  input.addEventListener("input", () => {
    show();
    changed();
  });
}

sides.forEach(connectSide);
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => event.preventDefault()); // stay on the page
}
for (const id of ["points", "radius", "ratio", "score"]) connectSlider(id, update);
connectSlider("opacity", drawOverlay);
find("examples").addEventListener("click", useExamples);
new ResizeObserver(draw).observe(find("matches").parentElement);
useExamples();
