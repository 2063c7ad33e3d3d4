// What needs somebody: what is unavailable and why, and what is paused.

const troubles = new Map();
let spoken = "";

function showTroubles({ holds, outages, waits, queues, redis_away_seconds, redis_error, paused }) {
  const found = [];
  if (redis_away_seconds !== null) {
    const what = `Redis has been unavailable for ${duration(redis_away_seconds)}`;
    found.push({ key: "redis", what, why: reason({ error: redis_error }), brief: "Redis is unavailable" });
  }
  for (const hold of holds) {
    const { stage, chains, workers, seconds } = hold;
    const waits = chains.length ? `; waiting: chain ${chains.join(", ")}` : "";
    const away = hold.failing ? "is reachable but fails" : "is unavailable";
    const fault = stage.startsWith("list ") ? "is not a list" : hold.denied ? "denies access" : away;
    const what = `On hold for ${duration(seconds)}: ${stage} ${fault} (${ofWorkers(workers)})${waits}`;
    found.push({ key: `hold ${stage}`, what, why: reason(hold), brief: `${stage} ${fault}` });
  }
  for (const outage of outages) {
    const { storage, workers, seconds } = outage;
    const backlog = queues?.storages?.[storage]?.backlog;
    const waits = backlog === undefined ? "its vCons wait" : `${count(backlog)} vCons wait`;
    const since = `${duration(seconds)} (${ofWorkers(workers)})`;
    const what = `Storage ${storage} has been unavailable for ${since}: ${waits} in its backlog, chains go on`;
    found.push({ key: `outage ${storage}`, what, why: reason(outage), brief: `storage ${storage} is unavailable` });
  }
  for (const { stage, waits_for, chains, workers, seconds_left } of waits ?? []) {
    const until = new Date(Date.now() + 1000 * seconds_left).toLocaleTimeString("en-GB");
    const brief = waits_for === "budget" ? `${stage} waits for its budget` : `${stage} waits, as its server asks`;
    const what = waits_for === "budget" ? brief : `${stage} waits until ${until}, as its server asks`;
    const why = `${ofWorkers(workers)}${chains.length ? `; waiting with it: chain ${chains.join(", ")}` : ""}`;
    found.push({ key: `wait ${stage}`, what, why, brief, isWait: true });
  }
  for (const { kind, name, since, by } of paused ?? []) {
    const when = new Date(since), at = Number.isNaN(when.getTime()) ? since : when.toLocaleString("en-GB");
    const what = `Paused: ${kind} ${name}`, why = [at && `since ${at}`, by && `by ${by}`].filter(Boolean).join(", ");
    found.push({ key: what, what, why, brief: `${kind} ${name} is paused`, kind, name });
  }
  fillTroubles(found);
  // Read out what changes, and not how many seconds it has been so.
  const now = found.map(({ brief }) => brief).join("; ");
  if (now !== spoken) setText(document.getElementById("spoken"), now || "All is well again");
  spoken = now;
}

function ofWorkers(workers) {
  return `worker${workers.length === 1 ? "" : "s"} ${workers.join(", ")}`;
}

function reason({ error, error_seconds, next_try_seconds }) {
  if (!error) return "";
  const age = Number.isFinite(error_seconds) ? ` ${duration(error_seconds)} ago` : "";
  const when = next_try_seconds > 0 ? `in ${duration(next_try_seconds)}` : "now";
  const next = Number.isFinite(next_try_seconds) ? `. Next try ${when}` : "";
  return `Last error${age}: ${error}${next}`;
}

function fillTroubles(found) {
  const section = document.getElementById("troubles"), list = section.querySelector("ul");
  section.hidden = found.length === 0;
  // What waits for its budget works as it should, and what is only paused is no alarm: somebody wants it so.
  section.classList.toggle("alarm", found.some(({ kind, isWait }) => !kind && !isWait));
  const gone = new Set(troubles.keys());
  found.forEach((trouble, i) => {
    gone.delete(trouble.key);
    if (!troubles.has(trouble.key)) troubles.set(trouble.key, makeTrouble(trouble));
    const line = troubles.get(trouble.key);
    setText(line.firstChild, trouble.what);
    setText(line.children[1], trouble.why);
    if (list.children[i] !== line) list.insertBefore(line, list.children[i] ?? null);
  });
  for (const key of gone) {
    troubles.get(key).remove();
    troubles.delete(key);
  }
}

function makeTrouble({ kind, name }) {
  const line = element("li");
  line.append(element("strong"), element("span", "", "why"));
  if (kind && MAY_ACT) line.append(button("Resume", `Resume ${kind} ${name}`, () => pauseOrResume("resume", kind, name)));
  return line;
}
