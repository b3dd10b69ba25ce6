"use strict";

/* What the page holds: numbers by name, and what follows from them. */

const facts = JSON.parse(document.getElementById("facts").textContent);
const TYPES = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int16: Int16Array,
  float32: Float32Array, float64: Float64Array,
};

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

/** The numbers of a name, [n * width]; none where the page has no such. */
function numbers(name) {
  const packed = facts.arrays[name];
  if (!packed) return null;
  const found = new TYPES[packed.type](bytesOf(packed.bytes).buffer);
  delete facts.arrays[name].bytes;
  return found;
}

const NEIGHBORS = facts.arrays.neighbors.width;
const EXAMPLES = facts.arrays.examples.width;
const total = facts.total;
const imageNumbers = numbers("numbers");
const labels = numbers("labels");
const categories = numbers("categories");
const sizes = numbers("sizes");
const valid = numbers("valid");
const gallery = numbers("gallery");
const queries = numbers("queries");
const neighbors = numbers("neighbors");
const similarities = numbers("similarities");
const rank = numbers("rank");
const right = numbers("right");
const rightSimilarity = numbers("rightSimilarity");
const recall = numbers("recall");
const precision = numbers("precision");
const averagePrecision = numbers("map");
const NONE = neighbors instanceof Uint16Array ? 0xffff : 0xffffffff;

/** Whether there is right and wrong: some image has another of its class. */
const judged = queries.length > 0;

/** Which query an image is, -1 if it is none. */
const queryOf = new Int32Array(total).fill(-1);
queries.forEach((image, query) => { queryOf[image] = query; });

/** Images of each class, in order. */
const members = facts.classes.map(() => []);
labels.forEach((label, image) => members[label].push(image));

const className = (image) => facts.classes[labels[image]];
const neighbor = (image, place) => neighbors[image * NEIGHBORS + place];
const similarity = (image, place) => similarities[image * NEIGHBORS + place] / 32767;
const isRight = (image, other) => labels[image] === labels[other];

/** Means over the queries of each class, and the class they are taken for most. */
const perClass = (() => {
  const count = facts.classes.length;
  const sums = {
    queries: new Uint32Array(count), recall: new Float64Array(count),
    precision: new Float64Array(count), map: new Float64Array(count),
    confused: new Int32Array(count).fill(-1), confusedTimes: new Uint32Array(count),
  };
  const times = new Map();
  queries.forEach((image, query) => {
    const label = labels[image];
    sums.queries[label] += 1;
    sums.recall[label] += recall[query];
    sums.precision[label] += precision[query];
    sums.map[label] += averagePrecision[query];
    const other = labels[neighbor(image, 0)];
    if (other === label) return;
    const key = label * count + other;
    times.set(key, (times.get(key) || 0) + 1);
    if (times.get(key) > sums.confusedTimes[label]) {
      sums.confusedTimes[label] = times.get(key);
      sums.confused[label] = other;
    }
  });
  for (const name of ["recall", "precision", "map"]) {
    sums[name] = sums[name].map((sum, label) => sum / sums.queries[label]);
  }
  return sums;
})();

/** The image that the address calls by a number; -1 if there is none. */
function imageOfNumber(number) {
  let low = 0, high = total - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (imageNumbers[middle] === number) return middle;
    if (imageNumbers[middle] < number) low = middle + 1; else high = middle - 1;
  }
  return -1;
}

/** The last part of what an image is called: lists have no room for more. */
const fileName = (image) => facts.names[image].replace(/^.*[\/](?=.)/, "");

/** A number with so many decimals, without the sign of a zero. */
function decimals(value, count) {
  const text = value.toFixed(count);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

const percent = (value) => Number.isFinite(value) ? `${(100 * value).toFixed(1)}%` : "–";
const counted = (value, noun, plural = `${noun}s`) =>
  `${value.toLocaleString("en")} ${value === 1 ? noun : plural}`;

/** An element with properties and children; text stays text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value);
    }
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Calls a function when nothing has asked for it for a moment. */
function settled(action, milliseconds = 120) {
  let waiting = 0;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(action, milliseconds);
  };
}
