// Keyboard shortcuts. They do nothing while somebody types.
let first = "";

export function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (act(first ? `${first} ${event.key}` : event.key)) event.preventDefault();
    first = !first && event.key === "g" ? "g" : "";
  });
}

function act(keys) {
  const link = [...document.querySelectorAll("a[data-keys]")].find((each) => each.dataset.keys === keys);
  if (link) location.assign(link.href);
  else if (keys === "?") document.getElementById("shortcuts").showModal();
  else if (keys === "/") document.getElementById("q")?.focus();
  else if (keys === "j") choose(1);
  else if (keys === "k") choose(-1);
  else return false;
  return true;
}

function choose(direction) {
  const items = [...document.querySelectorAll("[data-item]")];
  if (!items.length) return;
  const at = items.findIndex((each) => each.contains(document.activeElement));
  const next = items[Math.min(Math.max(at < 0 ? (direction > 0 ? 0 : items.length - 1) : at + direction, 0), items.length - 1)];
  next.querySelector("a, button")?.focus();
}

function isTyping(target) {
  return target.matches("input:not([type=checkbox]), textarea, select") || document.querySelector("dialog[open]");
}
