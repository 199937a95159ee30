// The page: loads the model that lies beside it, takes an input, shows the answer. What turns inputs into numbers is in encode.js and text.js.
import { centred, encodeImage, encodeTable, encodeVector, resized, softmax } from "./encode.js";
import { textEncoder } from "./text.js";

const SHOWN = 5; // classes, the likeliest first; all of them where they are at most twice as many
const LARGEST_DRAWN = 64; // pixels a side: what a person may draw

const part = (id) => document.getElementById(id);
const show = (id) => { part(id).hidden = false; };
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;
const count = (number) => number.toLocaleString("en");

// What went wrong; an answer to an earlier input would stand beside it as if it were this one's.
function trouble(words) {
  part("trouble").textContent = words;
  if (words === "") return;
  part("said").textContent = "No answer.";
  part("classes").replaceChildren();
  part("trouble").scrollIntoView({ block: "nearest" });
}

async function file(name) {
  let got;
  try {
    got = await fetch(name);
  } catch {
    got = { ok: false, status: "no answer" };
  }
  if (!got.ok) throw new Error(`“${name}” is missing beside this page (${got.status}). Copy the whole folder.`);
  return got;
}

// A function from an encoded input to its logits, one row.
async function loaded(config, bytes) {
  if (typeof WebAssembly !== "object") {
    throw new Error("WebAssembly is switched off in this browser, and the model runs on nothing else. Allow it, or take another browser.");
  }
  let runtime;
  try {
    runtime = await import("./vendor/ort.wasm.bundle.min.mjs");
  } catch {
    throw new Error("onnxruntime-web is missing in the folder vendor, or can't be loaded. Copy the whole folder, or export again.");
  }
  runtime.env.logLevel = "error";
  runtime.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
  runtime.env.wasm.wasmPaths = { wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", document.baseURI).href };
  const { input, output } = config.onnx;
  let session;
  try {
    session = await runtime.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`The model can't be loaded: ${error.message}. Where vendor/ort-wasm-simd-threaded.wasm or WebAssembly is missing, so is what it runs on.`);
  }
  return async (encoded, shape) => {
    const given = new runtime.Tensor(input.dtype, encoded, [1, ...shape]);
    const found = await session.run({ [input.name]: given });
    return found[output.name].data;
  };
}

// What asks the model and shows what it says: asked(encode), where encode gives an array, or an Error that says in words what is wrong.
function asker(config, run) {
  const times = [];
  let last = Promise.resolve();
  const ask = async (encode) => {
    trouble("");
    try {
      const begun = performance.now();
      const encoded = encode();
      const logits = await run(encoded, config.preprocess.kind === "text" ? [encoded.length] : config.shape);
      times.push(performance.now() - begun);
      answer(config.classes, softmax(logits), times);
      return encoded;
    } catch (error) {
      trouble(`${error.message}.`);
      return null;
    }
  };
  return (encode) => (last = last.then(() => ask(encode))); // a session answers one at a time
}

function answer(classes, shares, times) {
  const ranked = shares.map((share, number) => ({ share, number })).sort((a, b) => b.share - a.share || a.number - b.number);
  const listed = ranked.slice(0, ranked.length <= 2 * SHOWN ? ranked.length : SHOWN);
  part("classes").replaceChildren(...listed.map(({ share, number }) => {
    const [row, name, value, track, bar] = ["li", "span", "span", "div", "div"].map((tag) => document.createElement(tag));
    [value.className, track.className, bar.className] = ["share", "track", "bar"];
    [name.textContent, value.textContent] = [classes[number], percent(share)];
    row.dataset.probability = share;
    bar.style.width = `${100 * share}%`;
    track.append(bar);
    row.append(name, value, track);
    return row;
  }));
  const sorted = [...times].sort((a, b) => a - b);
  const median = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  part("said").textContent = `${classes[ranked[0].number]}: ${percent(ranked[0].share)}`;
  part("said").dataset.asked = times.length;
  part("time").textContent = `${times.at(-1).toFixed(1)} ms from input to answer; median of ${times.length}: ${median.toFixed(1)} ms`;
}

