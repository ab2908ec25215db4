"use strict";
// Draws every feature as a point; pan, zoom, point, click. All positions are of the map's own
// coordinates, `view` says which of them lies in the middle and how many pixels one unit has.

const area = document.getElementById("map");
const canvas = document.getElementById("canvas");
const tip = document.getElementById("tip");
const context = canvas.getContext("2d");

const array = (Kind, packed) => new Kind(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer);
const feature = array(Int32Array, MAP.feature);
const xy = array(Float32Array, MAP.xy);
const density = array(Float32Array, MAP.density);
const cluster = array(Int32Array, MAP.cluster);
const label = array(Int32Array, MAP.label);
const count = feature.length;
const paged = MAP.paged && new Set(MAP.paged); // pages from disk may be of some features alone
const hasPage = (i) => i >= 0 && (!paged || paged.has(feature[i]));
const dark = matchMedia("(prefers-color-scheme: dark)");
const given = new URLSearchParams(location.search);
const found = new Set(area.dataset.found ? area.dataset.found.split(",").map(Number) : []);
let shown = area.dataset.cluster === "" ? -1 : Number(area.dataset.cluster);

// --- where things are ---

let low = [0, 0], high = [1, 1];
if (count) {
  low = [Infinity, Infinity];
  high = [-Infinity, -Infinity];
  for (let i = 0; i < count; i += 1) {
    for (const axis of [0, 1]) {
      low[axis] = Math.min(low[axis], xy[2 * i + axis]);
      high[axis] = Math.max(high[axis], xy[2 * i + axis]);
    }
  }
}
const view = { x: 0, y: 0, scale: 1 };
let width = 1, height = 1, whole = 1;

function fit() {
  view.x = (low[0] + high[0]) / 2;
  view.y = (low[1] + high[1]) / 2;
  view.scale = whole;
}
const toScreen = (i) => [
  (xy[2 * i] - view.x) * view.scale + width / 2,
  (view.y - xy[2 * i + 1]) * view.scale + height / 2,
];

// A grid over the map: the points of cell c are `inCell[from[c]]` to `inCell[from[c + 1] - 1]`.
const cells = Math.max(1, Math.round(Math.sqrt(count / 4)));
const step = [0, 1].map((axis) => (high[axis] - low[axis]) / cells || 1);
const cellOf = (value, axis) => Math.max(0, Math.min(cells - 1, Math.floor((value - low[axis]) / step[axis])));
const from = new Int32Array(cells * cells + 1);
const inCell = new Int32Array(count);
{
  const own = new Int32Array(count);
  for (let i = 0; i < count; i += 1) {
    own[i] = cellOf(xy[2 * i + 1], 1) * cells + cellOf(xy[2 * i], 0);
    from[own[i] + 1] += 1;
  }
  for (let c = 0; c < cells * cells; c += 1) from[c + 1] += from[c];
  const next = from.slice();
  for (let i = 0; i < count; i += 1) inCell[next[own[i]]++] = i;
}

function nearest(left, top, reach = 10) {
  const x = (left - width / 2) / view.scale + view.x;
  const y = view.y - (top - height / 2) / view.scale;
  const far = reach / view.scale;
  let best = -1, least = far * far;
  for (let row = cellOf(y - far, 1); row <= cellOf(y + far, 1); row += 1) {
    for (let column = cellOf(x - far, 0); column <= cellOf(x + far, 0); column += 1) {
      const cell = row * cells + column;
      for (let k = from[cell]; k < from[cell + 1]; k += 1) {
        const i = inCell[k];
        const distance = (xy[2 * i] - x) ** 2 + (xy[2 * i + 1] - y) ** 2;
        if (distance < least) [best, least] = [i, distance];
      }
    }
  }
  return best;
}

// --- colours ---

