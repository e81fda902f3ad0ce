// The command palette: goes to pages, agents, a task's id, or the tasks of a query. A combobox with a list.
const MOST = 12;
let targets = null;
let chosen = 0;

export function offerPalette() {
  const dialog = document.getElementById("palette");
  if (!dialog) return;
  const field = dialog.querySelector("input");
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      show(dialog, field);
    }
  });
  field.addEventListener("input", () => list(dialog, field));
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") choose(dialog, field, chosen + 1);
    else if (event.key === "ArrowUp") choose(dialog, field, chosen - 1);
    else if (event.key === "Enter") go(dialog);
    else return;
    event.preventDefault();
  });
}

async function show(dialog, field) {
  if (dialog.open) return;
  field.value = "";
  dialog.showModal();
  targets ??= await load(dialog.dataset.src);
  list(dialog, field);
}

async function load(address) {
  const answer = await fetch(address, { headers: { "Minion-Live": "1" } }).catch(() => null);
  if (!answer?.ok) return null;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  return [...page.querySelectorAll("#targets a")].map((link) => ({ text: link.textContent, address: link.getAttribute("href") }));
}

function fitting(dialog, typed) {
  const words = typed.toLowerCase().split(/\s+/);
  const found = (targets ?? []).filter(({ text }) => words.every((word) => text.toLowerCase().includes(word)));
  const asked = { address: `${dialog.dataset.tasks}?q=${encodeURIComponent(typed)}` };
  if (/^[0-9a-f]{8}[0-9a-f-]{0,28}$/i.test(typed)) return [{ ...asked, text: `Task ${typed}` }, ...found];
  const search = typed ? [{ ...asked, text: `Tasks: ${typed}` }] : [];
  return typed.includes(":") ? [...search, ...found] : [...found.slice(0, MOST - 1), ...search];
}

function list(dialog, field) {
  const options = fitting(dialog, field.value.trim()).slice(0, MOST).map(({ text, address }, index) => {
    const option = document.createElement("li");
    option.id = `palette-${index}`;
    option.setAttribute("role", "option");
    option.textContent = text;
    option.dataset.address = address;
    option.addEventListener("click", () => location.assign(address));
    return option;
  });
  dialog.querySelector("ul").replaceChildren(...options);
  choose(dialog, field, 0);
}

function choose(dialog, field, wanted) {
  const options = [...dialog.querySelectorAll("li")];
  chosen = Math.min(Math.max(wanted, 0), options.length - 1);
  options.forEach((option, index) => option.setAttribute("aria-selected", index === chosen));
  field.setAttribute("aria-activedescendant", options[chosen]?.id ?? "");
  options[chosen]?.scrollIntoView({ block: "nearest" });
}

function go(dialog) {
  const option = dialog.querySelectorAll("li")[chosen];
  if (option) location.assign(option.dataset.address);
}
