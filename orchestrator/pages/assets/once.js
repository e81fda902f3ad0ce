// A form that acts is sent once: a second click while its answer is on the way would act again.
const MILLISECONDS = 3000;

export function sendOnce(root) {
  const sent = new WeakMap();
  root.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.getAttribute("method") !== "post") return;
    const now = performance.now();
    if (now - (sent.get(form) ?? -Infinity) < MILLISECONDS) event.preventDefault();
    else sent.set(form, now);
  });
}
