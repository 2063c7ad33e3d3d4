// Lines over the last hour.

const SVG = "http://www.w3.org/2000/svg";
const PLACE = [300, 100];

// Every chart: its lines, each with a class, a name and what it shows of a sample, and how numbers are written.
const CHARTS = [
  {
    id: "c-rate", title: "Throughput", least: 1, say: rate, unit: " per second",
    lines: [
      ["done", "done per second", ({ at }) => pace(at, "done")],
      ["failed", "failed", ({ at }) => pace(at, "failed")],
    ],
  },
  {
    id: "c-times", title: "Time of a vCon in its chain", least: 0.001, say: brief, unit: "",
    lines: [["done", "median", ({ p50 }) => p50], ["other", "99th percentile", ({ p99 }) => p99]],
  },
  {
    id: "c-waiting", title: "Waiting in ingress lists", least: 1, say: count, unit: "",
    lines: [["done", "vCons", ({ waiting }) => waiting]],
  },
  {
    id: "c-memory", title: "Memory of workers and monitor", least: 1048576, step: 1048576, say: megabytes, unit: "",
    lines: [["done", "all together", ({ memory }) => memory]],
  },
];

function svg(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Makes the parts of a chart, once.
function makeChart({ id, lines }) {
  const figure = document.getElementById(id), plot = element("div", "", "plot");
  const drawing = svg("svg", { role: "img", viewBox: `0 0 ${PLACE.join(" ")}`, preserveAspectRatio: "none" });
  drawing.append(svg("path", { class: "grid", d: "M0 .5H300M0 50H300M0 99.5H300" }));
  drawing.append(svg("path", { class: "area" }));
  for (const [className] of lines) drawing.append(svg("path", { class: `line ${className}` }));
  const zero = element("span", "", "tick");
  zero.textContent = "0";
  plot.append(element("span", "", "tick top"), zero, drawing);
  const caption = element("figcaption"), legend = element("span", "", "legend");
  for (const [className, name] of lines) legend.append(element("span", "", `key ${className}`), `${name} `);
  const now = element("span");
  now.textContent = "now";
  caption.append(element("span", "", "ago"), legend, now);
  figure.append(plot, caption);
  return figure;
}

// One digit with noughts: a height that reads well.
function roundUp(n) {
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((height) => height >= n);
}

// How far back lines go: as long as somebody has looked, a minute at least.
function span() {
  return Math.min(Math.max(60, samples.at(-1).at - samples[0].at), KEPT);
}

// A line through points, with gaps where a number is not known. A point alone is a dot.
function path(points, width, height, top) {
  const now = samples.at(-1).at;
  const x = (at) => (width * (1 - (now - at) / span())).toFixed(1);
  // A line at either edge is whole.
  const y = (n) => (height - 1 - ((height - 2) * n) / top).toFixed(1);
  const isThere = (i) => Number.isFinite(points[i]?.[1]);
  return points.map(([at, n], i) => {
    if (!isThere(i)) return "";
    if (isThere(i - 1)) return `L${x(at)} ${y(n)}`;
    return `M${x(at)} ${y(n)}${isThere(i + 1) ? "" : "h1.5"}`;
  }).join("");
}

function drawCharts() {
  const shown = samples.filter((sample) => sample.at >= samples.at(-1).at - KEPT);
  for (const chart of CHARTS) drawChart(chart, shown);
}

function drawChart(chart, shown) {
  chart.figure ??= makeChart(chart);
  const { figure, title, lines, least, say, unit, step = 1 } = chart;
  const drawn = lines.map(([className, name, of]) => [className, name, shown.map((it) => [it.at, of(it)])]);
  const numbers = drawn.flatMap(([, , points]) => points.map(([, n]) => n)).filter(Number.isFinite);
  const highest = Math.max(0, ...numbers), top = step * roundUp(Math.max(highest, least) / step);
  const draw = (selector, d) => figure.querySelector(selector).setAttribute("d", d);
  for (const [className, , points] of drawn) draw(`.line.${className}`, path(points, ...PLACE, top));
  draw(".area", area(drawn[0][2], top));
  const reach = `${Math.round(span() / 6) / 10} min`;
  setText(figure.querySelector(".top"), say(top));
  setText(figure.querySelector(".ago"), `${reach} ago`);
  const words = drawn.map(([, name, points]) => `${name} ${say(points.at(-1)?.[1]) || "–"}`).join(", ");
  const label = `${title} in the last ${reach}. Now: ${words}. At most ${say(highest)}${unit}.`;
  figure.querySelector("svg").setAttribute("aria-label", label);
}

// What is below a line, as far as it has no gaps.
function area(points, top) {
  const first = points.findIndex(([, n]) => Number.isFinite(n));
  const whole = points.slice(first);
  if (first < 0 || whole.length < 2 || whole.some(([, n]) => !Number.isFinite(n))) return "";
  const line = path(whole, ...PLACE, top).replace("M", "L");
  return `${path([[whole[0][0], 0]], ...PLACE, top).replace(/h.*/, "")}${line}V100Z`;
}

// A small line of how long a list was; its row says the same in numbers.
function spark(row, key) {
  const drawing = row ?? svg("svg", { viewBox: "0 0 120 20", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (!row) drawing.append(svg("path"));
  const known = samples.filter(({ lengths }) => Number.isFinite(lengths.get(key)));
  const points = known.map(({ at, lengths }) => [at, lengths.get(key)]);
  const highest = Math.max(1, ...points.map(([, n]) => n));
  drawing.firstChild.setAttribute("d", path(points, 120, 20, highest));
  return drawing;
}
