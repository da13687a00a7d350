import { el, post, reason } from "/common.js";

const at = (id) => document.getElementById(id);
const png = (text) => `data:image/png;base64,${text}`;
let model = null;
let frames = [];  // of the last drawing: {t, x_t, x_0}, and the image itself with t = -1
const running = {};  // what each section is waiting for

function fail(error) {
  if (error.name === "AbortError") return;
  at("problem").textContent = error.message;
  at("problem").hidden = false;
}

/** Ask for a picture, and call `each` with every line that arrives; the last request wins. */
async function stream(section, path, body, each) {
  running[section]?.abort();
  const abort = running[section] = new AbortController();
  at("problem").hidden = true;
  at("live").textContent = "drawing";
  try {
    const response = await post(path, body, abort.signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (!abort.signal.aborted) each(JSON.parse(line));
    }
  } catch (error) {
    fail(error);
  } finally {
    if (running[section] === abort) {
      delete running[section];
      at("live").textContent = "ready";
    }
  }
}

/** What the controls say. */
function settings() {
  const label = at("label").value;
  return {
    seed: Number(at("seed").value),
    label: model.classes === null || label === "" ? null : Number(label),
    sampler: at("sampler").value,
    steps: Number(at("steps").value),
    scale: model.scale === null ? null : Number(at("scale").value),
  };
}

// Drawing

function draw() {
  const asked = settings();
  frames = [];
  stop();
  at("save").hidden = true;
  stream("draw", "/draw", asked, (event) => {
    if (event.t < 0) {
      frames.push({ t: -1, x_t: event.images[0], x_0: event.images[0] });
      at("told").textContent = `${event.steps} steps in ${event.seconds} s`;
      at("save").href = png(event.images[0]);
      at("save").download = `${String(asked.seed).padStart(6, "0")}.png`;
      at("save").hidden = false;
      takePicture(png(event.images[0]));
    } else {
      frames.push(event);
      at("told").textContent = `step ${event.step} of ${event.steps}`;
    }
    at("t").max = frames.length - 1;
    at("t").value = frames.length - 1;
    showFrame();
  });
}

function showFrame() {
  const frame = frames[Number(at("t").value)];
  if (!frame) return;
  at("x_t").src = png(frame.x_t);
  at("x_0").src = png(frame.x_0);
  const text = frame.t < 0 ? "the image" : `t = ${frame.t}`;
  at("t-value").textContent = text;
  at("t").setAttribute("aria-valuetext", text);
}

let timer = null;
function stop() {
  clearInterval(timer);
  timer = null;
  at("play").setAttribute("aria-pressed", "false");
  at("play").textContent = "play";
}
function togglePlay() {
  if (timer !== null) return stop();
  if (frames.length < 2) return undefined;
  if (at("t").value === at("t").max) at("t").value = 0;
  at("play").setAttribute("aria-pressed", "true");
  at("play").textContent = "pause";
  timer = setInterval(() => {
    at("t").value = Number(at("t").value) + 1;
    showFrame();
    if (at("t").value === at("t").max) stop();
  }, 60);
  return undefined;
}

function another() {
  at("seed").value = Math.floor(Math.random() * 1e6);
  draw();
}

// The canvas: pixels of the picture (C, H, W) and the mask (H, W), and how they are shown

const canvas = at("canvas"), context = canvas.getContext("2d");
let pixels = null, mask = null, zoom = 1, tool = "mask", cursor = null, pen = false;

/** Make a picture, given by its address, the one on the canvas. */
async function takePicture(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const [channels, height, width] = model.shape;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(image, 0, 0);
  const { data } = copy.getImageData(0, 0, width, height);
  pixels = new Uint8Array(channels * height * width);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < channels; c++) pixels[c * height * width + i] = data[4 * i + c];
  }
  mask ??= new Uint8Array(height * width);
  showCanvas();
}

function showCanvas() {
  if (!pixels) return;
  const [channels, height, width] = model.shape, size = height * width;
  const shown = new ImageData(width, height);
  for (let i = 0; i < size; i++) {
    const marked = mask[i], check = ((i % width) + Math.floor(i / width)) % 2;
    for (let c = 0; c < 3; c++) {
      const value = pixels[(channels === 3 ? c : 0) * size + i];
      shown.data[4 * i + c] = marked ? 0.35 * value + 0.65 * [235, 120 + 40 * check, 60 + 40 * check][c] : value;
    }
    shown.data[4 * i + 3] = 255;
  }
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(shown, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width * zoom, height * zoom);
  if (cursor && document.activeElement === canvas) {
    context.strokeStyle = "#e0a800";
    context.lineWidth = Math.max(1, zoom / 6);
    context.strokeRect(cursor[0] * zoom, cursor[1] * zoom, zoom, zoom);
  }
}

/** Use the tool around a pixel. */
function dab(x, y) {
  if (!pixels) return;
  const [channels, height, width] = model.shape, reach = Number(at("size").value) / 2;
  for (let row = Math.ceil(y - reach); row <= y + reach; row++) {
    for (let column = Math.ceil(x - reach); column <= x + reach; column++) {
      const inside = row >= 0 && row < height && column >= 0 && column < width;
      if (!inside || Math.hypot(row - y, column - x) > reach) continue;
      const i = row * width + column;
      if (tool === "mask" || tool === "keep") mask[i] = tool === "mask" ? 255 : 0;
      else for (let c = 0; c < channels; c++) pixels[c * height * width + i] = tool === "light" ? 255 : 0;
    }
  }
  showCanvas();
}

