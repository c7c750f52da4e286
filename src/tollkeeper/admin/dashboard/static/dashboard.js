// What a page does beyond links and forms: copies a secret, sends a form once, and keeps figures current.
"use strict";

const LIVE_MS = 10_000;

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      button.textContent = "Copied";
    } catch {
      document.execCommand("copy"); // without https there is no clipboard object
      button.textContent = "Copied";
    }
  });
}

for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", () => {
    for (const button of form.querySelectorAll("button")) button.disabled = true;
  });
}
// coming back with the browser's button finds the form usable again
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("form[method=post] button")) button.disabled = false;
});

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "error" });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live][id]")) {
    const next = fresh.getElementById(part.id);
    const busy = part.contains(document.activeElement) || part.querySelector("details[open]");
    if (next && !busy && next.innerHTML !== part.innerHTML) {
      part.replaceWith(document.adoptNode(next));
    }
  }
}

if (document.querySelector("[data-live]")) {
  const run = () => refresh().catch(() => {}).finally(() => setTimeout(run, LIVE_MS));
  setTimeout(run, LIVE_MS);
}
