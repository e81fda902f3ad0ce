// Completes the last term of a query from the list of its field. Without this, the list completes the whole field.
export function completeQueries(part) {
  for (const field of part.querySelectorAll("input[data-terms]")) {
    const list = field.list;
    if (!list) continue;
    const words = [...list.options].map((option) => option.value);
    field.addEventListener("input", () => offer(field.value, list, words));
  }
}

function offer(text, list, words) {
  const before = text.slice(0, text.search(/\S*$/));
  const typed = text.slice(before.length);
  const fitting = words.filter((word) => word.startsWith(typed) && word !== typed);
  list.replaceChildren(...fitting.slice(0, 50).map((word) => new Option("", before + word)));
}
