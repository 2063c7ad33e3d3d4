// What was read in the last minutes, and what has changed since then. Time is the daemon's uptime.

const KEPT = 300, RECENT = 60;
let samples = [];

function sum(values) {
  return values.reduce((total, n) => total + (n ?? 0), 0);
}

function through(figures) {
  return figures.done + (figures.halted ?? 0);
}

// Takes note of a reading. One that was there before, answered again, is none.
function remember(status) {
  const last = samples.at(-1);
  if (last && last.pid === status.pid && last.at === status.uptime_seconds) return;
  const all = [["chain", status.chains], ["link", status.links], ["storage", status.storages]];
  const sample = {
    pid: status.pid,
    at: status.uptime_seconds,
    done: sum(status.chains.map(through)),
    failed: sum(status.chains.map((chain) => chain.failed)),
    cpu: new Map(status.workers.map((worker) => [worker.worker, worker.cpu_seconds])),
    figures: new Map(all.flatMap(([kind, list]) => list.map((it) => [`${kind} ${it.name}`, it]))),
    lengths: new Map(lists(status.queues).map(({ key, length }) => [key, length])),
  };
  if (last && !goesOn(last, sample)) samples = [];
  samples.push(sample);
  while (samples.length > 2 && samples[1].at <= status.uptime_seconds - KEPT) samples.shift();
  // Only the lines of the last minutes go farther back.
  const first = samples.indexOf(before(RECENT));
  for (const sample of samples.slice(0, first)) sample.figures = sample.cpu = new Map();
}

// Whether it is the same daemon that goes on counting. In a container the next one has the same PID,
// and may be older by now than the former was when somebody last looked.
function goesOn(last, next) {
  const isYounger = next.at < last.at || next.done < last.done || next.failed < last.failed;
  return next.pid === last.pid && !isYounger;
}

// The last reading that is at least so many seconds old; else the first there is.
function before(seconds) {
  const at = samples.at(-1).at - seconds;
  return samples.findLast((sample) => sample.at <= at) ?? samples[0];
}

// Done, or failed, until a time between readings.
function until(at, what) {
  const next = samples.findIndex((sample) => sample.at >= at);
  if (next === 0) return samples[0][what];
  const [from, to] = [samples[next - 1], samples[next]];
  return from[what] + (to[what] - from[what]) * (at - from.at) / (to.at - from.at);
}

// How much of it there was in a second, over the few seconds before a time; NaN where nobody looked.
function pace(at, what) {
  const from = Math.max(at - 6, samples[0].at);
  return at > from ? (until(at, what) - until(from, what)) / (at - from) : NaN;
}

// How much is new in the last minute: a second of it, and its times in buckets.
function recent(key, figures) {
  const from = before(RECENT), seconds = samples.at(-1).at - from.at, old = from.figures.get(key);
  if (!(seconds > 0)) return { rate: NaN, buckets: [] };
  const earlier = old?.seconds.buckets ?? [];
  const buckets = figures.seconds.buckets.map(([bound, n]) => [bound, n - upTo(bound, earlier)]);
  return { rate: (through(figures) - (old ? through(old) : 0)) / seconds, buckets };
}

// How many times are at most this bound, from pairs of upper bound and number up to it. A bound that has none between
// it and the bound below it is left out.
function upTo(bound, buckets) {
  const edge = (bound) => (bound === "+Inf" ? Infinity : bound);
  return buckets.findLast(([it]) => edge(it) <= edge(bound))?.[1] ?? 0;
}

// The lowest and the highest bound, and the way from one to the next, as in src/scoreboard/histogram.rs.
const LOWEST = 2 ** -20, HIGHEST = 2 ** 17, STEP = 2 ** (1 / 16);

// The time that the share q of all stays below or at: the middle of its bucket. Nothing where there are no times.
function quantile(q, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  const bound = total ? buckets.find(([, upTo]) => upTo > 0 && upTo >= q * total)[0] : null;
  if (bound === null) return null;
  if (bound === "+Inf") return { sign: "> ", seconds: HIGHEST };
  return bound <= LOWEST ? { sign: "< ", seconds: LOWEST } : { sign: "", seconds: bound / Math.sqrt(STEP) };
}
