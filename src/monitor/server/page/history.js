// What the daemon did in the last hour, as far as the monitor or this page has seen it, and what has changed since a
// time. Time is the daemon's uptime.

const KEPT = 3600, FINE = 300, SAMPLED = 10, RECENT = 60, BEHIND = 30;
let samples = [];

function sum(values) {
  return values.reduce((total, n) => total + (n ?? 0), 0);
}

function through(figures) {
  return figures.done + (figures.halted ?? 0);
}

// Whether there was more than the pause between two readings since the last one of this daemon.
function isBehind({ pid, uptime_seconds }) {
  const last = samples.at(-1);
  return !last || last.pid !== pid || uptime_seconds - last.at > BEHIND || uptime_seconds < last.at;
}

// Takes what the monitor has kept, an array for each figure, in place of all that was read.
function takeHistory({ pid, at, lists, ...columns }) {
  samples = at.map((at, i) => ({
    pid, at, isRecalled: true, done: columns.done[i], failed: columns.failed[i], p50: columns.p50[i] ?? NaN,
    p99: columns.p99[i] ?? NaN, waiting: columns.waiting[i] ?? NaN, memory: columns.memory_bytes[i],
    cpu: new Map(), figures: new Map(),
    lengths: new Map(Object.entries(lists).map(([key, lengths]) => [key, lengths[i]])),
  }));
}

// Takes note of a reading. One that was there before, answered again, is none.
function remember(status) {
  const last = samples.at(-1);
  if (last && !last.isRecalled && last.pid === status.pid && last.at === status.uptime_seconds) return;
  const all = [["chain", status.chains], ["link", status.links], ["storage", status.storages]];
  const { queues } = status, isKnown = queues && !queues.error;
  const sample = {
    pid: status.pid,
    at: status.uptime_seconds,
    done: sum(status.chains.map(through)),
    failed: sum(status.chains.map((chain) => chain.failed)),
    waiting: isKnown ? sum(Object.values(queues.ingress)) : NaN,
    memory: sum([...status.workers, status.monitor].map((child) => child?.memory_bytes)),
    cpu: new Map(status.workers.map((worker) => [worker.worker, worker.cpu_seconds])),
    figures: new Map(all.flatMap(([kind, list]) => list.map((it) => [`${kind} ${it.name}`, it]))),
    lengths: new Map(lists(queues).map(({ key, length }) => [key, length])),
  };
  if (last && !goesOn(last, sample)) samples = [];
  // What the monitor has told a moment later is newer.
  while (samples.at(-1)?.at >= sample.at) samples.pop();
  samples.push(sample);
  // The first reading of this page has none before it to be held against.
  [sample.p50, sample.p99] = last?.isRecalled ? [last.p50, last.p99] : timesOf(status.chains);
  while (samples.length > 2 && samples[1].at <= sample.at - KEPT) samples.shift();
  thinOut(sample.at - FINE);
  // Only the lines of the last hour go farther back.
  const first = samples.indexOf(before(RECENT));
  for (const old of samples.slice(0, first)) old.figures = old.cpu = new Map();
}

// Of readings that are older, one in ten seconds is enough.
function thinOut(until) {
  const next = samples.findIndex(({ at }) => at > until);
  if (next > 1 && samples[next].at - samples[next - 2].at <= SAMPLED) samples.splice(next - 1, 1);
}

// Whether it is the same daemon that goes on counting. In a container the next one has the same PID,
// and may be older by now than the former was when somebody last looked.
function goesOn(last, next) {
  const isYounger = next.at < last.at || next.done < last.done || next.failed < last.failed;
  return next.pid === last.pid && (last.isRecalled || !isYounger);
}

// The last reading that is at least so many seconds old; else the first there is.
function before(seconds) {
  const at = samples.at(-1).at - seconds;
  return samples.findLast((sample) => sample.at <= at) ?? samples[0];
}

// The same among those that this page has read itself: only they have all figures.
function readBefore(seconds) {
  const found = before(seconds);
  return found.isRecalled ? samples.find((sample) => !sample.isRecalled) : found;
}

// The index of the first sample at or after a time.
function indexAt(at) {
  let [low, high] = [0, samples.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (samples[middle].at >= at) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Done, or failed, until a time between readings.
function until(at, what) {
  const next = indexAt(at);
  if (next === 0) return samples[0][what];
  const [from, to] = [samples[next - 1], samples[next]];
  return from[what] + (to[what] - from[what]) * (at - from.at) / (to.at - from.at);
}

// How much of it there was in a second, over some seconds before a time; NaN where nobody looked.
function pace(at, what) {
  const from = Math.max(at - Math.max(6, span() / 120), samples[0].at);
  return at > from ? (until(at, what) - until(from, what)) / (at - from) : NaN;
}

// How much is new in the last minute: a second of it, and its times in buckets.
function recent(key, figures) {
  const from = readBefore(RECENT), seconds = samples.at(-1).at - from.at, old = from.figures.get(key);
  if (!(seconds > 0)) return { rate: NaN, buckets: [] };
  const rate = (through(figures) - (old ? through(old) : 0)) / seconds;
  return { rate, buckets: newTimes(figures, old) };
}

// The times that were counted since an earlier reading.
function newTimes(figures, old) {
  const earlier = old?.seconds?.buckets ?? [];
  return (figures.seconds?.buckets ?? []).map(([bound, n]) => [bound, n - upTo(bound, earlier)]);
}

// How many times are at most this bound, from pairs of upper bound and number up to it. A bound that has none between
// it and the bound below it may be left out.
function upTo(bound, buckets) {
  return buckets.findLast(([it]) => edge(it) <= edge(bound))?.[1] ?? 0;
}

function edge(bound) {
  return bound === "+Inf" ? Infinity : bound;
}

// Median and 99th percentile of what all chains have done in the last ten seconds.
function timesOf(chains) {
  const from = readBefore(SAMPLED);
  if (from === samples.at(-1)) return [NaN, NaN];
  const added = chains.map((chain) => newTimes(chain, from.figures.get(`chain ${chain.name}`)));
  const bounds = [...new Set(added.flat().map(([bound]) => bound))].sort((a, b) => edge(a) - edge(b));
  const all = bounds.map((bound) => [bound, sum(added.map((buckets) => upTo(bound, buckets)))]);
  return [0.5, 0.99].map((q) => quantile(q, all)?.seconds ?? NaN);
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
