// Keeps "3 min ago" up to date.
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

export function keepTimes() {
  setInterval(renew, 10000);
}

function renew() {
  for (const ago of document.querySelectorAll("[data-ago]")) {
    const text = `(${written(new Date(ago.closest("time").dateTime))})`;
    if (ago.textContent !== text) ago.textContent = text;
  }
}

function written(moment) {
  const seconds = (Date.now() - moment) / 1000;
  const duration = inUnits(Math.abs(seconds));
  return seconds >= 0 ? `${duration} ago` : `in ${duration}`;
}

function inUnits(seconds) {
  let left = Math.round(seconds);
  const parts = [];
  for (const [size, unit] of UNITS) {
    if (left >= size && parts.length < 2) {
      parts.push(`${Math.floor(left / size)} ${unit}`);
      left %= size;
    } else if (parts.length) break;
  }
  return parts.join(" ") || "0 s";
}
