// Loads the content of a <details data-src> when it is opened.
export function openLazily(part) {
  for (const details of part.querySelectorAll("details[data-src]")) {
    details.addEventListener("toggle", () => load(details), { once: true });
  }
}

async function load(details) {
  details.setAttribute("aria-busy", "true");
  const answer = await fetch(details.dataset.src).finally(() => details.removeAttribute("aria-busy"));
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const content = page.getElementById("content");
  if (!content) return;
  content.removeAttribute("id");
  details.querySelector(":scope > p")?.remove();
  details.append(document.adoptNode(content));
  openLazily(details);
}