const HUES = [28, 212, 140, 280, 350, 180, 55, 245, 100, 315];
const tone = (number) => `hsl(${HUES[number % HUES.length]} ${dark.matches ? "62% 66%" : "58% 42%"})`;
const GREY = () => (dark.matches ? "#6b645b" : "#b3aca0");
const STEPS = 8; // of the scale of densities
const ramp = (step) => `color-mix(in oklch, ${dark.matches ? "#4a4f7a" : "#c9cbe8"}, ${dark.matches ? "#ffb765" : "#b03a00"} ${Math.round((100 * step) / (STEPS - 1))}%)`;
// Its ends leave out the rarest and the most frequent of a hundred.
const sorted = density.filter((d) => d > 0).sort().map(Math.log10);
const least = sorted[Math.floor(0.01 * sorted.length)] ?? 0, most = sorted[Math.ceil(0.99 * sorted.length) - 1] ?? 0;
const KINDS = {
  density: {
    of: (i) => {
      const share = (Math.log10(density[i]) - least) / (most - least || 1);
      return Math.round((STEPS - 1) * Math.max(0, Math.min(1, share)));
    },
    colours: () => Array.from({ length: STEPS }, (_, step) => ramp(step)),
    legend: () => Array.from({ length: STEPS }, (_, step) => [ramp(step), step === 0 ? percent(10 ** least) : step === STEPS - 1 ? `${percent(10 ** most)} of tokens` : ""]),
  },
  name: {
    of: (i) => (label[i] < 0 ? HUES.length : label[i]),
    colours: () => [...HUES.map((_, number) => tone(number)), GREY()],
    legend: () => [...MAP.labels.map((name, number) => [tone(number), name]), [GREY(), MAP.labels.length ? "others" : "no feature has a name yet"]],
  },
  cluster: {
    of: (i) => (cluster[i] < 0 ? HUES.length : cluster[i] % HUES.length),
    colours: () => [...HUES.map((_, number) => tone(number)), GREY()],
    legend: () => [[GREY(), "in no cluster"]],
  },
};
const percent = (share) => `${Number((100 * share).toPrecision(2))}%`;

// Points by colour, so that each colour is set once a frame; those that stand out come last.
let layers = [];
const standsOut = (i) => found.has(feature[i]) || (shown >= 0 && cluster[i] === shown);
function paint() {
  const kind = KINDS[area.dataset.colour];
  const colours = kind.colours();
  const marked = found.size > 0 || shown >= 0;
  const faint = colours.map(() => []), strong = colours.map(() => []);
  for (let i = 0; i < count; i += 1) (marked && standsOut(i) ? strong : faint)[kind.of(i)].push(i);
  layers = [
    ...faint.map((points, number) => ({ points, colour: colours[number], alpha: marked ? 0.16 : 0.8, grow: 1 })),
    ...strong.map((points, number) => ({ points, colour: colours[number], alpha: 1, grow: 1.7 })),
  ];
  document.getElementById("legend").replaceChildren(...kind.legend().map(([colour, name]) => {
    const item = document.createElement("span");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colour;
    item.append(swatch, name);
    return item;
  }));
  for (const swatch of document.querySelectorAll("[data-swatch]")) swatch.style.background = tone(Number(swatch.dataset.swatch));
  draw();
}

// --- drawing ---

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const ratio = devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const size = Math.max(1.6, Math.min(9, 1.2 * Math.sqrt((width * height) / (count + 1)) * 0.35 * Math.sqrt(view.scale / whole)));
    for (const { points, colour, alpha, grow } of layers) {
      context.fillStyle = colour;
      context.globalAlpha = alpha;
      const side = size * grow;
      for (const i of points) {
        const [left, top] = toScreen(i);
        if (left < -9 || top < -9 || left > width + 9 || top > height + 9) continue;
        if (side < 3) context.fillRect(left - side / 2, top - side / 2, side, side); // fast
        else {
          context.beginPath();
          context.arc(left, top, side / 2, 0, 2 * Math.PI);
          context.fill();
        }
      }
    }
    context.globalAlpha = 1;
    if (pointed >= 0) {
      const [left, top] = toScreen(pointed);
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(left, top, size / 2 + 4, 0, 2 * Math.PI);
      context.stroke();
    }
    area.dataset.drawn = String(count);
  });
}

function resize() {
  if (!canvas.clientWidth || !canvas.clientHeight) return; // hidden for a moment
  const before = whole;
  ({ clientWidth: width, clientHeight: height } = canvas);
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  whole = 0.94 * Math.min(width / (high[0] - low[0] || 1), height / (high[1] - low[1] || 1));
  view.scale *= whole / before;
  draw();
}

