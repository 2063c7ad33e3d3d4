// What somebody who has the token can do here. The token stays in this tab, until it is closed.

const TOKEN = "conserver-token", ACTION_LIMIT = 120000;
let isActing = false;

function button(text, label, press) {
  const made = element("button");
  made.type = "button";
  made.textContent = text;
  if (label !== text) made.setAttribute("aria-label", visible(label));
  made.addEventListener("click", press);
  return made;
}

function offerActions() {
  if (!MAY_ACT) return;
  const forget = document.getElementById("forget");
  forget.addEventListener("click", () => {
    setToken(null);
    tellResult("The token is forgotten.", "");
  });
  document.getElementById("dismiss").addEventListener("click", () => tellResult("", ""));
  setToken(sessionStorage.getItem(TOKEN));
}

function setToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
  document.getElementById("lock").hidden = !token;
}

function tellResult(text, className) {
  const place = document.getElementById("result");
  place.className = className;
  setText(document.getElementById("outcome"), text);
  // Read out: what has been hidden until now may not be.
  setText(document.getElementById("spoken"), text);
  place.hidden = !text;
}

// Asks in a dialog, which keeps the keyboard inside and gives it back; for the token too, if it is not known.
function confirmed({ title, text, verb, isFinal }) {
  const dialog = document.getElementById("question"), field = document.getElementById("token");
  const needsToken = !sessionStorage.getItem(TOKEN);
  setText(document.getElementById("question-title"), title);
  setText(document.getElementById("question-text"), text);
  document.getElementById("token-row").hidden = !needsToken;
  field.required = needsToken;
  field.value = "";
  const go = document.getElementById("go");
  go.textContent = verb;
  go.className = isFinal ? "final" : "";
  return new Promise((resolve) => {
    const form = dialog.querySelector("form");
    form.onsubmit = (event) => {
      event.preventDefault();
      if (needsToken) setToken(field.value.trim());
      field.value = "";
      dialog.close("go");
    };
    document.getElementById("cancel").onclick = () => dialog.close("");
    dialog.onclose = () => resolve(dialog.returnValue === "go");
    dialog.returnValue = "";
    dialog.showModal();
    // What cannot be undone is not what Enter does.
    (needsToken ? field : isFinal ? document.getElementById("cancel") : go).focus();
  });
}

// Has the monitor act. Asks before if that cannot be undone, or the token is not known.
async function act(path, body, question) {
  if (isActing) return;
  if ((question.isFinal || !sessionStorage.getItem(TOKEN)) && !(await confirmed(question))) return;
  isActing = true;
  tellResult(`${question.verb} …`, "");
  // Without an answer, nobody knows: the monitor may still be acting.
  let failed = "no answer; it may have been done";
  try {
    const answer = await fetch(`actions/${path}`, {
      method: "POST",
      cache: "no-store",
      headers: {
        "Authorization": `Bearer ${sessionStorage.getItem(TOKEN)}`,
        "Content-Type": "application/json",
        "Idempotency-Key": randomKey(),
      },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(ACTION_LIMIT),
    });
    if (answer.status === 401) setToken(null);
    if (!answer.ok) failed = "not done";
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const { message, error, refused } = await answer.json();
    tellResult(`${clock(new Date())}: ${message}.`, error || refused ? "warn" : "good");
  } catch (error) {
    tellResult(`${clock(new Date())}: ${failed}: ${error.message}.`, "bad");
  }
  isActing = false;
  await poll();
  // What was pressed may be gone.
  if (document.activeElement === document.body) document.getElementById("result").focus();
}

function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, "0")).join("");
}

function pauseOrResume(verb, kind, name) {
  const text = verb === "pause"
    ? "No instance takes vCons from it any more; those in work are finished." : "All instances take vCons from it again.";
  const title = `${verb === "pause" ? "Pause" : "Resume"} ${kind} ${name}?`;
  return act(verb, { kind, name }, { title, text, verb: verb === "pause" ? "Pause" : "Resume" });
}
