"use strict";
// Shows a token's features while it is pointed at, and one feature's activations over the text.

const data = document.getElementById("firing");
if (data) {
  const { activations, largest } = JSON.parse(data.textContent);
  const tokens = [...document.querySelectorAll("#tokens a")];
  const panel = document.getElementById("panel");
  const hint = panel.innerHTML;
  let kept = -1; // the token that was clicked

  const show = (token) => {
    if (token < 0) {
      panel.innerHTML = hint;
      return;
    }
    panel.replaceChildren(...[...document.getElementById(`t${token}`).cloneNode(true).childNodes]);
  };
  const focus = (token) => {
    if (!tokens[token]) return;
    for (const one of tokens) one.tabIndex = -1;
    tokens[token].tabIndex = 0;
    tokens[token].focus();
  };
  tokens.forEach((one, token) => {
    one.tabIndex = token ? -1 : 0;
    one.addEventListener("mouseenter", () => show(token));
    one.addEventListener("mouseleave", () => show(kept));
    one.addEventListener("focus", () => show(token));
    one.addEventListener("click", (event) => {
      event.preventDefault();
      kept = kept === token ? -1 : token;
      tokens.forEach((other, number) => other.classList.toggle("kept", number === kept));
      show(token);
      history.replaceState(null, "", kept < 0 ? location.pathname + location.search : `#t${token}`);
    });
    one.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        event.preventDefault();
        focus(token + step);
      }
    });
  });
  const asked = /^#t(\d+)$/.exec(location.hash);
  if (asked && tokens[asked[1]]) tokens[asked[1]].click();

  // One feature over the text, without asking the model again.
  const rows = [...document.querySelectorAll("tr[data-feature]")];
  const paint = (feature) => {
    tokens.forEach((one, token) => {
      const value = activations[feature][token] || 0;
      one.classList.toggle("ms-on", value > 0);
      one.style.setProperty("--a", Math.min(1, value / (largest[feature] || value)).toFixed(3));
      one.dataset.a = value ? String(value) : "0";
    });
    const row = rows.find((one) => one.dataset.feature === feature);
    const link = row.querySelector("a").cloneNode(true);
    link.textContent = `feature ${feature}`;
    document.getElementById("shown").replaceChildren(
      "Warm where ", link, " fires: ", row.querySelector(".called").cloneNode(true),
    );
    for (const one of rows) {
      one.querySelector("button").setAttribute("aria-pressed", String(one === row));
    }
  };
  let chosen = rows.map((row) => row.querySelector("[aria-pressed=true]")?.value).find(Boolean);
  for (const row of rows) {
    const feature = row.dataset.feature;
    row.addEventListener("mouseenter", () => paint(feature));
    row.addEventListener("mouseleave", () => chosen && paint(chosen));
    row.querySelector("button").addEventListener("click", (event) => {
      event.preventDefault();
      chosen = feature;
      paint(feature);
      const address = new URL(location.href);
      if (address.searchParams.has("text")) {
        address.searchParams.set("feature", feature);
        history.replaceState(null, "", address);
      }
      document.getElementById("where").scrollIntoView();
    });
  }
}
