// Layers against time: how much each skipped, or how many experts each read.

import { $, clock, make, percent, row, rows, say } from "./words.js";

const FEWEST = 12, MOST = 60;
const ASKED = { skipped: 0, distinct: 1 };
const which = () => document.querySelector('input[name="heat"]:checked').value;
let last = null;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** How full a cell is, 0 to 1, or `null` where no token went through the layer. */
function fullness(value, kind, layer, most) {
  if (value === null) return null;
  return kind === "skipped" ? value / most : Math.min(1, value / Math.max(1, layer?.experts ?? value));
}

function paint(canvas, points, layers, kind, most) {
  const tall = Math.max(3, Math.min(16, Math.floor(230 / layers.length)));
  const ratio = window.devicePixelRatio || 1;
  const wide = Math.max(1, canvas.clientWidth || 300);
  canvas.width = wide * ratio;
  canvas.height = tall * layers.length * ratio;
  canvas.style.height = `${tall * layers.length}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.fillStyle = colour("--main");
  const columns = Math.max(FEWEST, points.length), step = wide / columns;
  points.forEach((point, place) => {
    const left = (columns - points.length + place) * step;
    point.layers.forEach((values, number) => {
      const full = fullness(values[ASKED[kind]], kind, layers[number], most);
      if (full === null) return;
      pen.globalAlpha = 0.06 + 0.94 * full;
      pen.fillRect(left, number * tall, Math.max(1, step - 0.6), Math.max(1, tall - (tall > 4 ? 1 : 0)));
    });
  });
  return tall;
}

function names(layers) {
  const every = Math.ceil(layers.length / 20);
  return make("div", { class: "names", "aria-hidden": "true" },
    ...layers.map((one, place) => make("span", {}, place % every ? "" : String(one.layer))));
}

function summary(layers, newest, kind) {
  const values = newest.layers.map((one) => one[ASKED[kind]]);
  const found = values.filter((one) => one !== null);
  if (!found.length) return "No token went through the layers in the last reading.";
  const most = values.indexOf(Math.max(...found)), least = values.indexOf(Math.min(...found));
  const told = (place) => kind === "skipped" ? percent(values[place]) : `${values[place].toFixed(1)} of ${layers[place].experts}`;
  const what = kind === "skipped" ? "skips most" : "reads most experts a step";
  if (Math.max(...found) === 0) return "Nothing is skipped in any layer.";
  return `Layer ${layers[most].layer} ${what} (${told(most)}), layer ${layers[least].layer} least (${told(least)}).`;
}

function table(status, newest) {
  const since = new Map(status.layers.map((one) => [one.layer, one]));
  rows("layers", status.loaded.map((one) => {
    const total = since.get(one.layer), place = status.layers.findIndex((layer) => layer.layer === one.layer);
    const [skipped, distinct] = newest?.layers[place] ?? [null, null];
    return row(one.layer, percent(skipped), total?.routed ? percent(total.skipped / total.routed) : "–",
      distinct === null ? "–" : distinct.toFixed(1), one.experts, one.top_k, one.condensed ? "never: condensed" : one.mode);
  }));
}

export function showHeat(status, points) {
  last = [status, points];
  const newest = points.at(-1), kind = which();
  table(status, newest);
  if (!newest || !newest.layers.length) {
    say("heat-said", "No layer has been counted yet.");
    return;
  }
  const shown = points.slice(-MOST), known = new Map(status.loaded.map((one) => [one.layer, one]));
  const layers = status.layers.map((one) => known.get(one.layer) ?? { layer: one.layer, experts: 0 });
  const most = Math.max(0.05, ...shown.flatMap((point) => point.layers.map((one) => one[0] ?? 0)));
  const said = summary(layers, newest, kind);
  const canvas = make("canvas", { role: "img", "aria-label": `${kind === "skipped" ? "Skipped share" : "Experts read"} by layer and time. ${said}` });
  const spans = make("div", { class: "times" }, make("span", {}, clock(shown[0].seconds)),
    make("span", { class: "scale" }, "0", make("i"), kind === "skipped" ? percent(most, 0) : "all experts"),
    make("span", {}, clock(newest.seconds)));
  const labels = names(layers);
  $("heat").replaceChildren(make("div", { class: "heat" }, labels, canvas, spans));
  const tall = paint(canvas, shown, layers, kind, most);
  labels.style.gridTemplateRows = `repeat(${layers.length}, ${tall}px)`;
  labels.style.height = `${tall * layers.length}px`;
  say("heat-said", `${said} A column is a reading, newest right. The workers count layers, not single experts: “experts read” is how many different ones a step needed.`);
}

export function followHeat() {
  const again = () => last && showHeat(...last);
  document.querySelectorAll('input[name="heat"]').forEach((one) => one.addEventListener("change", again));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}
