"use strict";
// The list of features. All columns are in FEATURES; only the rows in sight are in the page.

const ROW = 34; // pixels; as in features.css
const SPARE = 8; // rows kept above and below those in sight
const PEAKS = FEATURES.count.length ? FEATURES.peaks.length / FEATURES.count.length : 0;
const WIDTH = FEATURES.count.length;

const names = new Map(FEATURES.names.map(([feature, name, kind]) => [feature, {name, kind}]));
const density = FEATURES.count.map(count => count / Math.max(FEATURES.n_tokens, 1));

function short(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-4) return value.toExponential(1).replace("e-", "e−");
  return Math.abs(value) < 10 ** digits ? value.toPrecision(digits) : Math.round(value).toLocaleString("en");
}
const percent = share => (share === 0 ? "0" : short(100 * share, 2) + "%");

function peaks(feature) {
  const words = [];
  for (let i = PEAKS * feature; i < PEAKS * (feature + 1); i++) {
    if (FEATURES.peaks[i] >= 0) words.push(FEATURES.words[FEATURES.peaks[i]]);
  }
  return words;
}

const paged = FEATURES.paged && new Set(FEATURES.paged); // pages from disk may be of some alone
const hasPage = feature => !paged || paged.has(feature);
const pageOf = feature => grid.dataset.page.replace("FEATURE", feature);

const OPTIONAL = ["stability", "concept", "explanation"];
const COLUMNS = [
  {id: "feature", title: "feature", of: feature => feature, show: feature => String(feature)},
  {id: "name", title: "name", of: feature => names.get(feature)?.name ?? null},
  {id: "peaks", title: "fires most on", of: feature => peaks(feature).join(" ") || null},
  {id: "density", title: "density", of: feature => density[feature], show: feature => percent(density[feature])},
  {id: "max", title: "max", of: feature => FEATURES.max[feature]},
  {id: "mean", title: "mean", of: feature => FEATURES.mean[feature]},
  {id: "stability", title: "stability", of: feature => FEATURES.stability?.[feature] ?? null},
  {id: "concept", title: "concept F1", of: feature => FEATURES.concept?.[feature] ?? null},
  {id: "explanation", title: "explanation score", of: feature => FEATURES.explanation?.[feature] ?? null},
].filter(column => column.id === "name" ? names.size : !OPTIONAL.includes(column.id) || FEATURES[column.id]);
const FIGURES = COLUMNS.filter(column => !["feature", "name", "peaks"].includes(column.id));

// --- state, kept in the address ---------------------------------------------------------------

const form = document.querySelector(".filters");
const grid = document.querySelector(".grid");
const head = grid.querySelector(".grid-head");
const rows = grid.querySelector(".grid-rows");
const said = document.querySelector(".found");
const FILTERS = ["q", "min_density", "max_density", "named", "live"];
const state = {sort: "", order: ""};

function readAddress() {
  const query = new URLSearchParams(location.search);
  state.sort = COLUMNS.some(column => column.id === query.get("sort")) ? query.get("sort") : "";
  state.order = query.get("order") === "asc" ? "asc" : "desc";
  for (const name of FILTERS) {
    const input = form.elements[name];
    if (input.type === "checkbox") input.checked = query.get(name) === "1";
    else input.value = query.get(name) || "";
  }
}

function writeAddress() {
  const query = new URLSearchParams();
  if (state.sort) {
    query.set("sort", state.sort);
    query.set("order", state.order);
  }
  for (const name of FILTERS) {
    const input = form.elements[name];
    const value = input.type === "checkbox" ? (input.checked ? "1" : "") : input.value.trim();
    if (value) query.set(name, value);
  }
  history.replaceState(null, "", "?" + query);
}

// --- which features, in which order -----------------------------------------------------------

let shown = []; // features, in order
let matches = null; // of the search, best first; null: there is none

