// From what the monitor says to what the page shows.

const MAY_ACT = document.documentElement.classList.contains("may-act");
const WORKERS = makeTable("workers", [
  ["Worker", ""], ["State", "first"], ["vCon", "code wide"], ["For", "number"], ["Done", "number"],
  ["Failed", "number"], ["Restarts", "number"], ["Memory", "number"], ["CPU", "number"], ["PID", "number"],
]);
const QUEUES = makeTable("queues", [
  ["List", ""], ["Kind", ""], ["Length", "number"], ["Last minute", "number"], ["Last hour", "spark"],
  ...(MAY_ACT ? [["Action", "actions"]] : []),
]);
const FIGURES = makeTable("figures", [
  ["Name", ""], ["Per second", "number"], ["p50", "number"], ["p95", "number"], ["p99", "number"], ["Done", "number"],
  ["Halted", "number"], ["Failed", "number"], ["Retried", "number"], ["Dead letters", "number last"],
  ...(MAY_ACT ? [["Action", "actions"]] : []),
]);
const KINDS = {
  busy: "good busy", idle: "soft", ready: "soft", restarting: "bad", refused: "bad", overdue: "bad", stuck: "bad",
};
const sparks = new Map();

function show(status) {
  remember(status);
  showState(status);
  showTroubles(status);
  showTiles(status);
  drawCharts();
  showLetters(status.queues);
  showWorkers(status);
  showQueues(status);
  showFigures(status);
  letKeysScroll();
}

