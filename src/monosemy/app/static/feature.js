"use strict";
// The page of a feature: tabs, wider contexts, the live box, and keys.

// Tabs. Without this script all their sections are shown, one below the other.
const sections = [...document.querySelectorAll(".contexts")];
const tabs = [...document.querySelectorAll(".tabs a")];

function showTab() {
  const chosen = sections.find(section => "#" + section.id === location.hash) || sections[0];
  for (const section of sections) section.hidden = section !== chosen;
  for (const tab of tabs) {
    if (chosen && tab.hash === "#" + chosen.id) tab.setAttribute("aria-current", "true");
    else tab.removeAttribute("aria-current");
  }
}
for (const tab of tabs) {
  tab.addEventListener("click", event => {
    event.preventDefault(); // without jumping there
    history.replaceState(null, "", tab.hash);
    showTab();
  });
}
addEventListener("hashchange", showTab);
showTab();

// Contexts: a click or Enter widens one, up to the whole row, and then narrows it again.
const SIZES = [32, 96, 100000];

async function widen(text) {
  const size = (Number(text.dataset.size || 0) + 1) % SIZES.length;
  const query = new URLSearchParams({place: text.dataset.place, window: SIZES[size]});
  const answer = await fetch(text.closest("[data-wider]").dataset.wider + "?" + query);
  if (!answer.ok) return;
  text.innerHTML = await answer.text(); // escaped by the server
  text.dataset.size = size;
  text.setAttribute("aria-expanded", size > 0);
}
for (const text of document.querySelectorAll("[data-wider] .ms-text")) {
  text.tabIndex = 0;
  text.setAttribute("role", "button");
  text.setAttribute("aria-expanded", "false");
  text.addEventListener("click", () => {
    if (String(getSelection())) return; // somebody copies text
    widen(text);
  });
  text.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    widen(text);
  });
}

// The live box.
const live = document.querySelector(".live");
if (live) {
  const box = live.querySelector("textarea");
  const said = live.querySelector(".said");
  const shown = live.querySelector("pre");
  let waiting = 0;
  let asked = 0;
  let isLoaded = false;

  const fire = async () => {
    const number = ++asked;
    if (!box.value.trim()) {
      said.textContent = "";
      shown.hidden = true;
      return;
    }
    said.textContent = isLoaded ? "…" : "The model is being loaded, once …";
    let answer;
    try {
      const response = await fetch(live.dataset.fire, {
        method: "POST",
        headers: {"Content-Type": "application/json"},
        body: JSON.stringify({text: box.value}),
      });
      answer = await response.json();
    } catch {
      answer = {error: "The server does not answer. Is `monosemy app` still running?"};
    }
    if (number !== asked) return; // more was typed meanwhile
    isLoaded = !answer.error;
    said.textContent = answer.error ? answer.error + (answer.hint ? ": " + answer.hint : "") : answer.said;
    shown.hidden = Boolean(answer.error);
    if (!answer.error) shown.innerHTML = answer.html; // escaped by the server
  };
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(fire, 250);
  });
  live.addEventListener("submit", event => event.preventDefault());
  if (box.value) fire(); // the browser kept it
}

// Keys: p and n lead to the feature before and after.
addEventListener("keydown", event => {
  if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const link = document.querySelector({p: "a[rel=prev]", n: "a[rel=next]"}[event.key] || "none");
  if (link) location.href = link.href + location.hash;
});
