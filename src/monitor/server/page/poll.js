// Asks the monitor again and again; less often where nobody looks or nobody answers.

const EVERY = 2000, UNSEEN = 10000, SLOWEST = 15000, LIMIT = 8000;
let timer, answered, failures = 0, isAsking = false;

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(LIMIT) });
  if (!answer.ok) throw new Error(`the monitor answers: ${(await answer.text()).trim()}`);
  return answer.json();
}

async function poll() {
  clearTimeout(timer);
  if (isAsking) return;
  isAsking = true;
  try {
    const status = await ask("status");
    if (isBehind(status)) await recall();
    show(status);
    document.querySelector("main").hidden = false;
    [answered, failures] = [new Date(), 0];
    tellGone("");
  } catch (error) {
    failures += 1;
    const since = answered ? `since ${clock(answered)}` : "so far";
    const then = answered ? " The figures below are from then." : "";
    tellGone(`No answer ${since} (${error.message}).${then} Trying again.`);
  }
  isAsking = false;
  const pause = failures ? Math.min(EVERY * 2 ** (failures - 1), SLOWEST) : EVERY;
  timer = setTimeout(poll, document.hidden ? Math.max(pause, UNSEEN) : pause);
}

// Fills in what happened while nobody looked. Without it, charts begin now.
async function recall() {
  try {
    takeHistory(await ask("history"));
  } catch (error) {
    console.info(`no history: ${error.message}`);
  }
}

function tellGone(text) {
  const place = document.getElementById("gone");
  place.hidden = !text;
  setText(place, text);
  document.body.classList.toggle("gone", Boolean(text));
  document.getElementById("state").hidden = Boolean(text);
  if (text) document.title = `⚠ no answer: ${document.getElementById("instance").textContent}`;
  setText(document.getElementById("as-of"), answered ? `As of ${clock(answered)}.` : "");
}

function start() {
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  offerActions();
  poll();
}
