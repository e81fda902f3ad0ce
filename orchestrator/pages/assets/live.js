// Renews the parts of a page when the server says that they have changed. A hidden page does not listen.
import { openLazily } from "./lazy.js";
import { offerCopies } from "./copy.js";

let source = null;
let over = false;
let renewing = false;
let again = false;

export function follow(address) {
  if (!address || !("EventSource" in window)) return;
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start(address)));
  if (!document.hidden) start(address);
}

function start(address) {
  if (source || over) return;
  source = new EventSource(address);
  source.addEventListener("open", () => say("live"));
  source.addEventListener("changed", renew);
  source.addEventListener("over", () => {
    over = true;
    stop();
  });
  source.addEventListener("error", () => say(source?.readyState === EventSource.CLOSED ? "not live: reload to update" : "connecting…"));
}

function stop() {
  source?.close();
  source = null;
  say("");
}

function say(text) {
  document.getElementById("live-state").textContent = text;
}

async function renew() {
  if (renewing) {
    again = true;
    return;
  }
  renewing = true;
  try {
    const answer = await fetch(location.href, { headers: { "Minion-Live": "1" }, redirect: "manual" });
    if (answer.ok) replaceParts(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    // The stream says when there is a connection again.
  } finally {
    renewing = false;
  }
  if (again) {
    again = false;
    await renew();
  }
}

function replaceParts(fresh) {
  document.title = fresh.title;
  for (const old of document.querySelectorAll("[data-live]")) {
    const part = fresh.getElementById(old.id);
    if (part && !isInUse(old) && plain(part) !== plain(old)) {
      const opened = [...old.querySelectorAll("details")].map((each) => each.open);
      const adopted = document.adoptNode(part);
      adopted.querySelectorAll("details").forEach((each, index) => (each.open ||= opened[index] ?? false));
      old.replaceWith(adopted);
      openLazily(adopted);
      offerCopies(adopted);
    }
  }
}

// A part in which somebody works, or where the keyboard is, stays as it is.
function isInUse(part) {
  const typed = [...part.querySelectorAll("input, textarea, select")].some((field) =>
    field.type === "checkbox" ? field.checked !== field.defaultChecked
    : field.tagName === "SELECT" ? [...field.options].some((option) => option.selected !== option.defaultSelected)
    : field.type !== "hidden" && field.value !== field.defaultValue);
  const unfolded = part.querySelector("details[data-src][open]") !== null; // what it has loaded would be lost
  return typed || unfolded || part.contains(document.activeElement);
}

// "3 min ago" is not a change.
function plain(part) {
  const copy = part.cloneNode(true);
  copy.querySelectorAll("[data-ago]").forEach((ago) => ago.remove());
  copy.querySelectorAll("details").forEach((each) => each.removeAttribute("open"));
  return copy.innerHTML;
}