// --- moving ---

function zoom(factor, left = width / 2, top = height / 2) {
  const scale = Math.max(whole / 2, Math.min(whole * 400, view.scale * factor));
  view.x += (left - width / 2) * (1 / view.scale - 1 / scale);
  view.y -= (top - height / 2) * (1 / view.scale - 1 / scale);
  view.scale = scale;
  moved();
}
function pan(left, top) {
  view.x -= left / view.scale;
  view.y += top / view.scale;
  moved();
}
let saving = 0;
function moved() {
  draw();
  clearTimeout(saving);
  saving = setTimeout(() => {
    const address = new URL(location.href);
    address.searchParams.set("at", [view.x, view.y, view.scale / whole].map((n) => Number(n.toPrecision(5))).join(","));
    history.replaceState(null, "", address);
  }, 300);
}

let pointed = -1;
function point(i, left, top) {
  if (i !== pointed) draw();
  pointed = i;
  canvas.style.cursor = hasPage(i) ? "pointer" : "grab";
  tip.hidden = i < 0;
  if (i < 0) return;
  const line = document.createElement("b");
  line.textContent = `Feature ${feature[i]}`;
  const name = document.createElement("span");
  name.className = "called";
  name.textContent = MAP.called[i];
  const facts = `fires on ${percent(density[i])} of tokens${cluster[i] < 0 ? "" : `, cluster ${cluster[i]}`}`;
  tip.replaceChildren(line, name, facts);
  tip.style.left = `${Math.max(4, Math.min(left + 14, width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${top + 18 + tip.offsetHeight > height ? top - tip.offsetHeight - 12 : top + 18}px`;
}

const fingers = new Map();
let travelled = 0;
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  if (fingers.size === 1) travelled = 0;
});
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  const now = [event.offsetX, event.offsetY];
  if (!before) {
    point(nearest(...now), ...now);
    return;
  }
  travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
  const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
  fingers.set(event.pointerId, now);
  if (other) {
    const gap = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
    zoom(gap(now) / gap(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  } else if (travelled > 4) {
    point(-1);
    pan(now[0] - before[0], now[1] - before[1]);
  }
});
canvas.addEventListener("pointerup", (event) => {
  fingers.delete(event.pointerId);
  if (travelled > 4 || event.button !== 0) return;
  const i = nearest(event.offsetX, event.offsetY);
  // A finger cannot hover: the first touch tells what is there, the second goes to it.
  if (event.pointerType === "touch" && i !== pointed) point(i, event.offsetX, event.offsetY);
  else if (hasPage(i)) location.href = area.dataset.page.replace("FEATURE", feature[i]);
});
canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
canvas.addEventListener("pointerleave", () => point(-1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(1.0015 ** -event.deltaY, event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const keys = {
    ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
    "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: all,
  };
  if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  keys[event.key]();
});
function all() {
  fit();
  moved();
}
document.getElementById("in").addEventListener("click", () => zoom(1.6));
document.getElementById("out").addEventListener("click", () => zoom(1 / 1.6));
document.getElementById("all").addEventListener("click", () => {
  shown = -1;
  all();
  paint();
});
document.getElementById("colour").addEventListener("change", (event) => {
  area.dataset.colour = event.target.value;
  const address = new URL(location.href);
  address.searchParams.set("colour", event.target.value);
  history.replaceState(null, "", address);
  paint();
});
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    shown = Number(button.dataset.show);
    const address = new URL(location.href);
    address.searchParams.set("cluster", shown);
    history.replaceState(null, "", address);
    paint();
    area.scrollIntoView({ block: "center" });
    canvas.focus({ preventScroll: true });
  });
}
dark.addEventListener("change", paint);
new ResizeObserver(resize).observe(canvas);

resize();
fit();
const at = (given.get("at") || "").split(",").map(Number);
if (at.length === 3 && at.every(Number.isFinite) && at[2] > 0) Object.assign(view, { x: at[0], y: at[1], scale: at[2] * whole });
paint();
