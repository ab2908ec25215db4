"use strict";
// Chooses edits of features, and shows what the model writes while it writes.

const form = document.getElementById("asked");
const at = (id) => document.getElementById(id);
const make = (tag, properties, ...inside) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
};
const show = (element, shown) => {
  element.hidden = !shown; // and what is not shown is not asked for
  for (const input of [element, ...element.querySelectorAll("input")]) input.disabled = !shown;
};

// --- edits ---

const RANGE = 3; // amount at the ends of a slider; the number beside it takes more
const VERBS = { clamp: "clamp to", add: "add", scale: "scale by", ablate: "ablate", swap: "swap with", "project-out": "project out" };
const TAKES_AMOUNT = new Set(["clamp", "add", "scale", "suppress"]);
let made = 0;

function inWords(row) {
  const [feature, verb] = [row.dataset.feature, row.querySelector("select")?.value ?? "suppress"];
  const [amount, other] = ["amount", "other"].map((name) => row.querySelector(`.${name}`).value);
  if (verb === "suppress") return `suppress ${amount || 0}`;
  if (verb === "swap") return `swap ${feature},${other}`;
  return TAKES_AMOUNT.has(verb) ? `${verb} ${feature}=${amount || 0}` : `${verb} ${feature}`;
}

function keep() {
  at("edits").value = [...at("rows").children].map(inWords).join("; ");
}

function addRow({ verb, feature, called = "", amount = 1, other = "" }, first = false) {
  made += 1;
  const id = `amount-${made}`;
  const [low, step] = verb === "suppress" ? [0, 0.05] : [-RANGE, 0.1];
  const what = feature === undefined ? "all features" : `feature ${feature}`;
  const slider = make("input", { type: "range", min: low, max: -low || 1, step, value: amount });
  const number = make("input", { type: "number", id, className: "amount", step: "any", min: -100, max: 100, value: amount });
  const partner = make("input", { type: "number", className: "other", step: 1, min: 0, required: true, value: other });
  const remove = make("button", { type: "button", textContent: "Remove" });
  const kind = make("select", {}, ...Object.entries(VERBS).map(([value, textContent]) => make("option", { value, textContent })));
  kind.setAttribute("aria-label", `edit of ${what}`);
  slider.setAttribute("aria-label", `amount for ${what}, coarsely`);
  partner.setAttribute("aria-label", `feature to swap with ${what}`);
  remove.setAttribute("aria-label", `remove edit of ${what}`);
  const label = make("label", { htmlFor: id }, make("span", { className: "sr", textContent: "amount for " }));
  const row = make("li", {}, label);
  if (feature === undefined) {
    label.append("All features ");
    row.append(make("span", { className: "verb", textContent: "scale by" }));
  } else {
    row.dataset.feature = feature;
    label.append(make("a", { href: form.dataset.page + feature, textContent: String(feature) }), " ", make("span", { className: "called", textContent: called }));
    row.append(kind);
    kind.value = verb;
  }
  const fit = () => {
    const chosen = feature === undefined ? verb : kind.value;
    for (const input of [slider, number]) show(input, TAKES_AMOUNT.has(chosen));
    show(partner, chosen === "swap");
    keep();
  };
  row.append(slider, number, partner, remove);
  kind.addEventListener("change", fit);
  slider.addEventListener("input", () => { number.value = slider.value; keep(); });
  number.addEventListener("input", () => { slider.value = number.value; keep(); });
  partner.addEventListener("input", keep);
  remove.addEventListener("click", () => { row.remove(); keep(); at("find").focus(); });
  if (first) at("rows").prepend(row);
  else at("rows").append(row);
  fit();
  return number;
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
      const number = addRow({ verb: "clamp", ...one });
      at("found").replaceChildren();
      at("find").value = "";
      number.focus();
    });
    return make("li", {}, choice);
  });
  at("found").replaceChildren(...choices);
  if (!choices.length) at("found").append(make("li", { textContent: "no other feature found" }));
  if (choices.length === 1 && /^\d+$/.test(words)) choices[0].querySelector("button").click();
}

const given = [...at("rows").children].map((row) => ({ ...row.dataset }));
at("rows").replaceChildren();
for (const step of given) addRow(step);
keep();
at("adding").hidden = false;
at("add").addEventListener("click", find);
at("all").addEventListener("click", () => addRow({ verb: "suppress", amount: 0.5 }, true).focus());
at("find").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    find();
  }
});