// Tables that are wider than their place are reached by the keyboard.
function letKeysScroll() {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// What pauses or resumes a list or chain; nothing where nobody may, or where that is not known.
const switches = new Map();

function pauseSwitch(paused, kind, name) {
  if (!paused) return "";
  const isPaused = paused.some((it) => it.kind === kind && it.name === name);
  const key = `${kind} ${name} ${isPaused}`, verb = isPaused ? "resume" : "pause";
  if (!switches.has(key)) {
    const text = isPaused ? "Resume" : "Pause";
    switches.set(key, button(text, `${text} ${kind} ${name}`, () => pauseOrResume(verb, kind, name)));
  }
  return switches.get(key);
}

function put(id, text, unit) {
  const place = document.getElementById(id);
  if (!unit) return setText(place, text);
  const small = place.querySelector("small") ?? element("small");
  setText(small, ` ${unit}`);
  if (place.firstChild?.data !== text) place.replaceChildren(text, small);
}

function showState(status) {
  const { instance, state, version, start_method, uptime_seconds, workers_ready, workers_wanted } = status;
  const isCalm = status.holds.length === 0 && status.redis_away_seconds === null;
  const isGood = state === "running" && workers_ready === workers_wanted && isCalm;
  put("instance", instance);
  const since = duration(uptime_seconds);
  put("about", `conserver ${version}, up ${since}, PID ${status.pid}, start method ${start_method}`);
  const held = status.holds.length ? `, ${status.holds.length} on hold` : "";
  const paused = status.paused?.length ? `, ${status.paused.length} paused` : "";
  put("state", `${state}, ${workers_ready} of ${workers_wanted} workers ready${held}${paused}`);
  document.getElementById("state").className = `mark ${isGood ? "good busy" : "warn"}`;
  document.title = visible(`${isGood ? "" : "⚠ "}${instance}: ${state}`);
}

function showTiles(status) {
  const { queues } = status, now = samples.at(-1);
  const total = (lengths) => (queues && !queues.error ? sum(Object.values(lengths)) : NaN);
  const ofStorages = Object.values(queues?.storages ?? {}).map((queue) => queue?.dead_letters);
  const letters = total(queues?.dead_letters) + sum(ofStorages);
  put("rate", rate(pace(now.at, "done")), "per s");
  put("waiting", count(total(queues?.ingress)));
  put("in-work", count(sum(status.workers.map(({ lanes }) => lanes.length))),
    `of ${count(status.lanes_per_worker * status.workers_wanted)}`);
  put("done", count(now.done));
  put("failed", count(now.failed));
  put("dead-letters", count(letters));
  document.getElementById("failed").className = now.failed ? "bad" : "";
  document.getElementById("dead-letters").className = letters ? "bad" : "";
}

function showWorkers(status) {
  const rows = status.workers.map((worker) => ({
    key: worker.worker,
    cells: [
      `${worker.worker}`, stateOf(worker, status.lanes_per_worker), worker.vcon ?? "",
      worker.seconds === null ? "" : `${worker.seconds.toFixed(1)} s`, count(worker.done), count(worker.failed),
      count(worker.restarts), megabytes(worker.memory_bytes), cpu(worker), worker.pid === null ? "" : `${worker.pid}`,
    ],
  }));
  const { monitor, restarts } = status;
  if (monitor) {
    const pid = monitor.pid === null ? "" : `${monitor.pid}`;
    const cells = ["monitor", mark(monitor.state), "", "", "", "", "", megabytes(monitor.memory_bytes), "", pid];
    rows.push({ key: "monitor", className: "brief", cells });
  }
  fill(WORKERS, rows);
  const causes = Object.entries(restarts).filter(([, n]) => n > 0).map(([cause, n]) => `${count(n)} ${cause}`);
  put("restarts", `Replaced since the start: ${causes.join(", ") || "none"}`);
}

function mark(state, text = state) {
  return { text, className: `mark ${KINDS[state] ?? "warn"}` };
}

function stateOf({ state, lanes, restart_in_seconds }, lanesPerWorker) {
  if (restart_in_seconds !== null) return mark(state, `${state} in ${restart_in_seconds.toFixed(1)} s`);
  return mark(state, lanesPerWorker > 1 && lanes.length ? `${state} ${lanes.length}/${lanesPerWorker}` : state);
}

// Workers tell it every few seconds, so it takes some to say.
function cpu({ worker, cpu_seconds }) {
  const from = readBefore(RECENT), seconds = samples.at(-1).at - from.at;
  if (seconds < 10 || !from.cpu.has(worker)) return "–";
  return `${Math.max(0, (100 * (cpu_seconds - from.cpu.get(worker))) / seconds).toFixed(0)} %`;
}

function lists(queues) {
  const kinds = [["ingress", "ingress"], ["egress", "egress"], ["dead_letters", "dead letters"]];
  const entry = (kind, name, length) => ({ key: `${kind} ${name}`, kind, name, length });
  const rows = kinds.flatMap(([field, kind]) => Object.entries(queues?.[field] ?? {}).map(
    ([name, length]) => entry(kind, name, length)));
  // Of a storage, what it misses.
  for (const [storage, queue] of Object.entries(queues?.storages ?? {})) {
    const name = `DLQ:storage:${storage}`;
    if (queue === null) rows.push(entry("dead letters", name, null));
    if (queue?.dead_letters) rows.push(entry("dead letters", name, queue.dead_letters));
    if (queue?.backlog) rows.push(entry("backlog", name, queue.backlog));
  }
  return rows;
}

function showQueues({ queues, paused }) {
  const place = document.getElementById("no-queues"), error = queues?.error;
  place.hidden = !error;
  setText(place, error ? `The lengths are not known: ${error}` : "");
  const then = before(RECENT);
  const rows = lists(queues).map(({ key, kind, name, length }) => {
    const waiting = length === null ? "not a list" : count(length);
    const isBad = kind === "dead letters" && length > 0;
    sparks.set(key, spark(sparks.get(key), key));
    const changed = change(length - then.lengths.get(key));
    const cells = [name, kind, { text: waiting, className: isBad ? "bad" : "" }, changed, sparks.get(key)];
    if (MAY_ACT) cells.push(kind === "ingress" ? pauseSwitch(paused, "list", name) : "");
    return { key, cells };
  });
  fill(QUEUES, rows);
}

function change(n) {
  if (!Number.isFinite(n)) return "–";
  return n > 0 ? `+${count(n)}` : n < 0 ? `−${count(-n)}` : "±0";
}

function showFigures(status) {
  const rows = [];
  for (const [kind, title] of [["chain", "Chains"], ["link", "Links"], ["storage", "Storages"]]) {
    const shown = status[`${kind}s`].filter((figures) => figures.in_force || figures.received > 0);
    if (shown.length) rows.push({ key: kind, className: "group", cells: [title] });
    for (const figures of shown) {
      const key = `${kind} ${figures.name}`, { rate: perSecond, buckets } = recent(key, figures);
      const time = (q) => {
        const found = quantile(q, buckets);
        return found ? `${found.sign}${brief(found.seconds)}` : "–";
      };
      const bad = (n) => ({ text: count(n), className: n ? "bad" : "" });
      const name = figures.in_force ? figures.name : `${figures.name} (former)`;
      const halted = figures.halted === undefined ? "–" : count(figures.halted);
      const cells = [name, rate(perSecond), time(0.5), time(0.95), time(0.99), count(figures.done), halted];
      cells.push(bad(figures.failed), count(figures.retried), bad(figures.dead_lettered));
      const isSwitched = kind === "chain" && figures.in_force;
      if (MAY_ACT) cells.push(isSwitched ? pauseSwitch(status.paused, "chain", figures.name) : "");
      rows.push({ key, cells });
    }
  }
  fill(FIGURES, rows);
}
