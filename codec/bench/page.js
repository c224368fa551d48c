// Data come from the element #data: {rate: {key, name, unit, digits}, metrics: [{key, name, digits}],
// series: [{name, kind, colour, shown, points}]}. Where there are groups too, each point has one, and one is drawn.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const W = 1000, H = 560, LEFT = 62, RIGHT = 16, TOP = 14, BOTTOM = 46;
const rate = data.rate.key;
const state = {metric: data.metrics[0].key, log: false, most: 0, group: data.groups ? data.groups[0] : undefined};
const tip = document.getElementById("tip"), chart = document.getElementById("chart");
const SVG = chart.querySelector("svg").namespaceURI;
let dots = [];  // what is drawn: {x, y, series, point} in units of the drawing

function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
}

function ticks(low, high, about) {
  const span = high - low || 1, power = 10 ** Math.floor(Math.log10(span / about));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => span / s <= about);
  const found = [];
  const last = Math.ceil(high / step - 1e-9);
  for (let i = Math.floor(low / step + 1e-9); i <= last; i++) found.push(+(i * step).toFixed(9));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) found.push(+(m * 10 ** e).toPrecision(3));
  const first = Math.max(0, found.findLastIndex(v => v <= low)), last = found.findIndex(v => v >= high);
  return found.slice(first, last < 0 ? found.length : last + 1);
}

function draw() {
  const metric = data.metrics.find(m => m.key === state.metric);
  const lines = data.series.filter(s => s.shown)
    .map(series => ({series, points: series.points.filter(
      p => p.group === state.group && Number.isFinite(p[metric.key]) && p[rate] > 0)}))
    .filter(line => line.points.length);
  const most = state.most || Infinity;
  const inside = lines.flatMap(line => line.points.filter(p => p[rate] <= most));
  const label = `${metric.name} over ${data.rate.name}`;
  const root = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label});
  dots = [];
  if (!inside.length) root.append(svg("text", {x: W / 2, y: H / 2, "text-anchor": "middle"}, "nothing to show"));
  else {
    const rates = inside.map(p => p[rate]), values = inside.map(p => p[metric.key]);
    const right = state.most ? Math.max(state.most, Math.min(...rates) * 2) : Math.max(...rates);
    const xs = state.log ? logTicks(Math.min(...rates), right) : ticks(0, right, 8);
    const ys = ticks(Math.min(...values), Math.max(...values), 8);
    const scale = state.log ? Math.log : v => v, x0 = scale(xs[0]), x1 = scale(state.most ? right : xs.at(-1));
    const x = v => LEFT + (scale(v) - x0) / (x1 - x0 || 1) * (W - LEFT - RIGHT);
    const y = v => H - BOTTOM - (v - ys[0]) / (ys.at(-1) - ys[0] || 1) * (H - TOP - BOTTOM);
    for (const v of ys) {
      root.append(svg("line", {class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v)}));
      root.append(svg("text", {x: LEFT - 8, y: y(v) + 4, "text-anchor": "end"}, v));
    }
    for (const v of xs.filter(v => x(v) <= W - RIGHT + 1)) {
      root.append(svg("line", {class: "grid", x1: x(v), x2: x(v), y1: TOP, y2: H - BOTTOM}));
      root.append(svg("text", {x: x(v), y: H - BOTTOM + 18, "text-anchor": "middle"}, v));
    }
    root.append(svg("text", {x: (LEFT + W) / 2, y: H - 6, "text-anchor": "middle"}, data.rate.name));
    const clip = svg("clipPath", {id: "area"});
    clip.append(svg("rect", {x: LEFT - 6, y: TOP - 6, width: W - LEFT - RIGHT + 12, height: H - TOP - BOTTOM + 12}));
    const area = svg("g", {"clip-path": "url(#area)"});
    root.append(clip, area);
    const order = {published: 0, peer: 1, ours: 2};  // ours on top
    for (const {series, points} of lines.sort((a, b) => order[a.series.kind] - order[b.series.kind])) {
      const group = svg("g", {"data-series": series.name});
      const path = points.map(p => `${x(p[rate]).toFixed(1)},${y(p[metric.key]).toFixed(1)}`).join(" ");
      group.append(svg("polyline", {class: `curve ${series.kind}`, points: path, stroke: series.colour}));
      for (const point of points) {
        const dot = {x: x(point[rate]), y: y(point[metric.key]), series, point, group};
        const r = series.kind === "ours" ? 5 : series.kind === "peer" ? 3.5 : 2.5;
        group.append(svg("circle", {cx: dot.x, cy: dot.y, r, fill: series.colour}));
        if (point[rate] <= right * 1.001) dots.push(dot);
      }
      area.append(group);
    }
  }
  chart.replaceChildren(root, tip);
  tip.hidden = true;
}