// --- where they act ---

function place() {
  const where = at("where").value;
  for (const one of document.querySelectorAll("[data-where]")) show(one, one.dataset.where === where);
  const words = { range: `${at("from").value}:${at("to").value}`, fires: `fires ${at("firing").value}` };
  at("positions").value = words[where] ?? where;
}

const [, from, to, firing] = at("positions").value.match(/^(?:(\d+):(\d+)|fires (\d+))$/) ?? [];
at("where").value = from ? "range" : firing ? "fires" : at("positions").value;
at("from").value = from ?? 0;
at("to").value = to ?? 10;
at("firing").value = firing ?? at("rows").firstElementChild?.dataset.feature ?? 0;
for (const id of ["where", "from", "to", "firing"]) at(id).addEventListener("input", place);
place();

// --- writing ---

let running = null;

const SIDES = { original: "original", through: "by-dictionary", steered: "steered" };

function tell(texts) {
  const { original, steered } = texts;
  let shared = 0;
  while (shared < original.length && original[shared] === steered[shared]) shared += 1;
  for (const [side, id] of Object.entries(SIDES)) {
    const common = side === "through" ? 0 : shared;
    at(id).replaceChildren(
      make("span", { className: "prompt", textContent: texts.prompt }),
      make("span", { className: "shared", textContent: texts[side].slice(0, common) }),
      make("span", { className: "own", textContent: texts[side].slice(common) }),
    );
  }
}

// The edited text again, token by token: what the edit acted on is underlined.
function mark({ tokens, prompt, touched }, texts) {
  const whole = tokens.slice(prompt).join("");
  let same = 0;
  while (same < whole.length && whole[same] === texts.original[same]) same += 1;
  const start = tokens.slice(0, prompt).join("").length;
  let end = 0;
  at("steered").replaceChildren(...tokens.map((textContent, number) => {
    end += textContent.length;
    const kind = number < prompt ? "given" : end - start <= same ? "shared" : "own";
    return make("span", { className: touched[number] ? `${kind} touched` : kind, textContent });
  }));
  const count = touched.filter(Boolean).length;
  at("acted").textContent = `The edit acts on ${count} of ${tokens.length} tokens${count ? ", underlined" : ""}.`;
  at("acted").hidden = false;
}

function conclude({ said, figures }) {
  const names = figures[0].length === 3 ? ["as it is", "edited"] : ["as it is", "through the dictionary", "edited"];
  const head = ["", ...names].map((name) => make("th", { scope: "col", textContent: name }));
  const rows = figures.map(([name, ...values]) => make("tr", {}, make("th", { scope: "row", textContent: name }),
    ...values.map((value, number) => {
      const cell = make("td", { textContent: value });
      cell.dataset.column = names[number];
      return cell;
    })));
  at("outcome").replaceChildren(
    make("p", { className: "verdict", textContent: said }),
    make("table", { className: "list" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)),
    make("p", { className: "note", textContent: "Log-probabilities are means over the written tokens, in nats a token. Distinct-n is the share of runs of n tokens that are different ones: repetition lowers it. All texts have the same seed." }),
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

async function write(remember = "pushState") {
  running?.abort();
  const mine = (running = new AbortController());
  const asked = new URLSearchParams(new FormData(form));
  const address = `?${asked}`;
  if (address !== location.search && address.length <= 4000) history[remember](null, "", address);
  const texts = { prompt: at("prompt").value, original: "", through: "", steered: "" };
  at("error").textContent = "";
  at("outcome").replaceChildren();
  at("acted").hidden = true;
  at("by-dictionary").parentElement.hidden = !at("through").checked;
  at("texts").hidden = false;
  at("texts").setAttribute("aria-busy", "true");
  at("stop").disabled = false;
  at("status").textContent = "Asking the model …";
  tell(texts);
  let ended = false;
  try {
    const answer = await fetch(form.dataset.text, { method: "POST", body: asked, signal: mine.signal });
    if (!answer.ok) throw await answer.json();
    for await (const line of linesOf(answer)) {
      if ("waiting" in line) {
        at("status").textContent = line.waiting ? "The model is busy with another text; this one is next." : "Writing …";
      } else if ("side" in line) {
        texts[line.side] = line.text;
        tell(texts);
      } else if ("error" in line) throw line;
      else {
        mark(line.edited, texts);
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
if (new URLSearchParams(location.search).get("prompt")) write("replaceState"); // so that one step back leaves the page
