/* The live demo (book/demo.md): two trained networks in the reader's browser.
 *
 * Nothing is loaded before the button is pressed but manifest.json, which names files, sizes and
 * classes (ersm_lab/demo_export.py writes it). Addresses are relative to this file, so that the book
 * works below any prefix.
 */

const ENGINE = "../vendor/onnxruntime-web/";
const MEDIAN_OF = 15; // passes
const QUIET = 500; // ms without a change before the sentence for screen readers is renewed
const START = { size: 8, across: 1, down: 1, noise: 0, seed: 0, threshold: 0 };

const root = document.getElementById("ersm-demo");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const control = (name) => root.querySelector(`#demo-${name}`);
const address = (path) => new URL(path, import.meta.url);

let manifest; // what demo_export.py wrote
let engine; // onnxruntime-web
let networks; // { dense, ersm }: sessions
let chosen; // { pixels: Uint8Array (H W 3), meant: a class or null, name }
let threshold = START.threshold; // of z; may be infinite
let answered; // the last answer, see `answer`
const times = { dense: [], ersm: [] }; // ms

// --- start -----------------------------------------------------------------------------------------

function complain(message) {
  part("problem").textContent = message;
  part("problem").hidden = false;
}

async function load(path, onBytes = () => {}) {
  const response = await fetch(address(path)).catch(() => null);
  if (!response || !response.ok) {
    const why = response ? `the server answered ${response.status}` : "the server did not answer";
    throw new Error(`${path} could not be loaded: ${why}. Is the book complete, and are you online?`);
  }
  const parts = [];
  const reader = response.body.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    parts.push(read.value);
    onBytes(read.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/* Import a script that is loaded. A browser imports from an address only what the server says is
 * JavaScript, and many servers have no type for .mjs. */
async function importLoaded(script, name) {
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  try {
    return await import(url);
  } catch (error) {
    throw new Error(`${name} is loaded, but this browser cannot run it: ${error.message}`);
  } finally {
    URL.revokeObjectURL(url);
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const total = (files) => files.reduce((sum, file) => sum + file.bytes, 0);
const percent = (share) => `${Math.round(100 * share)} %`;

async function prepare() {
  root.querySelector(".demo-wait").hidden = true;
  if (typeof WebAssembly !== "object") {
    complain("This browser has no WebAssembly, or it is switched off. The demo needs it to run the "
      + "networks; the rest of the book does not.");
    return;
  }
  try {
    manifest = JSON.parse(new TextDecoder().decode(await load("manifest.json")));
  } catch (error) {
    complain(`The demo cannot start: ${error.message}`);
    return;
  }
  const { dense, ersm } = manifest.networks;
  const right = (network) => `${(100 * network.test_accuracy).toFixed(2)} %`;
  part("cost").textContent = `This downloads ${megabytes(total(manifest.engine.files))} of `
    + `${manifest.engine.name} ${manifest.engine.version}, which the browser keeps, and `
    + `${megabytes(dense.bytes + ersm.bytes)} of networks. By their records, the dense one is right on `
    + `${right(dense)} and the ERSM one on ${right(ersm)} of CIFAR-10's test images.`;
  part("begin").hidden = false;
  part("start").addEventListener("click", start);
}

async function start() {
  part("start").disabled = true;
  part("problem").hidden = true;
  part("loading").hidden = false;
  const { dense, ersm } = manifest.networks;
  const [script, wasm] = manifest.engine.files;
  const all = script.bytes + wasm.bytes + dense.bytes + ersm.bytes;
  let loaded = 0;
  const onBytes = (count) => { part("progress").value = (loaded += count) / all; };
  try {
    const files = [ENGINE + script.file, ENGINE + wasm.file, dense.file, ersm.file];
    const [code, binary, ...graphs] = await Promise.all(files.map((file) => load(file, onBytes)));
    engine = await importLoaded(code, script.file);
    engine.env.wasm.numThreads = 1; // more would need headers for cross-origin isolation
    engine.env.wasm.wasmBinary = binary.buffer;
    const make = (graph) => engine.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    networks = { dense: await make(graphs[0]), ersm: await make(graphs[1]) };
    root.append(part("stage").content.cloneNode(true));
    await showSamples();
    await warmUp();
    connect();
  } catch (error) {
    complain(`The demo cannot start: ${error.message}`);
    part("start").disabled = false;
    part("loading").hidden = true;
    part("progress").value = 0;
    part("body")?.remove();
    return;
  }
  part("begin").hidden = true;
  part("body").hidden = false;
  reset();
  part("picks").firstElementChild.focus({ preventScroll: true });
}

// --- pictures --------------------------------------------------------------------------------------

/* The middle square of a picture, shrunk to the networks' size by averaging: Uint8Array (H W 3). */
function shrink(source, width, height) {
  const side = manifest.side;
  const square = Math.min(width, height);
  const fine = Math.max(1, Math.min(16, Math.floor(square / side))); // pixels averaged, a side
  const sheet = new OffscreenCanvas(side * fine, side * fine);
  const pen = sheet.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff"; // below what is transparent
  pen.fillRect(0, 0, sheet.width, sheet.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, (width - square) / 2, (height - square) / 2, square, square,
    0, 0, sheet.width, sheet.height);
  const rgba = pen.getImageData(0, 0, sheet.width, sheet.height).data;
  const pixels = new Uint8Array(side * side * 3);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      const sum = [0, 0, 0];
      for (let y = row * fine; y < (row + 1) * fine; y++) {
        for (let x = column * fine; x < (column + 1) * fine; x++) {
          for (let c = 0; c < 3; c++) sum[c] += rgba[4 * (y * sheet.width + x) + c];
        }
      }
      for (let c = 0; c < 3; c++) {
        pixels[3 * (row * side + column) + c] = Math.round(sum[c] / fine ** 2);
      }
    }
  }
  return pixels;
}

async function readPicture(blob) {
  const bitmap = await createImageBitmap(blob);
  const pixels = shrink(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return pixels;
}

function addPick(picture, source, label) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = label;
  image.alt = label;
  image.src = source;
  image.width = image.height = 44;
  button.append(image);
  button.addEventListener("click", () => choose(picture, button));
  part("picks").append(button);
  return button;
}

async function showSamples() {
  const files = await Promise.all(manifest.samples.map((sample) => load(sample.file)));
  for (const [number, sample] of manifest.samples.entries()) {
    const pixels = await readPicture(new Blob([files[number]], { type: "image/png" }));
    addPick({ pixels, meant: sample.class, name: sample.shows }, address(sample.file).href, sample.shows);
  }
}

async function takeFile(file) {
  if (!file) return;
  try {
    const picture = { pixels: await readPicture(file), meant: null, name: "your own picture" };
    part("problem").hidden = true;
    part("picks").querySelector(".demo-mine")?.remove();
    const button = addPick(picture, thumbnail(picture.pixels), picture.name);
    button.classList.add("demo-mine");
    choose(picture, button);
  } catch {
    complain(`${file.name} is no picture that this browser can read. Try a PNG or a JPEG.`);
  }
}

function choose(picture, button) {
  chosen = picture;
  for (const other of part("picks").children) other.setAttribute("aria-pressed", other === button);
  update();
}

// --- what the networks see -------------------------------------------------------------------------

/* Draws of a normal distribution (Box and Muller), the same for the same seed (mulberry32). */
function normals(count, seed) {
  let state = (seed + 1) * 0x9e3779b9 | 0;
  const uniform = () => {
    state = state + 0x6d2b79f5 | 0;
    let t = Math.imul(state ^ state >>> 15, state | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

const value = (name) => Number(control(name).value);

/* The chosen picture with noise, then the occluder over it: Uint8Array (H W 3). */
function perturbed() {
  const { side } = manifest;
  const pixels = Uint8ClampedArray.from(chosen.pixels);
  if (value("noise") > 0) {
    const draws = normals(pixels.length, value("seed"));
    for (let i = 0; i < pixels.length; i++) pixels[i] = chosen.pixels[i] + value("noise") * draws[i];
  }
  const [size, left, top] = [value("size"), value("across"), value("down")];
  for (let row = top; row < top + size; row++) {
    pixels.fill(0, 3 * (row * side + left), 3 * (row * side + left + size));
  }
  return new Uint8Array(pixels.buffer);
}

// --- asking ----------------------------------------------------------------------------------------

function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

async function pass(name, inputs) {
  const begun = performance.now();
  const outputs = await networks[name].run(inputs);
  times[name] = [...times[name], performance.now() - begun].slice(-MEDIAN_OF);
  return outputs;
}

async function answer() {
  const pixels = perturbed();
  const image = new engine.Tensor("uint8", pixels, [1, manifest.side, manifest.side, 3]);
  const bound = new engine.Tensor("float32", [threshold], [1]);
  const dense = await pass("dense", { image });
  const ersm = await pass("ersm", { image, threshold: bound });
  const [energy, z, mask] = ["energy", "z", "mask"].map((name) => ersm[name].data);
  const kept = mask.reduce((sum, m) => sum + m, 0);
  return {
    pixels, energy, z, mask, kept,
    grid: ersm.mask.dims[3],
    dense: softmax(dense.logits.data),
    ersm: softmax(ersm.logits.data),
  };
}

/* The first passes are slow, while the browser still compiles: their times are not shown. */
async function warmUp() {
  chosen = { pixels: new Uint8Array(3 * manifest.side ** 2) };
  for (let i = 0; i < 3; i++) await answer();
  times.dense = [];
  times.ersm = [];
}

let busy = false;
let again = false;

/* Ask and show; changes that come meanwhile are answered together afterwards. */
async function update() {
  again = true;
  root.dataset.state = "changing"; // until `say`
  if (busy) return;
  busy = true;
  try {
    while (again) {
      again = false;
      answered = await answer();
      show();
      await new Promise((resume) => setTimeout(resume)); // lets the browser paint
    }
  } catch (error) {
    complain(`The networks gave no answer: ${error.message}`);
  } finally {
    busy = false;
  }
}

// --- showing ---------------------------------------------------------------------------------------

/* Ends of matplotlib's viridis and RdBu_r with a few steps between, dark to light and blue to red. */
const COLOURS = {
  energy: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]],
  z: [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]],
};

function colour(scale, share) {
  const place = Math.min(Math.max(share, 0), 1) * (scale.length - 1);
  const first = Math.min(Math.floor(place), scale.length - 2);
  const mix = scale[first].map((from, c) => from + (scale[first + 1][c] - from) * (place - first));
  return `rgb(${mix.map(Math.round).join()})`;
}

function thumbnail(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = manifest.side;
  drawPixels(canvas, pixels);
  return canvas.toDataURL();
}

function drawPixels(canvas, pixels) {
  const { side } = manifest;
  const rgba = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) rgba.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  const small = new OffscreenCanvas(side, side);
  small.getContext("2d").putImageData(rgba, 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  return pen;
}

function drawImage() {
  const canvas = part("image");
  const pen = drawPixels(canvas, answered.pixels);
  const zoom = canvas.width / manifest.side;
  const [size, left, top] = [value("size"), value("across"), value("down")].map((v) => v * zoom);
  if (size === 0) return;
  for (const [style, dash] of [["#fff", []], ["#d55e00", [8, 6]]]) { // seen on any ground
    pen.strokeStyle = style;
    pen.setLineDash(dash);
    pen.lineWidth = 3;
    pen.strokeRect(left + 1.5, top + 1.5, size - 3, size - 3);
  }
  pen.setLineDash([]);
}

function drawKept() {
  const canvas = part("kept");
  const pen = drawPixels(canvas, answered.pixels);
  const { grid, mask } = answered;
  const cell = canvas.width / grid;
  for (let token = 0; token < grid * grid; token++) {
    if (mask[token]) continue;
    const x = token % grid * cell;
    const y = Math.floor(token / grid) * cell;
    pen.fillStyle = "rgb(175 175 175 / 0.86)";
    pen.fillRect(x, y, cell, cell);
    pen.strokeStyle = "rgb(105 105 105)";
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (const shift of [0, cell / 2]) { // two strokes a token join into stripes
      pen.moveTo(x + shift, y + cell);
      pen.lineTo(x + cell, y + shift);
    }
    pen.moveTo(x, y + cell / 2);
    pen.lineTo(x + cell / 2, y);
    pen.stroke();
  }
  canvas.setAttribute("aria-label", `The kept tokens: ${keptWords()}.`);
}

function drawMap() {
  const canvas = part("map");
  const name = root.querySelector('input[name="demo-map"]:checked').value;
  let [low, high] = manifest.ranges[name];
  if (name === "z") { // 0 in the middle of the colours
    high = Math.max(-low, high);
    low = -high;
  }
  const pen = canvas.getContext("2d");
  const { grid } = answered;
  const cell = canvas.width / grid;
  for (const [token, v] of answered[name].entries()) {
    pen.fillStyle = colour(COLOURS[name], (v - low) / (high - low));
    pen.fillRect(token % grid * cell, Math.floor(token / grid) * cell, cell, cell);
  }
  const scale = part("scale");
  const ink = scale.getContext("2d");
  for (let x = 0; x < scale.width; x++) {
    ink.fillStyle = colour(COLOURS[name], x / (scale.width - 1));
    ink.fillRect(x, 0, 1, scale.height);
  }
  part("low").textContent = number(low, 2);
  part("high").textContent = number(high, 2);
  const mean = answered[name].reduce((a, b) => a + b) / (grid * grid);
  const what = name === "energy" ? "energy" : "logit z";
  canvas.setAttribute("aria-label", `Map of the ${what} of every token; mean ${number(mean, 3)}.`);
}

const number = (v, digits) =>
  Number.isFinite(v) ? v.toFixed(digits).replace("-", "−") : v > 0 ? "∞" : "−∞";

const keptWords = () => `${answered.kept} of ${answered.mask.length} (${percent(answered.kept / answered.mask.length)})`;

/* The three likeliest classes, highest first: [[class, probability], ...]. */
function best(probabilities) {
  const named = probabilities.map((p, c) => [manifest.classes[c], p]);
  return named.sort((a, b) => b[1] - a[1]).slice(0, 3);
}

function drawBars(name) {
  const rows = best(answered[name]).map(([label, probability]) => {
    const row = document.createElement("li");
    for (let i = 0; i < 3; i++) row.append(document.createElement("span"));
    const [title, track, figure] = row.children;
    const bar = document.createElement("div");
    title.textContent = label + (label === chosen.meant ? " ✓" : "");
    bar.className = "demo-bar";
    bar.style.width = `${100 * probability}%`;
    track.append(bar);
    figure.textContent = percent(probability);
    return row;
  });
  part(name).replaceChildren(...rows);
  const sorted = [...times[name]].sort((a, b) => a - b);
  part(`${name}-time`).textContent = `${sorted[Math.floor(sorted.length / 2)].toFixed(1)} ms a pass`;
}

let saying;

/* One sentence, once nothing changes any more: a screen reader is not to read every step. */
function say() {
  clearTimeout(saying);
  saying = setTimeout(() => {
    if (busy) return; // its answer will be said
    root.dataset.state = "settled";
    const words = (name) => best(answered[name]).map(([c, p]) => `${c} ${percent(p)}`).join(", ");
    const meant = chosen.meant ? ` (meant: ${chosen.meant})` : "";
    part("words").textContent = `Shown: ${chosen.name}${meant}. Dense: ${words("dense")}. `
      + `ERSM: ${words("ersm")}. Tokens kept: ${keptWords()}.`;
  }, QUIET);
}

function show() {
  drawImage();
  drawKept();
  drawMap();
  drawBars("dense");
  drawBars("ersm");
  part("share").textContent = keptWords();
  say();
}

// --- controls --------------------------------------------------------------------------------------

const OUTPUT = {
  size: (v) => (v ? `${v} px` : "none"),
  across: (v) => `${v} px`,
  down: (v) => `${v} px`,
  noise: (v) => (v ? `${v} / 255` : "none"),
  seed: (v) => `${v}`,
};

function label() {
  for (const [name, words] of Object.entries(OUTPUT)) {
    root.querySelector(`output[for="demo-${name}"]`).textContent = words(value(name));
  }
  root.querySelector('output[for="demo-threshold"]').textContent = number(threshold, 3);
  control("threshold").setAttribute("aria-valuetext", number(threshold, 3));
  for (const button of root.querySelectorAll("[data-threshold]")) {
    button.setAttribute("aria-pressed", thresholds[button.dataset.threshold] === threshold);
  }
}

const thresholds = { none: -Infinity, trained: 0, all: Infinity };

function setThreshold(bound) {
  threshold = bound;
  control("threshold").value = bound; // the slider stops at its own ends
  if (bound === Infinity) control("threshold").value = control("threshold").max;
  if (bound === -Infinity) control("threshold").value = control("threshold").min;
  changed();
}

function changed() {
  const room = manifest.side - value("size");
  control("across").max = control("down").max = room; // the browser moves the values inside
  control("across").disabled = control("down").disabled = value("size") === 0;
  control("seed").disabled = value("noise") === 0;
  label();
  update();
}

function moveTo(left, top) {
  control("across").value = left;
  control("down").value = top;
  changed();
}

function drag(event) {
  const box = part("image").getBoundingClientRect();
  const at = (position) => Math.round(position * manifest.side - value("size") / 2);
  moveTo(at((event.clientX - box.left) / box.width), at((event.clientY - box.top) / box.height));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function step(event) {
  const direction = ARROWS[event.key];
  if (!direction || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const length = event.shiftKey ? 4 : 1;
  moveTo(value("across") + length * direction[0], value("down") + length * direction[1]);
}

function reset() {
  control("size").value = START.size;
  control("across").max = control("down").max = manifest.side - START.size;
  for (const name of ["across", "down", "noise", "seed"]) control(name).value = START[name];
  root.querySelector('input[name="demo-map"][value="energy"]').checked = true;
  part("problem").hidden = true;
  part("picks").firstElementChild.click();
  setThreshold(START.threshold);
}

function connect() {
  [control("threshold").min, control("threshold").max] = manifest.ranges.z;
  for (const name of Object.keys(OUTPUT)) control(name).addEventListener("input", changed);
  control("threshold").addEventListener("input", () => setThreshold(value("threshold")));
  for (const button of root.querySelectorAll("[data-threshold]")) {
    button.addEventListener("click", () => setThreshold(thresholds[button.dataset.threshold]));
  }
  for (const radio of root.querySelectorAll('input[name="demo-map"]')) {
    radio.addEventListener("change", drawMap);
  }
  part("reset").addEventListener("click", reset);
  const image = part("image");
  image.addEventListener("keydown", step);
  image.addEventListener("pointerdown", (event) => { image.setPointerCapture(event.pointerId); drag(event); });
  image.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  control("file").addEventListener("change", (event) => takeFile(event.target.files[0]));
  root.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("demo-over"); });
  root.addEventListener("dragleave", () => root.classList.remove("demo-over"));
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("demo-over");
    takeFile(event.dataTransfer.files[0]);
  });
}

prepare();
