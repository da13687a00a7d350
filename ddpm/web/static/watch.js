import { el, post, reason, svg } from "/common.js";

const at = (id) => document.getElementById(id);
const ACTIONS = [
  ["sample", "preview", "draw a preview now"],
  ["checkpoint", "save", "save a checkpoint now"],
  ["stop", "stop", "save and stop this run"],
];
let seen = "", page = null, scale = "log", updated = 0;

/** Ask for what is new, again and again; less often while the page is hidden. */
async function poll() {
  let wait = 2;
  try {
    const response = await fetch(`/runs?seen=${seen}`);
    if (!response.ok) throw new Error(await reason(response));
    const answer = await response.json();
    wait = answer.wait;
    if (answer.version !== seen) {
      page = answer;
      seen = answer.version;
      show();
    }
    updated = Date.now();
    at("live").classList.remove("lost");
    at("live").textContent = "live";
  } catch (error) {
    const since = updated ? ` since ${new Date(updated).toLocaleTimeString()}` : "";
    at("live").classList.add("lost");
    at("live").textContent = `no answer${since}: ${error.message}`;
  }
  setTimeout(poll, 1000 * (document.hidden ? 15 : wait));
}

function show() {
  document.title = `${page.summary} · ${page.title}`;
  at("title").textContent = page.title;
  at("summary").textContent = page.summary;
  at("notes").replaceChildren(...page.notes.slice(0, 12).map((note) => el("li", { textContent: note })));
  at("notes").hidden = page.notes.length === 0;
  at("empty").hidden = page.runs.length > 0;
  keyed(document.querySelector("#runs tbody"), page.runs, makeRow, updateRow);
  document.querySelector("#runs th:last-child").textContent = page.runs.some((run) => run.listens) ? "now" : "";
  showCurves();
  const drawn = page.runs.filter((run) => run.pictures.length || run.grid);
  at("samples").hidden = drawn.length === 0;
  keyed(at("gallery"), drawn, makeFigure, updateFigure);
}

/** One child for each run, kept where it is while its run stays: focus and sliders survive. */
function keyed(parent, runs, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.id, child]));
  runs.forEach((run, place) => {
    let child = old.get(run.id);
    if (!child) {
      child = make(run);
      child.dataset.id = run.id;
    }
    old.delete(run.id);
    update(child, run);
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] || null);
  });
  for (const child of old.values()) child.remove();
}

// The table

const swatch = (style) => svg("svg", { class: "swatch", viewBox: "0 0 24 8", "aria-hidden": "true" },
  svg("path", { class: `line ${style}`, d: "M0 4H24" }));

function makeRow(run) {
  const row = el("tr", {},
    el("th", { scope: "row" }), el("td"), ...Array.from({ length: 6 }, () => el("td", { className: "n" })),
    el("td", {}, el("div", { className: "asks" })));
  for (const [action, text, what] of ACTIONS) {
    const button = el("button", {
      type: "button", className: "ask", textContent: text, title: what, attr: { "data-action": action },
    });
    button.addEventListener("click", () => ask(run.id, action, button));
    row.querySelector(".asks").append(button);
  }
  return row;
}

function updateRow(row, run) {
  const [name, state, step, loss, speed, memory, time, left] = row.children;
  const total = run.total === null ? "" : ` / ${run.total.toLocaleString("en")}`;
  const problems = run.problems.slice(0, 2).map((text) => el("span", { className: "sub bad", textContent: text }));
  name.replaceChildren(swatch(run.style), el("span", { className: "name", textContent: run.name }),
    el("span", { className: "sub", textContent: run.label || run.job, title: run.label }), ...problems);
  const bar = run.total && run.state === "running" ? el("progress", {
    max: run.total, value: run.step, attr: { "aria-label": `steps of ${run.name}` },
  }) : null;
  state.replaceChildren(el("span", { className: `state ${run.state}`, textContent: run.state }), bar ?? "");
  step.textContent = `${run.step.toLocaleString("en")}${total}`;
  [loss, speed, memory, time, left].forEach((cell, i) => {
    cell.textContent = [run.loss, run.speed, run.memory, run.time, run.left][i];
  });
  for (const button of row.querySelectorAll(".ask")) {
    const waiting = run.pending.includes(button.dataset.action);
    const [, text, what] = ACTIONS.find(([action]) => action === button.dataset.action);
    button.hidden = !run.listens;
    button.disabled = waiting;
    button.textContent = waiting ? `${text} …` : text;
    button.setAttribute("aria-label", `${run.name}: ${what}`);
  }
}

