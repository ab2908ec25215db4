"use strict";
// The page of a circuit: the graph is drawn anew as sliders move, and cards tell what features fire on.

const form = document.getElementById("asked");
const error = document.getElementById("error");
const drawing = document.getElementById("drawing");
let waiting = 0;
let asked = 0;

async function answerOf(address) {
  try {
    const response = await fetch(address);
    if (response.ok) return {html: await response.text()};
    const told = await response.json();
    return {error: told.error + (told.hint ? ": " + told.hint : "")};
  } catch {
    return {error: "The server does not answer. Is `monosemy app` still running?"};
  }
}

async function draw() {
  const number = ++asked;
  const query = "?" + new URLSearchParams(new FormData(form));
  const answer = await answerOf(form.dataset.graph + query);
  if (number !== asked) return; // a slider moved on meanwhile
  error.textContent = answer.error || "";
  if (answer.error) return;
  const left = drawing.querySelector(".picture").scrollLeft;
  drawing.innerHTML = answer.html; // escaped by the server
  drawing.querySelector(".picture").scrollLeft = left;
  history.replaceState(null, "", query + location.hash);
}

document.getElementById("draw").hidden = true;
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", event => {
  event.target.nextElementSibling.value = event.target.value;
  clearTimeout(waiting);
  waiting = setTimeout(draw, 120);
});

// The card that the address names: what its feature fires on is asked for once.
async function fill() {
  const card = document.getElementById(location.hash.slice(1));
  const place = card && card.querySelector("[data-card]");
  if (!place) return;
  const address = place.dataset.card;
  delete place.dataset.card;
  place.textContent = "…";
  const answer = await answerOf(address);
  if (answer.error) place.textContent = answer.error;
  else place.innerHTML = answer.html; // escaped by the server
}
const picture = drawing.querySelector(".picture");
picture.scrollLeft = (picture.scrollWidth - picture.clientWidth) / 2; // the metric in sight
addEventListener("hashchange", fill);
fill();
