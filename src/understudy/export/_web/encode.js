// Raw input -> the array that the graph takes, number for number as understudy.preprocess does it. No page, no network: node runs it too.

// Images. A picture is {width, height, data}: RGBA bytes, row by row, as a canvas gives them.

// (C, H, W) bytes of a picture at the student's size. read: the preprocessing of config.json, kind "image".
export function encodeImage(picture, read) {
  const [height, width] = read.size;
  const factor = read.maximum / 255;
  const level = Uint8Array.from({ length: 256 }, (_, value) => (read.maximum === 255 ? value : nearestEven(value * factor)));
  const planes = read.channels === 1 ? [grey(picture.data, level)] : [0, 1, 2].map((channel) => every(picture.data, channel, level));
  const encoded = new Uint8Array(read.channels * height * width);
  planes.forEach((plane, channel) => encoded.set(resized(plane, picture.width, picture.height, width, height), channel * height * width));
  return encoded;
}

// Pillow's luma: ITU-R 601-2 in 16 bits; equal red, green and blue stay as they are.
function grey(data, level) {
  const plane = new Uint8Array(data.length / 4);
  for (let at = 0; at < plane.length; at++) {
    const [red, green, blue] = [level[data[4 * at]], level[data[4 * at + 1]], level[data[4 * at + 2]]];
    plane[at] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
  }
  return plane;
}

function every(data, channel, level) {
  const plane = new Uint8Array(data.length / 4);
  for (let at = 0; at < plane.length; at++) plane[at] = level[data[4 * at + channel]];
  return plane;
}

// numpy.rint: halves go to the even neighbour.
function nearestEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

// A plane of bytes at another size: bilinear with anti-aliasing as Pillow computes it, in whole numbers with 22 bits behind the point,
// along rows, then along columns; the other way round where the height shrinks by more than twice as many lines as the width does, as
// Pillow has done since 13. A canvas resamples in ways that differ from browser to browser.
export function resized(plane, width, height, newWidth, newHeight) {
  if (newHeight < height && height - newHeight > 2 * (width - newWidth)) {
    return rows(columns(plane, width, height, newHeight), width, newHeight, newWidth);
  }
  return columns(rows(plane, width, height, newWidth), newWidth, height, newHeight);
}

function rows(plane, width, height, size) {
  return along(plane, height, width, size, [width, 1], [size, 1]);
}

function columns(plane, width, height, size) {
  return along(plane, width, height, size, [1, width], [1, width]);
}

const BITS = 22;

// from, to: how far apart lines, and the places of a line, lie in the plane that is read, and in the new one.
function along(plane, lines, size, newSize, from, to) {
  if (newSize === size) return plane;
  const wanted = taps(size, newSize);
  const found = new Uint8Array(lines * newSize);
  for (let line = 0; line < lines; line++) {
    for (let at = 0; at < newSize; at++) {
      const { first, weights } = wanted[at];
      const start = line * from[0] + first * from[1];
      let sum = 1 << (BITS - 1);
      for (let tap = 0; tap < weights.length; tap++) sum += plane[start + tap * from[1]] * weights[tap];
      found[line * to[0] + at * to[1]] = Math.max(0, Math.min(255, sum >> BITS));
    }
  }
  return found;
}

// For each new place the first old one that counts, and whole weights: a triangle as wide as the larger step.
function taps(size, newSize) {
  const step = size / newSize;
  const reach = Math.max(step, 1);
  return Array.from({ length: newSize }, (_, at) => {
    const centre = (at + 0.5) * step;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(size, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let old = first; old < last; old++) weights.push(Math.max(0, 1 - Math.abs((old - centre + 0.5) * (1 / reach))));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => Math.trunc(0.5 + (weight / sum) * (1 << BITS))) };
  });
}

// A drawing as MNIST's digits were made: what is drawn fills 20 of 28 places, its centre of mass lies in the middle.
// ink: bytes of a square plane, 0 where nothing is drawn. Gives such a plane of the same side.
export function centred(ink, side) {
  let [left, top, right, bottom] = [side, side, -1, -1];
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (ink[y * side + x]) [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
  }
  const found = new Uint8Array(side * side);
  if (right < 0) return found;
  const [width, height] = [right - left + 1, bottom - top + 1];
  const factor = (side * 20) / 28 / Math.max(width, height);
  const [newWidth, newHeight] = [Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor))];
  const box = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) box.set(ink.subarray((top + y) * side + left, (top + y) * side + left + width), y * width);
  const fitted = resized(box, width, height, newWidth, newHeight);
  let [mass, sumX, sumY] = [0, 0, 0];
  fitted.forEach((value, at) => {
    mass += value;
    sumX += value * (at % newWidth);
    sumY += value * Math.floor(at / newWidth);
  });
  const [shiftX, shiftY] = [Math.round((side - 1) / 2 - sumX / mass), Math.round((side - 1) / 2 - sumY / mass)];
  fitted.forEach((value, at) => {
    const [x, y] = [(at % newWidth) + shiftX, Math.floor(at / newWidth) + shiftY];
    if (x >= 0 && x < side && y >= 0 && y < side) found[y * side + x] = value;
  });
  return found;
}

// Numbers and tables. Cells are texts; an Error says in words what is wrong with one.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const MISSING = new Set(["", "?", "NA", "N/A", "nan", "NaN", "null", "NULL"]);

function number(cell, name) {
  if (!NUMBER.test(cell)) throw new Error(`${name}: “${cell}” is no number`);
  return Number(cell);
}

// (D,) centred numbers of a text with D of them. read: kind "vector".
export function encodeVector(text, read) {
  const cells = text.split(/[\s,;]+/).filter((cell) => cell !== "");
  if (cells.length !== read.mean.length) throw new Error(`${cells.length} numbers, the model takes ${read.mean.length}`);
  return Float32Array.from(cells, (cell, at) => number(cell, `number ${at + 1}`) - read.mean[at]);
}

// (D,) slots of a row, cells in the order of the columns. read: kind "table".
export function encodeTable(cells, read) {
  return Float32Array.from(read.columns.flatMap((column, at) => (column.type === "numeric" ? slot : oneHot)(cells[at], column)));
}

function slot(cell, column) {
  const trimmed = cell.trim();
  const gap = MISSING.has(trimmed);
  const standard = gap ? 0 : (number(trimmed, column.name) - column.mean) / column.std;
  return column.missing ? [standard, gap ? 1 : 0] : [standard];
}

function oneHot(cell, column) {
  const count = column.categories.length;
  const known = MISSING.has(cell) || MISSING.has(cell.trim()) ? "" : cell;
  const place = known === "" ? count + 1 : column.categories.indexOf(known);
  return Array.from({ length: count + 2 }, (_, at) => (at === (place < 0 ? count : place) ? 1 : 0));
}

// Answers.

// Probabilities of logits.
export function softmax(logits) {
  const largest = logits.reduce((most, value) => Math.max(most, value), -Infinity);
  const powers = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}