async function ask(run, action, button) {
  if (action === "stop" && !confirm("Save and stop this run? resume= continues it.")) return;
  button.disabled = true;
  at("problem").hidden = true;
  try {
    await post("/ask", { run, action });
    button.textContent = "asked …";
  } catch (error) {
    button.disabled = false;
    at("problem").textContent = error.message;
    at("problem").hidden = false;
  }
}

// The curves

function showCurves() {
  at("curves").hidden = page.panels.length === 0;
  at("legend").replaceChildren(...page.runs.filter((run) => run.legend).slice(0, 24).map((run) =>
    el("span", {}, swatch(run.style), run.legend)));
  at("large").replaceChildren(...page.panels.map((panel) => chart(panel, false)));
  at("large").classList.toggle("one", page.panels.length === 1);
  at("quartiles").replaceChildren(...page.quartiles.map((panel) => chart(panel, true)));
  at("by-quarter").hidden = page.quartiles.length === 0;
}

function chart(panel, small) {
  const chosen = panel.scales.find((one) => one.kind === scale) || panel.scales[0];
  const drawing = svg("svg", {
    viewBox: "0 0 1000 1000", preserveAspectRatio: "none", role: "img", "aria-label": `${panel.title}, ${chosen.kind} scale`,
  });
  for (const [place] of chosen.ticks) drawing.append(svg("path", { class: "grid", d: `M0 ${1000 - 10 * place}H1000` }));
  const styles = page.runs.map((run) => run.style);
  for (const line of chosen.lines) {
    if (line.raw) drawing.append(svg("path", { class: `line raw ${styles[line.run]}`, d: line.raw }));
  }
  for (const line of chosen.lines) {
    const path = svg("path", { class: `line ${styles[line.run]}${line.dot ? " dot" : ""}`, d: line.path });
    path.append(svg("title"));
    path.firstChild.textContent = line.name;
    drawing.append(path);
  }
  const tick = (name, side) => ([place, text]) => {
    const made = el("span", { className: name, textContent: text });
    made.style[side] = `${place}%`;
    return made;
  };
  return el("figure", { className: `chart${small ? " small" : ""}` },
    el("figcaption", {}, panel.title, el("span", { textContent: " over the steps" })),
    el("div", { className: "plot" }, drawing, ...chosen.ticks.map(tick("y", "bottom")), ...panel.ticks.map(tick("x", "left"))));
}

at("scale").addEventListener("click", () => {
  scale = scale === "log" ? "linear" : "log";
  at("scale").textContent = scale === "log" ? "logarithmic" : "linear";
  at("scale").setAttribute("aria-pressed", String(scale === "log"));
  if (page) showCurves();
});

// The previews

function makeFigure(run) {
  const image = el("img", { alt: "" }), note = el("p", { className: "damaged error", hidden: true });
  const slider = el("input", { type: "range", min: 0, step: 1 });
  const figure = el("figure", {}, el("figcaption", {}, el("b"), el("span")), image, note, slider);
  slider.addEventListener("input", () => showPicture(figure));
  image.addEventListener("load", () => { image.hidden = false; note.hidden = true; });
  image.addEventListener("error", async () => {
    image.hidden = true;
    note.hidden = false;
    note.textContent = await fetch(image.src).then(reason, () => "The picture cannot be loaded.");
  });
  return figure;
}

function updateFigure(figure, run) {
  const slider = figure.querySelector("input");
  const newest = figure.run === undefined || Number(slider.value) === Number(slider.max);
  figure.run = run;
  slider.max = Math.max(0, run.pictures.length - 1);
  if (newest) slider.value = slider.max;
  slider.hidden = run.pictures.length < 2;
  slider.setAttribute("aria-label", `step of the preview of ${run.name}`);
  showPicture(figure);
}

function showPicture(figure) {
  const { run } = figure, image = figure.querySelector("img"), slider = figure.querySelector("input");
  const step = run.pictures[Number(slider.value)];
  const which = step === undefined ? "grid" : step;
  const text = step === undefined ? `drawn by job=${run.job}` : `step ${step.toLocaleString("en")}`;
  figure.querySelector("b").textContent = run.name;
  figure.querySelector("span").textContent = text;
  slider.setAttribute("aria-valuetext", text);
  const source = `/picture/${run.id}/${which}`;
  if (image.getAttribute("src") !== source) {
    image.src = source;
    image.alt = `samples of ${run.name}, ${text}`;
  }
}

document.addEventListener("visibilitychange", () => { if (!document.hidden && page) show(); });
poll();
