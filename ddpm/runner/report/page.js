"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tables: a heading sorts by its column, and again the other way; what is missing stays below.
for (const table of all("table")) {
  const heads = all("th", table), body = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].dataset.v;
    return text === undefined ? null : text !== "" && !isNaN(text) ? Number(text) : text;
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((one, two) => {
      const a = value(one, column), b = value(two, column);
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b
        : String(a).localeCompare(String(b), "en", { numeric: true });
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}

// A setting, or one run of it, is brought forward wherever it is shown.
let kept = null;
function light(which) {
  const found = which || kept;
  document.body.classList.toggle("lit", found !== null);
  for (const part of all("[data-s]")) {
    const on = found !== null && part.dataset.s === found.s
      && (found.r === undefined || part.dataset.r === undefined || part.dataset.r === found.r);
    part.classList.toggle("on", on);
  }
  for (const button of all(".legend button")) {
    button.setAttribute("aria-pressed", String(kept !== null && kept.s === button.dataset.s));
  }
}
const named = (part) => ({ s: part.dataset.s, r: part.dataset.r });
function keep(which) {
  kept = kept && kept.s === which.s && kept.r === which.r ? null : which;
  light(null);
}
for (const part of all("tbody tr, .legend button")) {
  part.addEventListener("pointerenter", () => light(named(part)));
  part.addEventListener("pointerleave", () => light(null));
  part.addEventListener("click", (event) => {
    if (!event.target.closest("a")) keep(named(part));
  });
}

// Curves: the point nearest to the pointer tells what it is.
const points = new WeakMap();
function pointsOf(path) {
  if (!points.has(path)) {
    points.set(path, path.getAttribute("d").replace("h0", "").slice(1).split("L")
      .map((pair) => pair.split(" ").map(Number)));
  }
  return points.get(path);
}
function nearest(scale, x, y, box) {
  let best = null;
  for (const path of all(".line:not(.raw)", scale)) {
    for (const [px, py] of pointsOf(path)) {
      const far = Math.hypot((px - x) * box.width, (py - y) * box.height) / 1000;
      if (best === null || far < best.far) best = { far, path, x: px, y: py };
    }
  }
  return best;
}
for (const plot of all(".plot")) {
  const tip = plot.querySelector(".tip"), mark = plot.querySelector(".mark");
  const last = Number(plot.parentElement.dataset.last);
  let shown = null;
  plot.addEventListener("pointermove", (event) => {
    const scale = plot.querySelector(".scale:not([hidden])"), box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * 1000;
    const y = (event.clientY - box.top) / box.height * 1000;
    const before = shown;
    shown = nearest(scale, x, y, box);
    if (shown === null || shown.far > 40) return away();
    const low = Number(scale.dataset.low), high = Number(scale.dataset.high);
    const up = 1 - shown.y / 1000;
    const value = scale.classList.contains("log") ? low * (high / low) ** up : low + (high - low) * up;
    tip.textContent = `${shown.path.dataset.name}\nstep ${Math.round(shown.x / 1000 * last)}: ${Number(value.toPrecision(3))}`;
    for (const part of [tip, mark]) {
      part.style.left = `${shown.x / 10}%`;
      part.style.top = `${shown.y / 10}%`;
      part.hidden = false;
    }
    const over = tip.offsetWidth / 2 / box.width * 100;
    tip.style.left = `${Math.min(Math.max(shown.x / 10, over - 8), 102 - over)}%`;
    if (before === null || before.path !== shown.path) light(named(shown.path));
  });
  function away() {
    if (!tip.hidden) light(null);
    tip.hidden = mark.hidden = true;
    shown = null;
  }
  plot.addEventListener("pointerleave", away);
  plot.addEventListener("click", () => { if (shown) keep(named(shown.path)); else if (kept) keep(kept); });
}
const toggle = document.getElementById("scale");
if (toggle) {
  toggle.addEventListener("click", () => {
    const log = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", String(log));
    toggle.textContent = log ? "logarithmic" : "linear";
    for (const plot of all(".plot")) {
      const scales = all(".scale", plot);
      if (scales.length > 1) scales.forEach((s) => { s.hidden = s.classList.contains("log") !== log; });
    }
  });
}

// Samples: large, and in place of each other.
const dialog = document.getElementById("large"), zooms = all(".zoom");
let at = 0;
function show(index) {
  at = (index + zooms.length) % zooms.length;
  dialog.querySelector("img").src = zooms[at].firstElementChild.src;
  dialog.querySelector("p").textContent =
    `${zooms[at].closest("details").firstElementChild.textContent}: ${zooms[at].nextElementSibling.textContent}`;
}
zooms.forEach((zoom, index) => zoom.addEventListener("click", () => {
  show(index);
  dialog.showModal();
}));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (step) { event.preventDefault(); show(at + step); }
});

// Commands: the clipboard is closed to some pages from disk; then the old way.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const done = await copied(button.previousElementSibling.textContent);
    button.textContent = done ? "copied" : "press Ctrl-C";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
if (zooms.length === 0) dialog.remove();
addEventListener("beforeprint", () => all("details").forEach((part) => { part.open = true; }));
