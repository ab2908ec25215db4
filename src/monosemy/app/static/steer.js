"use strict";
// Chooses features and strengths, and shows what the model writes while it writes.

const form = document.getElementById("asked");
const at = (id) => document.getElementById(id);
const make = (tag, properties, ...inside) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
};

// --- features and their strengths ---

const RANGE = 3; // strength at the ends of a slider; the number beside it takes more

function keep() {
  at("features").value = [...at("rows").children]
    .map((row) => `${row.dataset.feature}:${row.querySelector("[type=number]").value || 0}`)
    .join(",");
}

function addRow(feature, called, scale) {
  const id = `strength-${feature}`;
  const slider = make("input", { type: "range", min: -RANGE, max: RANGE, step: 0.1, value: scale });
  const number = make("input", { type: "number", id, step: "any", min: -100, max: 100 });
  number.value = scale;
  slider.setAttribute("aria-label", `strength of feature ${feature}, coarsely`);
  const remove = make("button", { type: "button", textContent: "Remove" });
  remove.setAttribute("aria-label", `remove feature ${feature}`);
  const link = make("a", { href: form.dataset.page + feature, textContent: String(feature) });
  const label = make("label", { htmlFor: id }, make("span", { className: "sr", textContent: "strength of feature " }),
    link, " ", make("span", { className: "called", textContent: called }));
  const row = make("li", {}, label, slider, number, remove);
  row.dataset.feature = feature;
  slider.addEventListener("input", () => { number.value = slider.value; keep(); });
  number.addEventListener("input", () => { slider.value = number.value; keep(); });
  remove.addEventListener("click", () => { row.remove(); keep(); at("find").focus(); });
  at("rows").append(row);
  keep();
}

async function find() {
  const words = at("find").value.trim();
  if (!words) return;
  at("error").textContent = "";
  const answer = await fetch(`${form.dataset.find}?q=${encodeURIComponent(words)}`);
  const found = await answer.json();
  if (!answer.ok) {
    at("error").textContent = `${found.error}: ${found.hint}`;
    return;
  }
  const chosen = new Set([...at("rows").children].map((row) => row.dataset.feature));
  const choices = found.filter((one) => !chosen.has(String(one.feature))).map((one) => {
    const choice = make("button", { type: "button" }, `${one.feature} `, make("span", { className: "called", textContent: one.called }));
    choice.addEventListener("click", () => {
      addRow(one.feature, one.called, 1);
      at("found").replaceChildren();
      at("find").value = "";
      at(`strength-${one.feature}`).focus();
    });
    return make("li", {}, choice);
  });
  at("found").replaceChildren(...choices);
  if (!choices.length) at("found").append(make("li", { textContent: "no other feature found" }));
  if (choices.length === 1 && /^\d+$/.test(words)) choices[0].querySelector("button").click();
}

const given = [...at("rows").children].map((row) => row.dataset);
at("rows").replaceChildren();
for (const { feature, called, scale } of given) addRow(feature, called, scale);
at("plain").hidden = true;
at("adding").hidden = false;
at("add").addEventListener("click", find);
at("find").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    find();
  }
});

// --- writing ---

let running = null;

function show(texts) {
  const { original, steered } = texts;
  let shared = 0;
  while (shared < original.length && original[shared] === steered[shared]) shared += 1;
  for (const side of ["original", "steered"]) {
    at(side).replaceChildren(
      make("span", { className: "prompt", textContent: texts.prompt }),
      make("span", { className: "shared", textContent: texts[side].slice(0, shared) }),
      make("span", { className: "own", textContent: texts[side].slice(shared) }),
    );
  }
}

function conclude({ said, figures }) {
  const head = ["", "text as it is", "steered text"].map((name) => make("th", { scope: "col", textContent: name }));
  const rows = figures.map(([name, ...values]) => make("tr", {}, make("th", { scope: "row", textContent: name }),
    ...values.map((value, number) => {
      const cell = make("td", { textContent: value });
      cell.dataset.column = ["as it is", "steered"][number];
      return cell;
    })));
  at("outcome").replaceChildren(
    make("p", { className: "verdict", textContent: said }),
    make("table", { className: "list" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)),
    make("p", { className: "note", textContent: "Log-probabilities are means over the written tokens, in nats a token. Distinct-n is the share of runs of n tokens that are different ones: repetition lowers it. Both texts have the same seed." }),
  );
}

async function* linesOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function write() {
  running?.abort();
  const mine = (running = new AbortController());
  const asked = new URLSearchParams(new FormData(form));
  const address = `?${asked}`;
  if (address !== location.search && address.length <= 4000) history.pushState(null, "", address);
  const texts = { prompt: at("prompt").value, original: "", steered: "" };
  at("error").textContent = "";
  at("outcome").replaceChildren();
  at("texts").hidden = false;
  at("texts").setAttribute("aria-busy", "true");
  at("stop").disabled = false;
  at("status").textContent = "Asking the model …";
  show(texts);
  let ended = false;
  try {
    const answer = await fetch(form.dataset.text, { method: "POST", body: asked, signal: mine.signal });
    if (!answer.ok) throw await answer.json();
    for await (const line of linesOf(answer)) {
      if ("waiting" in line) {
        at("status").textContent = line.waiting ? "The model is busy with another text; this one is next." : "Writing …";
      } else if ("side" in line) {
        texts[line.side] = line.text;
        show(texts);
      } else if ("error" in line) throw line;
      else {
        conclude(line);
        ended = true;
      }
    }
    at("status").textContent = ended ? "" : "The text ended early; the terminal of the app says why.";
  } catch (problem) {
    if (mine !== running) return;
    at("status").textContent = problem.name === "AbortError" ? "Stopped." : "";
    if (problem.error) at("error").textContent = `${problem.error}: ${problem.hint}`;
    else if (problem.name !== "AbortError") at("error").textContent = `The app does not answer: ${problem.message}`;
  } finally {
    if (mine === running) {
      at("stop").disabled = true;
      at("texts").removeAttribute("aria-busy");
    }
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
at("stop").addEventListener("click", () => running?.abort());
addEventListener("popstate", () => location.reload());
if (new URLSearchParams(location.search).get("prompt")) write();