function searchHere(words) {
  const wanted = words.toLowerCase().split(/\s+/);
  const found = [];
  for (let feature = 0; feature < WIDTH; feature++) {
    const name = (names.get(feature)?.name || "").toLowerCase();
    const text = name + "\n" + peaks(feature).join("\n").toLowerCase();
    if (wanted.every(word => text.includes(word))) found.push({feature, isNamed: wanted.some(word => name.includes(word))});
  }
  found.sort((a, b) => b.isNamed - a.isNamed || FEATURES.count[b.feature] - FEATURES.count[a.feature]);
  return found.map(one => one.feature);
}

function bound(name, otherwise) {
  const text = form.elements[name].value.trim();
  const value = text.endsWith("%") ? Number(text.slice(0, -1)) / 100 : Number(text);
  const isNumber = text === "" || Number.isFinite(value);
  form.elements[name].setAttribute("aria-invalid", String(!isNumber));
  return text === "" || !isNumber ? otherwise : value;
}

function isKept(feature, low, high, named, live) {
  if (density[feature] < low || density[feature] > high) return false;
  if (live && FEATURES.count[feature] === 0) return false;
  const kind = names.get(feature)?.kind;
  return !named || (named === "yes" ? Boolean(kind) : named === "no" ? !kind : kind === named);
}

function update() {
  const low = bound("min_density", 0);
  const high = bound("max_density", 1);
  const {named, live} = form.elements;
  const all = matches || Array.from({length: WIDTH}, (_, feature) => feature);
  shown = all.filter(feature => isKept(feature, low, high, named.value, live.checked));
  const sort = state.sort || (matches ? "" : "density");
  if (sort) sortBy(COLUMNS.find(column => column.id === sort));
  const what = shown.length === WIDTH ? "" : ` of ${WIDTH.toLocaleString("en")}`;
  const some = paged ? `, ${paged.size.toLocaleString("en")} with a page` : "";
  said.textContent = shown.length
    ? `${shown.length.toLocaleString("en")}${what} features${some}${matches && !sort ? ", best matches first" : ""}`
    : "No feature is like that.";
  grid.setAttribute("aria-rowcount", shown.length + 1);
  rows.style.height = ROW * shown.length + "px";
  grid.dataset.sort = sort;
  drawHead(sort);
  chosen = -1;
  grid.scrollTop = 0;
  draw();
}

function sortBy(column) {
  const sign = state.order === "asc" ? 1 : -1;
  const keys = new Map(shown.map(feature => [feature, column.of(feature)]));
  shown.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x === null || y === null) return (x === null) - (y === null); // what is unknown comes last
    return sign * (x < y ? -1 : x > y ? 1 : 0) || a - b;
  });
}

// --- rows -------------------------------------------------------------------------------------

let chosen = -1; // place in `shown`
const pool = []; // rows of the page, used again for other features

function make(kind, parent, attributes = {}) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

function drawHead(sort) {
  head.replaceChildren();
  for (const column of COLUMNS) {
    const is = column.id === sort;
    const cell = make("div", head, {role: "columnheader", class: "c-" + column.id});
    if (is) cell.setAttribute("aria-sort", state.order === "asc" ? "ascending" : "descending");
    const button = make("button", cell, {type: "button", "data-sort": column.id});
    button.textContent = column.title + (is ? (state.order === "asc" ? " ↑" : " ↓") : "");
  }
}

function newRow() {
  const row = make("a", rows, {role: "row", class: "grid-row", tabindex: "-1"});
  for (const column of COLUMNS) make("span", row, {role: "gridcell", class: "c-" + column.id});
  return row;
}

function draw() {
  const first = Math.max(Math.floor(grid.scrollTop / ROW) - SPARE, 0);
  const last = Math.min(first + Math.ceil(grid.clientHeight / ROW) + 2 * SPARE, shown.length);
  while (pool.length < last - first) pool.push(newRow());
  for (let i = 0; i < pool.length; i++) {
    // A row keeps its place in the page as long as it is in sight: place p is row p % pool.length.
    const place = first + ((i - first) % pool.length + pool.length) % pool.length;
    const row = pool[i];
    row.hidden = place >= last;
    if (row.hidden) row.setAttribute("aria-selected", "false");
    else fill(row, place);
  }
  if (chosen >= first && chosen < last) grid.setAttribute("aria-activedescendant", "row-" + chosen);
  else grid.removeAttribute("aria-activedescendant");
}

