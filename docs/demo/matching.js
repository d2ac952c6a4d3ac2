// Select keypoints, match descriptors, estimate a homography. Nothing here touches the page.
// The selection is that of spfpn/runtime/light.py and keypoints.py.

const CONTRAST_RADIUS = 16; // pixels to each side of a window
const CONTRAST_LEVEL = Math.fround(0.5 / 255); // least range of the gray values in it
export const MIN_INLIERS = 20;

// ---- keypoints ----

/** Return the maximum of 2 · radius + 1 neighbors in each row, transposed: [W, H]. */
function runningMax(values, width, height, radius) {
  const side = 2 * radius + 1;
  const found = new Float32Array(values.length);
  const row = new Float32Array(width + 2 * radius);
  for (let y = 0; y < height; y++) {
    row.fill(-Infinity);
    row.set(values.subarray(y * width, (y + 1) * width), radius);
    let length = row.length;
    for (let reach = 1; reach < side; ) {
      const step = Math.min(reach, side - reach); // each value stands for `reach` pixels
      length -= step;
      for (let x = 0; x < length; x++) if (row[x + step] > row[x]) row[x] = row[x + step];
      reach += step;
    }
    for (let x = 0; x < width; x++) found[x * height + y] = row[x];
  }
  return found;
}

/** Return the maximum of the window around each pixel of values [H, W]. */
export function windowMax(values, width, height, radius) {
  return runningMax(runningMax(values, width, height, radius), height, width, radius);
}

/** Return the places of pixels that are the maximum of their window, in reading order. */
export function localMaxima(values, width, height, radius) {
  const highest = windowMax(values, width, height, radius);
  const places = [];
  for (let i = 0; i < values.length; i++) {
    if (values[i] > 0 && values[i] === highest[i]) places.push(i);
  }
  const rank = new Float32Array(values.length); // earlier pixels rank higher
  places.forEach((place, k) => (rank[place] = places.length - k));
  const first = windowMax(rank, width, height, radius);
  return places.filter((place) => first[place] === rank[place]);
}

/** Tell the pixels in whose window the gray values differ, as a function of the place. */
function contrast(gray, width, height) {
  const brightest = windowMax(gray, width, height, CONTRAST_RADIUS);
  const darkest = windowMax(gray.map((value) => -value), width, height, CONTRAST_RADIUS);
  return (place) => Math.fround(brightest[place] + darkest[place]) >= CONTRAST_LEVEL;
}

/** Return the offset of the top of a parabola through three log-scores, within half a pixel. */
function parabolaTop(before, at, after) {
  const curve = before - 2 * at + after;
  if (!(curve < 0)) return 0;
  return Math.min(0.5, Math.max(-0.5, (before - after) / (2 * curve)));
}

/** Return the point (x, y) of the peak of a heatmap around a pixel. */
function refine(heatmap, width, height, x, y) {
  const clip = (value, size) => Math.min(size - 1, Math.max(0, value));
  const log = (column, row) =>
    Math.log(Math.max(1e-8, heatmap[clip(row, height) * width + clip(column, width)]));
  const at = log(x, y);
  return [
    x + parabolaTop(log(x - 1, y), at, log(x + 1, y)),
    y + parabolaTop(log(x, y - 1), at, log(x, y + 1)),
  ];
}

/**
 * Select the keypoints of a heatmap [H, W], best first.
 * Return `xy` [N, 2] in pixels and `scores` [N].
 */
export function selectKeypoints(heatmap, gray, width, height, settings = {}) {
  const { maxKeypoints = 500, nmsRadius = 2, threshold = 0, border = 4 } = settings;
  const hasContrast = contrast(gray, width, height);
  const inside = (place) => {
    const x = place % width;
    const y = (place - x) / width;
    const free = Math.min(x, y, width - 1 - x, height - 1 - y) >= border;
    return free && heatmap[place] > threshold && hasContrast(place);
  };
  const places = localMaxima(heatmap, width, height, nmsRadius).filter(inside);
  places.sort((a, b) => heatmap[b] - heatmap[a]); // stable
  const best = places.slice(0, maxKeypoints);
  const xy = new Float32Array(2 * best.length);
  best.forEach((place, k) => {
    const x = place % width;
    xy.set(refine(heatmap, width, height, x, (place - x) / width), 2 * k);
  });
  return { xy, scores: Float32Array.from(best, (place) => heatmap[place]) };
}