// Images.

async function picture(chosen) {
  const head = new Uint8Array(await chosen.slice(0, 26).arrayBuffer());
  if (head[0] === 0x89 && head[1] === 0x50 && head[24] === 16 && head[25] === 0) {
    throw new Error(`“${chosen.name}” has 16 bits a pixel; save it with 8`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(chosen, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`“${chosen.name}” can't be read as an image`);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const found = context.getImageData(0, 0, bitmap.width, bitmap.height);
  for (let at = 3; at < found.data.length; at += 4) {
    if (found.data[at] < 255) throw new Error(`“${chosen.name}” has transparent parts, whose colours a browser rounds; save it without them`);
  }
  return found;
}

function seen(encoded, read) {
  const [height, width] = read.size;
  const canvas = part("seen-pixels");
  [canvas.width, canvas.height] = [width, height];
  const pixels = new ImageData(width, height);
  for (let at = 0; at < width * height; at++) {
    for (let channel = 0; channel < 3; channel++) {
      pixels.data[4 * at + channel] = encoded[(channel % read.channels) * width * height + at] * (255 / read.maximum);
    }
    pixels.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  show("seen");
}

function images(config, asked) {
  const read = config.preprocess;
  show("image");
  const ask = async (given) => {
    const encoded = await asked(() => encodeImage(given, read));
    if (encoded) seen(encoded, read);
  };
  const open = async (chosen) => {
    if (!chosen) return;
    try {
      await ask(await picture(chosen));
    } catch (error) {
      trouble(`${error.message}.`);
    }
  };
  part("file").addEventListener("click", () => { part("file").value = ""; }); // the same file again is a choice too
  part("file").addEventListener("change", () => open(part("file").files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    part("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => part("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    part("drop").classList.remove("over");
    open(event.dataTransfer.files[0]);
  });
  if (read.channels === 1 && Math.max(...read.size) <= LARGEST_DRAWN && read.size[0] === read.size[1]) drawing(read, ask);
}

// A pen on a dark ground, or on a light one where the training images were light.
function drawing(read, ask) {
  show("pad");
  const canvas = part("canvas");
  const side = canvas.width;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [ground, ink] = read.mean[0] < 0.5 ? [0, 255] : [255, 0];
  const pen = { x: side / 2, y: side / 2, down: false };
  let held = false;
  part("centre").checked = read.size[0] === 28; // MNIST's size, and of the sets that were made like it

  const grey = (value) => `rgb(${value} ${value} ${value})`;
  const clear = () => {
    context.fillStyle = grey(ground);
    context.fillRect(0, 0, side, side);
  };
  const line = (x, y) => {
    context.strokeStyle = grey(ink);
    [context.lineWidth, context.lineCap] = [side / 13, "round"];
    context.beginPath();
    context.moveTo(pen.x, pen.y);
    context.lineTo(x, y);
    context.stroke();
  };
  const done = () => {
    const drawn = context.getImageData(0, 0, side, side);
    if (!part("centre").checked) return ask(drawn);
    const plane = new Uint8Array(side * side);
    for (let at = 0; at < plane.length; at++) plane[at] = Math.abs(drawn.data[4 * at] - ground);
    const [size] = read.size;
    const small = centred(resized(plane, side, side, 4 * size, 4 * size), 4 * size);
    const given = new ImageData(4 * size, 4 * size);
    small.forEach((value, at) => given.data.fill(Math.abs(value - ground), 4 * at, 4 * at + 3));
    return ask(given);
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * side) / box.width, ((event.clientY - box.top) * side) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    [pen.x, pen.y] = place(event);
    held = true;
    line(pen.x, pen.y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    const [x, y] = place(event);
    line(x, y);
    [pen.x, pen.y] = [x, y];
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => {
      if (held) done();
      held = false;
    });
  }
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key in steps) {
      const [x, y] = steps[event.key].map((step, axis) => Math.max(0, Math.min(side, (axis ? pen.y : pen.x) + step * (side / 20))));
      if (pen.down) line(x, y);
      [pen.x, pen.y] = [x, y];
    } else if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) line(pen.x, pen.y);
      else done();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      clear();
    } else {
      return;
    }
    event.preventDefault();
  });
  part("clear").addEventListener("click", clear);
  part("centre").addEventListener("change", done);
  clear();
}

