// Dead letters: for each queue those that failed in the same way, and what can be done with them.

const LETTERS = makeTable("letters", [
  ["Stage", ""], ["Error", "error"], ["vCons", "number"], ["Oldest", "number"], ["Newest", "number"],
  ...(MAY_ACT ? [["Action", "actions"]] : []),
]);
const MOST_SHOWN = 50;
const cells = new Map();

// Queues with dead letters: how they are named in actions, their key, and how many there are.
function letterQueues(queues) {
  const known = [
    ...Object.entries(queues?.dead_letters ?? {}).map(([key, n]) => [key.replace(/^DLQ:/, ""), n]),
    ...Object.entries(queues?.storages ?? {}).map(([name, queue]) => [`storage:${name}`, queue?.dead_letters]),
  ];
  return known.filter(([, n]) => n > 0);
}

function showLetters(queues) {
  const all = letterQueues(queues), groups = queues?.dead_letter_groups ?? [], used = new Set();
  document.getElementById("dead").hidden = all.length === 0;
  const rows = all.flatMap(([queue, n]) => {
    const own = groups.filter((group) => group.queue === queue);
    const rows = own.slice(0, MOST_SHOWN).map((group) => groupRow(queue, group, used));
    return [headRow(queue, n, own.length, used), ...rows];
  });
  fill(LETTERS, rows);
  for (const key of cells.keys()) if (!used.has(key)) cells.delete(key);
  const isWhole = queues?.dead_letter_groups_complete !== false && groups.length <= MOST_SHOWN;
  put("letters-note", isWhole ? "" : "There are more than are shown here: conserver dlq ls lists all.");
}

// What stands in a cell and is made once, so that it keeps the keyboard's place.
function kept(key, used, make) {
  used.add(key);
  if (!cells.has(key)) cells.set(key, make());
  return cells.get(key);
}

function headRow(queue, n, groups, used) {
  const key = `queue ${queue}`;
  const head = kept(key, used, () => {
    const box = element("div", "", "bar");
    box.append(element("span"));
    if (MAY_ACT) box.append(letterButtons({ queue }, `all dead letters of ${queue}`, " all"));
    return box;
  });
  const kinds = groups > 1 ? `, failed in ${count(groups)} ways` : "";
  setText(head.firstChild, `${queue}: ${count(n)}${kinds}`);
  return { key, className: "group", cells: [head] };
}

function groupRow(queue, group, used) {
  const { stage, error, count: n, examples, oldest_seconds, newest_seconds } = group;
  const key = `group ${queue}\n${stage}\n${error}`;
  const what = kept(key, used, () => makeError());
  setText(what.firstChild, error || "no reason is known");
  showExamples(what, examples ?? []);
  const row = [
    stage || "–", what, { text: count(n), className: "bad" }, age(oldest_seconds), age(newest_seconds),
  ];
  if (MAY_ACT) {
    const about = `those of ${queue} that failed at ${stage || "an unknown stage"}`;
    row.push(kept(`${key}\nactions`, used, () => letterButtons({ queue, group: { stage, error } }, about)));
  }
  return { key, cells: row };
}

function age(seconds) {
  return Number.isFinite(seconds) ? `${duration(seconds)} ago` : "–";
}

function makeError() {
  const box = element("div"), more = element("details");
  more.append(element("summary"));
  box.append(element("span"), more);
  return box;
}

function showExamples(box, examples) {
  const more = box.lastChild;
  more.hidden = examples.length === 0;
  setText(more.firstChild, examples.length === 1 ? "an example" : `${examples.length} examples`);
  while (more.children.length > examples.length + 1) more.lastChild.remove();
  examples.forEach((example, i) => setText(more.children[i + 1] ?? more.appendChild(element("code")), example));
}

function letterButtons(which, about, all = "") {
  const box = element("div", "", "buttons"), isStorage = which.queue.startsWith("storage:");
  const goes = isStorage ? "They are saved to that storage again; no link runs." : "They go to the end of their list.";
  const gone = `Their entries are gone for good; documents stay in Redis until they expire.`;
  box.append(
    button(`Retry${all}`, `Retry ${about}`, () => act("dlq/retry", which, { title: `Retry ${about}?`, text: goes, verb: "Retry" })),
    button(`Drop${all}`, `Drop ${about}`, () => act("dlq/drop", which, {
      title: `Drop ${about}?`, text: gone, verb: "Drop", isFinal: true,
    })),
  );
  return box;
}