// ---- matches ----

/** Keep the index of the largest value and the two largest values of row `k`. */
function keepBest(best, k, value, index) {
  if (value > best.first[k]) {
    best.second[k] = best.first[k];
    best.first[k] = value;
    best.index[k] = index;
  } else if (value > best.second[k]) {
    best.second[k] = value;
  }
}

function emptyBest(length) {
  return {
    index: new Int32Array(length).fill(-1),
    first: new Float32Array(length).fill(-Infinity),
    second: new Float32Array(length).fill(-Infinity),
  };
}

/** Say whether the best of row `k` is nearer than `ratio` times its second best. */
function passesRatio(best, k, ratio) {
  if (ratio >= 1 || best.second[k] === -Infinity) return true;
  const [near, far] = [best.first[k], best.second[k]].map((cosine) => Math.max(0, 1 - cosine));
  return near < ratio ** 2 * far;
}

/**
 * Find mutual nearest neighbors of descriptors [N, D] and [M, D] of unit length.
 * Return `pairs`, a list of [index in the first, index in the second], and `scores`, cosines.
 */
export function match(descriptors0, descriptors1, settings = {}) {
  const { ratio = 1, minScore = -1, dimensions = 128 } = settings;
  const [n, m] = [descriptors0.length / dimensions, descriptors1.length / dimensions];
  const [there, back] = [emptyBest(n), emptyBest(m)];
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < m; j++) {
      let cosine = 0;
      for (let d = 0, a = i * dimensions, b = j * dimensions; d < dimensions; d++) {
        cosine += descriptors0[a + d] * descriptors1[b + d];
      }
      keepBest(there, i, cosine, j);
      keepBest(back, j, cosine, i);
    }
  }
  const pairs = [];
  const scores = [];
  for (let i = 0; i < n; i++) {
    const j = there.index[i];
    if (j < 0 || back.index[j] !== i || there.first[i] < minScore) continue;
    if (!passesRatio(there, i, ratio) || !passesRatio(back, j, ratio)) continue;
    pairs.push([i, j]);
    scores.push(there.first[i]);
  }
  return { pairs, scores };
}

// ---- homography ----

/** Return a function that draws numbers in [0, 1), the same ones for the same seed. */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0; // mulberry32
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Return the product of two 3×3 matrices. */
function multiply(a, b) {
  return a.map((_, k) => {
    const [row, column] = [3 * Math.floor(k / 3), k % 3];
    return a[row] * b[column] + a[row + 1] * b[3 + column] + a[row + 2] * b[6 + column];
  });
}

/** Return the inverse of a 3×3 matrix. */
export function invert([a, b, c, d, e, f, g, h, i]) {
  const [A, B, C] = [e * i - f * h, f * g - d * i, d * h - e * g];
  const determinant = a * A + b * B + c * C;
  const adjugate = [A, c * h - b * i, b * f - c * e, B, a * i - c * g, c * d - a * f];
  adjugate.push(C, b * g - a * h, a * e - b * d);
  return adjugate.map((value) => value / determinant);
}

/** Carry a point by a homography (9 numbers, row by row). */
export function transform(H, x, y) {
  const depth = H[6] * x + H[7] * y + H[8];
  return [(H[0] * x + H[1] * y + H[2]) / depth, (H[3] * x + H[4] * y + H[5]) / depth];
}

/** Solve a linear system in place by Gaussian elimination; return null for a singular one. */
function solve(rows) {
  const n = rows.length;
  for (let k = 0; k < n; k++) {
    let pivot = k;
    for (let r = k + 1; r < n; r++) if (Math.abs(rows[r][k]) > Math.abs(rows[pivot][k])) pivot = r;
    if (Math.abs(rows[pivot][k]) < 1e-12) return null;
    [rows[k], rows[pivot]] = [rows[pivot], rows[k]];
    for (let r = k + 1; r < n; r++) {
      const factor = rows[r][k] / rows[k][k];
      for (let c = k; c <= n; c++) rows[r][c] -= factor * rows[k][c];
    }
  }
  const solution = new Array(n).fill(0);
  for (let k = n - 1; k >= 0; k--) {
    let value = rows[k][n];
    for (let c = k + 1; c < n; c++) value -= rows[k][c] * solution[c];
    solution[k] = value / rows[k][k];
  }
  return solution;
}