function fill(row, place) {
  const feature = shown[place];
  row.setAttribute("aria-selected", String(place === chosen));
  if (row.dataset.feature === String(feature) && row.id === "row-" + place) return;
  row.id = "row-" + place;
  row.dataset.feature = feature;
  if (hasPage(feature)) row.href = pageOf(feature);
  else row.removeAttribute("href");
  row.style.transform = `translateY(${ROW * place}px)`;
  row.setAttribute("aria-rowindex", place + 2);
  row.classList.toggle("dead", FEATURES.count[feature] === 0);
  COLUMNS.forEach((column, i) => fillCell(row.children[i], column, feature));
}

function fillCell(cell, column, feature) {
  if (column.id === "peaks") {
    cell.replaceChildren(...peaks(feature).map(word => {
      const code = document.createElement("code");
      code.textContent = word;
      return code;
    }));
  } else if (column.id === "name") {
    cell.textContent = names.get(feature)?.name || "";
    cell.dataset.kind = names.get(feature)?.kind || "";
  } else {
    cell.textContent = column.show ? column.show(feature) : short(column.of(feature));
  }
}

let isDrawing = false;
grid.addEventListener("scroll", () => {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    draw();
  });
});
addEventListener("resize", draw);

// --- what people do ---------------------------------------------------------------------------

head.addEventListener("click", event => {
  const column = event.target.dataset.sort;
  if (!column) return;
  const again = head.querySelector("[aria-sort] button")?.dataset.sort === column;
  const first = ["feature", "name", "peaks"].includes(column) ? "asc" : "desc";
  state.order = again ? (state.order === "asc" ? "desc" : "asc") : first;
  state.sort = column;
  writeAddress();
  update();
  head.querySelector(`[data-sort=${column}]`).focus();
});

let asked = 0;
async function search() {
  const number = ++asked;
  const words = form.elements.q.value.trim();
  matches = words ? searchHere(words) : null;
  update();
  if (!words || !form.dataset.search) return;
  said.textContent += ", looking in contexts …";
  try {
    const answer = await fetch(form.dataset.search + "?" + new URLSearchParams({q: words}));
    const found = await answer.json();
    if (number !== asked) return; // more was typed meanwhile
    if (answer.ok) matches = found;
    update();
    if (!answer.ok) said.textContent = found.error;
  } catch {
    if (number === asked) said.textContent = "The server does not answer. Is `monosemy app` still running?";
  }
}

let waiting = 0;
form.addEventListener("input", event => {
  writeAddress();
  if (event.target.name !== "q") return update();
  clearTimeout(waiting);
  waiting = setTimeout(search, 150);
});
form.addEventListener("submit", event => {
  event.preventDefault();
  grid.focus();
});

function choose(place) {
  if (!shown.length) return;
  chosen = Math.min(Math.max(place, 0), shown.length - 1);
  const top = ROW * chosen;
  const room = grid.clientHeight - head.offsetHeight - ROW;
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top > grid.scrollTop + room) grid.scrollTop = top - room;
  draw();
}

grid.addEventListener("keydown", event => {
  if (event.target.closest("button")) return;
  const page = Math.max(Math.floor(grid.clientHeight / ROW) - 2, 1);
  const to = {
    ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: chosen + page, PageUp: chosen - page,
    Home: 0, End: shown.length - 1,
  }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    choose(to);
  } else if (event.key === "Enter" && chosen >= 0 && hasPage(shown[chosen])) {
    location.href = pageOf(shown[chosen]);
  }
});
form.elements.q.addEventListener("keydown", event => {
  if (event.key !== "ArrowDown") return;
  event.preventDefault();
  grid.focus();
  choose(0);
});
addEventListener("keydown", event => {
  if (event.key !== "/" || event.target.matches("input, textarea, select")) return;
  event.preventDefault();
  form.elements.q.focus();
  form.elements.q.select();
});
addEventListener("popstate", () => {
  readAddress();
  search();
});

grid.hidden = false;
grid.style.setProperty("--figures", FIGURES.length);
grid.classList.toggle("nameless", !names.size);
readAddress();
search();