function placeOf(event) {
  const box = canvas.getBoundingClientRect(), [, height, width] = model.shape;
  return [(event.clientX - box.left) / box.width * width - 0.5, (event.clientY - box.top) / box.height * height - 0.5];
}
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pen = true;
  dab(...placeOf(event));
});
canvas.addEventListener("pointermove", (event) => {
  if (pen) for (const one of event.getCoalescedEvents?.() ?? [event]) dab(...placeOf(one));
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { pen = false; });
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  const [, height, width] = model.shape;
  cursor ??= [Math.floor(width / 2), Math.floor(height / 2)];
  const move = MOVES[event.key];
  if (move) {
    cursor = [Math.min(width - 1, Math.max(0, cursor[0] + move[0])), Math.min(height - 1, Math.max(0, cursor[1] + move[1]))];
    if (event.shiftKey) dab(...cursor);
  } else if (event.key === " ") dab(...cursor);
  else return;
  event.preventDefault();
  showCanvas();
});
for (const change of ["focus", "blur"]) canvas.addEventListener(change, showCanvas);
for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => {
    tool = button.dataset.tool;
    for (const one of document.querySelectorAll("[data-tool]")) one.setAttribute("aria-pressed", String(one === button));
  });
}

function markArea(name) {
  const [, height, width] = model.shape, half = (n) => Math.floor(n / 2), quarter = (n) => Math.floor(n / 4);
  const [top, bottom, left, right] = {
    left: [0, height, 0, half(width)], right: [0, height, half(width), width],
    top: [0, half(height), 0, width], bottom: [half(height), height, 0, width],
    center: [quarter(height), height - quarter(height), quarter(width), width - quarter(width)],
    none: [0, 0, 0, 0],
  }[name];
  mask = new Uint8Array(height * width);
  for (let row = top; row < bottom; row++) mask.fill(255, row * width + left, row * width + right);
  showCanvas();
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

function paint() {
  if (!pixels) return;
  const asked = { ...settings(), image: base64(pixels), mask: base64(mask), resamples: Number(at("resamples").value), jump_length: 10 };
  stream("paint", "/inpaint", asked, (event) => {
    at("painted").src = png(event.t < 0 ? event.images[0] : event.x_0);
    at("painted-told").textContent = event.t < 0 ? `${event.steps} steps in ${event.seconds} s` : `step ${event.step} of ${event.steps}`;
    at("take").disabled = event.t >= 0;
  });
}

// Between two seeds

function mix() {
  const asked = { ...settings(), other: Number(at("other").value), count: Number(at("count").value) };
  stream("mix", "/interpolate", asked, (event) => {
    at("row").replaceChildren(...event.images.map((image, i) => el("div", { attr: { role: "listitem" } },
      el("img", { src: png(image), alt: `image ${i + 1} of ${event.images.length} between seeds ${asked.seed} and ${asked.other}` }))));
    at("row-told").textContent = event.t < 0 ? `${event.steps} steps in ${event.seconds} s` : `t = ${event.t}`;
  });
}

// The controls

function showSteps() {
  const { steps } = model.samplers.find((one) => one.name === at("sampler").value);
  at("steps-field").hidden = steps === "fixed";
  if (steps !== "fixed") at("steps").value = steps;
}

async function begin() {
  const response = await fetch("/model");
  if (!response.ok) throw new Error(await reason(response));
  model = await response.json();
  const { facts, shape: [, height, width] } = model;
  at("facts").textContent = `${facts.model} on ${facts.data}, ${facts.parameters} parameters, step ${facts.step} (${facts.weights}), T = ${model.T}, ${facts.device}`;
  document.title = `${facts.model} on ${facts.data}`;
  document.body.style.setProperty("--aspect", `${width} / ${height}`);
  zoom = Math.max(1, Math.ceil(448 / Math.max(width, height)));
  [canvas.width, canvas.height] = [width * zoom, height * zoom];
  at("size").max = Math.max(4, Math.floor(width / 3));
  at("size").value = Math.max(2, Math.round(width / 6));
  at("sampler").append(...model.samplers.map(({ name }) => el("option", { value: name, textContent: name })));
  at("steps").max = model.T;
  showSteps();
  if (model.classes !== null) {
    at("label").append(...Array.from({ length: model.classes }, (_, i) => el("option", { value: i, textContent: i })),
      el("option", { value: "", textContent: "none" }));
    at("label-field").hidden = false;
  }
  if (model.scale !== null) {
    at("scale").value = model.scale;
    at("scale-field").hidden = false;
  }
  at("areas").append(...[...model.areas, "none"].map((name) => {
    const button = el("button", { type: "button", textContent: name });
    button.addEventListener("click", () => markArea(name));
    return button;
  }));
  showValues();
  draw();
}

function showValues() {
  at("scale-value").textContent = Number(at("scale").value).toFixed(1);
  at("resamples-value").textContent = at("resamples").value;
}

at("controls").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
for (const id of ["seed", "label", "steps", "scale"]) at(id).addEventListener("change", draw);
at("sampler").addEventListener("change", () => { showSteps(); draw(); });
for (const id of ["scale", "resamples"]) at(id).addEventListener("input", showValues);
at("another").addEventListener("click", another);
at("t").addEventListener("input", () => { stop(); showFrame(); });
at("play").addEventListener("click", togglePlay);
at("paint").addEventListener("click", paint);
at("take").addEventListener("click", () => takePicture(at("painted").src));
at("mix").addEventListener("click", mix);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, canvas");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !model) return;
  const action = { n: another, d: draw, p: togglePlay }[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});
begin().catch((error) => {
  at("live").classList.add("lost");
  at("live").textContent = "no answer";
  fail(error);
});
