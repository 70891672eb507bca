// From an upright RGB picture to the network's input, bit for bit as atopipe's bundle does it. No packages.
//
//   import { preprocess } from "./preprocess.mjs";
//   const input = preprocess({ height, width, pixels }, JSON.parse(text of preprocess.json));  // Float32Array [3, H, W]
//   node preprocess.mjs picture.ppm preprocess.json > input.f32
//
// `pixels`: Uint8Array [height, width, 3]. The steps are numbered as in docs/reference/preprocessing.md.

const BITS = 22;
const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight(value) {
      const a = -0.5, x = Math.abs(value);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { support: 3, weight: (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

// Half to even, as C's nearbyint and Python's round.
function round(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

// Step 4: which inputs make an output, and by what weights, in units of 2^-22.
function taps(inputs, from, to, outputs, filter) {
  const scale = Math.fround(to - from) / outputs; // the length of a box is rounded to float32, as its edges are
  const stretch = Math.max(scale, 1), support = filter.support * stretch;
  return Array.from({ length: outputs }, (_, output) => {
    const center = from + (output + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.trunc(center + support + 0.5), inputs) - first;
    const weights = Array.from({ length: count }, (_, x) => filter.weight((x + first - center + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const shares = sum === 0 ? weights : weights.map((weight) => weight / sum);
    return { first, weights: shares.map((share) => Math.trunc((share < 0 ? -0.5 : 0.5) + share * (1 << BITS))) };
  });
}

// Step 4: along rows; `step` and `stride` say where the next input of a row, and the next row, lie.
function along({ height, width, pixels }, columns) {
  const result = new Uint8Array(3 * height * columns.length);
  for (let y = 0; y < height; y++) {
    columns.forEach(({ first, weights }, x) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (BITS - 1);
        weights.forEach((weight, tap) => (sum += weight * pixels[3 * (y * width + first + tap) + channel]));
        result[3 * (y * columns.length + x) + channel] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
      }
    });
  }
  return { height, width: columns.length, pixels: result };
}

function transposed({ height, width, pixels }) {
  const result = new Uint8Array(pixels.length);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let channel = 0; channel < 3; channel++)
        result[3 * (x * height + y) + channel] = pixels[3 * (y * width + x) + channel];
  return { height: width, width: height, pixels: result };
}

function resized(image, height, width, box, filter) {
  const [left, top, right, bottom] = box;
  const across = width !== image.width || left !== 0 || right !== width;
  const down = height !== image.height || top !== 0 || bottom !== height;
  const columns = taps(image.width, left, right, width, filter), rows = taps(image.height, top, bottom, height, filter);
  const strip = image.height > 16 * image.width;
  if (down && strip) image = transposed(along(transposed(image), rows));
  if (across) image = along(image, columns);
  if (down && !strip) image = transposed(along(transposed(image), rows));
  return image;
}

function cropped({ width: stride, pixels }, top, left, height, width) {
  const result = new Uint8Array(3 * height * width);
  for (let y = 0; y < height; y++) {
    const begin = 3 * ((top + y) * stride + left);
    result.set(pixels.subarray(begin, begin + 3 * width), 3 * y * width);
  }
  return { height, width, pixels: result };
}

// Steps 3 to 5.
export function fitted(image, settings) {
  const [leastHeight, leastWidth] = settings.resize, [cropHeight, cropWidth] = settings.size;
  const scale = Math.max(leastHeight / image.height, leastWidth / image.width);
  const height = Math.max(leastHeight, round(image.height * scale));
  const width = Math.max(leastWidth, round(image.width * scale));
  const top = Math.floor((height - cropHeight) / 2), left = Math.floor((width - cropWidth) / 2);
  const filter = FILTERS[settings.interpolation.split(",")[0]];
  if (height * width > 16 * leastHeight * leastWidth) {
    const down = image.height / height, across = image.width / width;
    const edges = [left * across, top * down, (left + cropWidth) * across, (top + cropHeight) * down];
    return resized(image, cropHeight, cropWidth, edges.map(Math.fround), filter); // the edges of a box are float32
  }
  const whole = [0, 0, image.width, image.height];
  const scaled = height === image.height && width === image.width ? image : resized(image, height, width, whole, filter);
  return cropped(scaled, top, left, cropHeight, cropWidth);
}

// Step 6: each operation rounded to float32.
export function preprocess(image, settings) {
  const { pixels } = fitted(image, settings), count = pixels.length / 3;
  const input = new Float32Array(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    const mean = Math.fround(settings.mean[channel]), std = Math.fround(settings.std[channel]);
    for (let place = 0; place < count; place++) {
      const share = Math.fround(pixels[3 * place + channel] / 255);
      input[channel * count + place] = Math.fround(Math.fround(share - mean) / std);
    }
  }
  return input;
}

async function main([picture, settings]) {
  const { readFileSync, writeSync } = await import("node:fs");
  const bytes = readFileSync(picture);
  const [header, width, height] = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.toString("latin1", 0, 64));
  const image = { height: +height, width: +width, pixels: new Uint8Array(bytes.subarray(header.length)) };
  const input = Buffer.from(preprocess(image, JSON.parse(readFileSync(settings, "utf8"))).buffer);
  for (let written = 0; written < input.length; ) written += writeSync(1, input, written);
}

if (typeof process !== "undefined" && import.meta.url === `file://${process.argv[1]}`) await main(process.argv.slice(2));