/** Return the matrix that moves points to mean 0 and mean distance √2 from it. */
function normalization(points) {
  const n = points.length;
  const x = points.reduce((sum, p) => sum + p[0], 0) / n;
  const y = points.reduce((sum, p) => sum + p[1], 0) / n;
  const distance = points.reduce((sum, p) => sum + Math.hypot(p[0] - x, p[1] - y), 0) / n;
  const scale = Math.SQRT2 / Math.max(distance, 1e-9);
  return [scale, 0, -scale * x, 0, scale, -scale * y, 0, 0, 1];
}

/** Fit a homography to 4 or more pairs of points by the normalized DLT; null for degenerate ones. */
function fit(points0, points1) {
  const [T0, T1] = [normalization(points0), normalization(points1)];
  const normal = Array.from({ length: 8 }, () => new Float64Array(9));
  const addRow = (row) => {
    for (let r = 0; r < 8; r++) for (let c = 0; c < 9; c++) normal[r][c] += row[r] * row[c];
  };
  points0.forEach((point, k) => {
    const [x, y] = transform(T0, ...point);
    const [u, v] = transform(T1, ...points1[k]);
    addRow([x, y, 1, 0, 0, 0, -u * x, -u * y, u]);
    addRow([0, 0, 0, x, y, 1, -v * x, -v * y, v]);
  });
  const solution = solve(normal);
  if (!solution) return null;
  const H = multiply(multiply(invert(T1), [...solution, 1]), T0);
  return H.map((value) => value / H[8]);
}

/** Say whether four pairs turn alike: no three of them lie on a line or are mirrored. */
function turnAlike(points0, points1) {
  const turn = (points, skipped) => {
    const [a, b, c] = points.filter((_, k) => k !== skipped);
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
  };
  return [0, 1, 2, 3].every((k) => turn(points0, k) * turn(points1, k) > 0);
}

/** Return the indices of pairs that a homography carries to within `threshold` pixels. */
function findInliers(H, points0, points1, threshold) {
  const found = [];
  points0.forEach(([x, y], k) => {
    const [u, v] = transform(H, x, y);
    if (Math.hypot(u - points1[k][0], v - points1[k][1]) <= threshold) found.push(k);
  });
  return found;
}

/** Return four different indices below `n`. */
function sampleFour(n, random) {
  const chosen = new Set();
  while (chosen.size < 4) chosen.add(Math.floor(n * random()));
  return [...chosen];
}

/** Fit by least squares to the inliers, and again to those of the fit, until they stay the same. */
function refit(model, points0, points1, threshold) {
  for (let round = 0; round < 10; round++) {
    const { inliers } = model;
    const H = fit(inliers.map((k) => points0[k]), inliers.map((k) => points1[k]));
    if (!H) break;
    model = { H, inliers: findInliers(H, points0, points1, threshold) };
    if (model.inliers.length < 4 || String(model.inliers) === String(inliers)) break;
  }
  return model;
}

/**
 * Estimate the homography that carries `points0` to `points1`, lists of [x, y], by RANSAC.
 * Return `matrix` (9 numbers, or null below `minInliers`) and `inliers`, a list of indices.
 */
export function homography(points0, points1, settings = {}) {
  const { threshold = 3, iterations = 2000, seed = 0, minInliers = MIN_INLIERS } = settings;
  const n = points0.length;
  const random = randomNumbers(seed);
  let best = { H: null, inliers: [] };
  let wanted = n < 4 ? 0 : iterations;
  for (let k = 0; k < wanted; k++) {
    const sample = sampleFour(n, random);
    const [four0, four1] = [sample.map((i) => points0[i]), sample.map((i) => points1[i])];
    const H = turnAlike(four0, four1) ? fit(four0, four1) : null;
    const inliers = H ? findInliers(H, points0, points1, threshold) : [];
    if (inliers.length <= Math.max(3, best.inliers.length)) continue;
    best = { H, inliers };
    const allRight = Math.min(1 - 1e-9, (best.inliers.length / n) ** 4);
    wanted = Math.min(iterations, k + 1 + Math.ceil(Math.log(1e-6) / Math.log(1 - allRight)));
  }
  if (best.H) best = refit(best, points0, points1, threshold);
  const enough = best.H && best.inliers.length >= minInliers;
  return { matrix: enough ? best.H : null, inliers: best.inliers };
}
