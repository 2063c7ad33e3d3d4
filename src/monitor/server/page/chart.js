// Lines over the last minutes.

const SVG = "http://www.w3.org/2000/svg";

// One digit with noughts: a height that reads well.
function roundUp(n) {
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((height) => height >= n);
}

// How far back lines go: as long as somebody has looked, a minute at least.
function span() {
  return Math.min(Math.max(60, samples.at(-1).at - samples[0].at), KEPT);
}

function path(points, width, height, top) {
  const now = samples.at(-1).at;
  const x = (at) => (width * (1 - (now - at) / span())).toFixed(1);
  // A line at either edge is whole.
  const y = (n) => (height - 1 - ((height - 2) * n) / top).toFixed(1);
  return points.map(([at, n], i) => `${i ? "L" : "M"}${x(at)} ${y(n)}`).join("");
}

function drawChart() {
  const shown = samples.filter((sample) => sample.at >= samples.at(-1).at - KEPT);
  const line = (what) => shown.map(({ at }) => [at, pace(at, what)]).filter(([, n]) => Number.isFinite(n));
  const [done, failed] = [line("done"), line("failed")];
  const highest = Math.max(0, ...done.map(([, n]) => n), ...failed.map(([, n]) => n));
  const top = roundUp(Math.max(highest, 1));
  const draw = (id, d) => document.getElementById(id).setAttribute("d", d);
  const doneLine = path(done, 300, 100, top);
  draw("done-line", doneLine);
  draw("failed-line", path(failed, 300, 100, top));
  draw("done-area", done.length ? `${path([[done[0][0], 0]], 300, 100, top)}${doneLine.replace("M", "L")}V100Z` : "");
  setText(document.getElementById("top"), count(top));
  const now = (line) => rate(line.at(-1)?.[1]);
  const ago = `${Math.round(span() / 6) / 10} min`;
  setText(document.getElementById("ago"), `${ago} ago`);
  const words = `Now ${now(done)} done and ${now(failed)} failed per second, at most ${rate(highest)} in ${ago}`;
  document.getElementById("chart").setAttribute("aria-label", words);
}

// A small line of how long a list was; its row says the same in numbers.
function spark(row, key) {
  const svg = row ?? document.createElementNS(SVG, "svg");
  if (!row) {
    svg.setAttribute("viewBox", "0 0 120 20");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    svg.append(document.createElementNS(SVG, "path"));
  }
  const known = samples.filter(({ lengths }) => Number.isFinite(lengths.get(key)));
  const points = known.map(({ at, lengths }) => [at, lengths.get(key)]);
  const highest = Math.max(1, ...points.map(([, n]) => n));
  svg.firstChild.setAttribute("d", path(points, 120, 20, highest));
  return svg;
}