function hover(event) {
  const box = chart.getBoundingClientRect(), unit = W / box.width;
  const x = (event.clientX - box.left) * unit, y = (event.clientY - box.top) * unit;
  let best = null, least = 40;
  for (const dot of dots) {
    const distance = Math.hypot(dot.x - x, dot.y - y);
    if (distance < least) [best, least] = [dot, distance];
  }
  for (const dot of dots) dot.group.classList.toggle("faded", best !== null && dot.series !== best.series);
  tip.hidden = best === null;
  if (best === null) return;
  const metric = data.metrics.find(m => m.key === state.metric), {series, point} = best;
  const kind = series.kind === "published" ? "\npublished point" : point.setting ? "\n" + point.setting : "";
  const place = `${point[rate].toFixed(data.rate.digits)} ${data.rate.unit}`;
  tip.textContent = `${series.name}${kind}\n${place}\n${metric.name}: ` +
    point[metric.key].toFixed(metric.digits);
  tip.style.left = Math.min(best.x / unit + 12, box.width - tip.offsetWidth) + "px";
  tip.style.top = Math.max(0, best.y / unit - tip.offsetHeight - 8) + "px";
}

function legend() {
  const kinds = {ours: "ours", peer: "measured here", published: "published"};
  for (const kind in kinds) {
    const group = data.series.filter(s => s.kind === kind);
    if (!group.length) continue;
    const row = document.createElement("div"), name = document.createElement("b");
    name.textContent = kinds[kind];
    row.append(name);
    const buttons = group.map(series => {
      const button = document.createElement("button"), mark = document.createElement("i");
      mark.style.background = series.colour;
      button.append(mark, series.name);
      button.show = shown => { series.shown = shown; button.setAttribute("aria-pressed", shown); };
      button.show(series.shown);
      button.addEventListener("click", () => { button.show(!series.shown); draw(); });
      return button;
    });
    row.append(...buttons);
    for (const [text, shown] of group.length > 3 ? [["all", true], ["none", false]] : []) {
      const button = document.createElement("button");
      button.textContent = text;
      button.addEventListener("click", () => { for (const b of buttons) b.show(shown); draw(); });
      row.append(button);
    }
    document.getElementById("legend").append(row);
  }
}

for (const key of ["metric", "axis", "most", "group"])
  document.getElementById(key)?.addEventListener("change", event => {
    const value = event.target.value;
    if (key === "axis") state.log = value === "log"; else state[key] = key === "most" ? +value : value;
    draw();
  });
chart.addEventListener("pointermove", hover);
chart.addEventListener("pointerleave", () => {
  tip.hidden = true;
  for (const dot of dots) dot.group.classList.remove("faded");
});
const ourMost = Math.max(0, ...data.series.filter(s => s.kind === "ours").flatMap(s => s.points.map(p => p[rate])));
const options = [...document.getElementById("most").options];
const fitting = options.find(option => +option.value >= 1.2 * ourMost) || options[0];
fitting.selected = true;
state.most = +fitting.value;
legend();
draw();

for (const section of document.querySelectorAll("article.pictures")) {
  const slider = section.querySelector(".slider"), range = slider.querySelector("input");
  const cards = [...section.querySelectorAll("figure")];
  const move = () => {
    slider.querySelector("img.left").style.clipPath = `inset(0 ${100 - range.value}% 0 0)`;
    slider.querySelector(".line").style.left = range.value + "%";
  };
  const choose = (side, card) => {
    slider.querySelector("img." + side).src = card.querySelector("img").src;
    slider.querySelector("output." + side).textContent = card.querySelector("b").textContent;
    for (const other of cards)
      other.querySelector(`[data-side=${side}]`).setAttribute("aria-pressed", other === card);
  };
  for (const card of cards)
    for (const button of card.querySelectorAll("button"))
      button.addEventListener("click", () => choose(button.dataset.side, card));
  range.addEventListener("input", move);
  choose("left", cards.find(card => card.dataset.kind === "ours"));
  choose("right", cards.find(card => card.dataset.kind === "peer") || cards[0]);
  move();
}
