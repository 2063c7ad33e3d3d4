// Numbers and times, as people read them.

// What cannot be seen, or changes the direction of what stands behind it, as the log has it: \u{202e}.
function visible(text) {
  const unseen = /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]/gu;
  return String(text).replace(unseen, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

const grouped = new Intl.NumberFormat("en");

function count(n) {
  return Number.isFinite(n) ? grouped.format(n) : "–";
}

// With two digits where it is small: 0, 0.02, 2.5, 25.
function rate(n) {
  if (!Number.isFinite(n)) return "–";
  return n === 0 || n >= 9.95 ? grouped.format(Math.round(n)) : n.toFixed(n >= 0.995 ? 1 : 2);
}

function brief(seconds) {
  if (!Number.isFinite(seconds)) return "";
  const [n, unit] = seconds < 99.5e-6 ? [seconds * 1e6, "µs"]
    : seconds < 0.9995 ? [seconds * 1e3, "ms"] : [seconds, "s"];
  return `${n.toFixed(n < 0.995 ? 2 : n < 9.95 ? 1 : 0)} ${unit}`;
}

// The two largest units: 3 d 4 h, 5 min 6 s.
function duration(seconds) {
  const s = Math.floor(seconds), min = Math.floor(s / 60), h = Math.floor(s / 3600), d = Math.floor(s / 86400);
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${min % 60} min`;
  return min ? `${min} min ${s % 60} s` : `${s} s`;
}

function megabytes(bytes) {
  return bytes === null ? "" : `${(bytes / 1048576).toFixed(1)} MB`;
}

function clock(date) {
  return date.toLocaleTimeString("en-GB");
}