// Texts, numbers, tables.

function typed(config, asked) {
  const read = config.preprocess;
  const encode = read.kind === "text" ? textEncoder(read, config.web) : (given) => encodeVector(given, read);
  if (read.kind === "vector") part("typed-label").textContent = `${read.mean.length} numbers`;
  show("text");
  part("typed").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) part("input").requestSubmit();
  });
  submitted(() => asked(() => encode(part("typed").value)));
}

function table(config, asked) {
  const fields = config.preprocess.columns.map((column, at) => {
    const [cell, label] = [document.createElement("div"), document.createElement("label")];
    const field = document.createElement(column.type === "numeric" ? "input" : "select");
    [field.id, label.htmlFor, label.textContent] = [`field-${at}`, `field-${at}`, column.name];
    if (column.type === "numeric") {
      [field.type, field.inputMode, field.autocomplete] = ["text", "decimal", "off"];
    } else {
      const other = String.fromCharCode(0); // a word that no column holds
      const options = [["", "not known"], ...column.categories.map((name) => [name, name]), [other, "another"]];
      field.append(...options.map(([value, name]) => new Option(name, value)));
    }
    cell.append(label, field);
    part("fields").append(cell);
    return field;
  });
  show("fields");
  submitted(() => asked(() => encodeTable(fields.map((field) => field.value), config.preprocess)));
}

function submitted(ask) {
  show("ask");
  part("input").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await ask()) part("answer").scrollIntoView({ block: "nearest" });
  });
}

// What is known of the model.

function about(config, measured, bytes) {
  const rows = [["Size", `${(bytes / 1e6).toFixed(2)} MB, ${count(config.weights.parameters)} parameters`]];
  if (measured.metric) {
    const share = (value) => (measured.unit === "fraction" ? percent(value) : value.toFixed(3));
    const around = measured.ci95 ? ` (mean of ${measured.seeds} ${measured.seeds === 1 ? "training" : "trainings"} ${share(measured.mean)}, 95\u00a0% interval ${share(measured.ci95[0])} to ${share(measured.ci95[1])})` : "";
    rows.push([measured.metric[0].toUpperCase() + measured.metric.slice(1), `${share(measured.value)}${around} on ${count(measured.examples)} rows that it never saw`]);
  } else {
    rows.push(["Quality", "not measured yet"]);
  }
  if (measured.worst) rows.push(["Do not trust it", `where the class is ${measured.worst.name}: ${percent(measured.worst.value)} of those right`]);
  rows.push(["Classes", count(config.classes.length)], ["Runs on", `onnxruntime-web ${config.web.runtime}, one thread`], ["Made by", "understudy"]);
  part("about").replaceChildren(...rows.flatMap(([name, value]) => {
    const [term, said] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, said.textContent] = [name, value];
    said.classList.toggle("weak", name === "Do not trust it");
    return [term, said];
  }));
}

async function start() {
  const [config, measured] = await Promise.all(["config.json", "measured.json"].map(async (name) => (await file(name)).json()));
  part("name").textContent = document.title = config.extra.run ?? "A student";
  const bytes = new Uint8Array(await (await file(config.onnx.file)).arrayBuffer());
  about(config, measured, bytes.length);
  const asked = asker(config, await loaded(config, bytes));
  ({ image: images, text: typed, vector: typed, table })[config.preprocess.kind](config, asked);
  for (const id of ["input", "answer"]) show(id);
  part("wait").remove();
}

start().catch((error) => {
  part("wait").remove();
  trouble(error.message);
});
