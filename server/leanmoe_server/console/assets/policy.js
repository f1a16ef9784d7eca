// The level: changed by an administrator, with a reason, undone, and who did it before.

import { $, level, loss, make, percent, row, rows, say } from "./words.js";
import { Refused, server } from "./server.js";

const target = () => document.querySelector('input[name="target"]:checked').value;
let policy = null, shownVersion = null, changed = () => {};

function tell(text, kind = "") {
  $("level-said").dataset.kind = kind;
  say("level-said", text);
}

function expectation() {
  const value = Number($("target-value").value), given = $("target-value").value !== "";
  const byLoss = target() === "max_kld";
  say("target-label", byLoss ? "KLD, nats a token" : `Level, 0 to ${level(policy?.max_level ?? 1)}`);
  $("target-value").toggleAttribute("max", !byLoss);
  if (!byLoss) $("target-value").max = policy?.max_level ?? 1;
  if (!policy?.curve) return "No curve: level 0 (exact) or 1 (top-1 only).";
  if (!given) return "";
  const points = policy.curve;
  let point = points.find((one) => one.level >= value);
  if (byLoss) {
    const past = points.findIndex((one) => one.level > 0 && one.kld_upper > value);
    point = points[past < 0 ? points.length - 1 : Math.max(0, past - 1)];
    if (point.level > policy.max_level) return `At most level ${level(policy.max_level)}, which this server allows.`;
  }
  if (!point) return "";
  return `${byLoss ? `That is level ${level(point.level)}` : "Measured"}: up to ${percent(point.skip_rate)} skipped, ` +
    `KLD at most ${loss(point.kld_upper)}, top-1 agreement ${percent(point.top1_agreement)}.`;
}

export function showPolicy(now) {
  policy = now;
  say("target-said", expectation());
  if ($("target-value").value === "" && now.level !== null && shownVersion === null) $("target-value").value = level(now.level);
  if (shownVersion === now.version) return;
  shownVersion = now.version;
  showTrail();
}

/** Read the trail again at the next status: another key may see more. */
export function forgetTrail() {
  shownVersion = null;
}

function told(one) {
  const parts = [one.level === null ? "–" : level(one.level)];
  if (one.max_kld !== null) parts.push(`(KLD ≤ ${loss(one.max_kld)})`);
  if (one.phases !== "all") parts.push(one.phases);
  if (one.union_budget !== null) parts.push(`budget ${one.union_budget}`);
  return parts.join(" ");
}

function entry(change) {
  const when = new Date(change.time), why = make("span", {}, change.reason ?? "–");
  if (change.error) why.append(make("span", { class: "failed" }, ` Not in force: ${change.error}`));
  const stamp = make("time", { datetime: change.time }, Number.isNaN(when.valueOf()) ? change.time : when.toLocaleString("en-GB"));
  return row(stamp, change.who === change.cause ? change.who : `${change.who} (${change.cause})`, change.from ? `${told(change.from)} → ${told(change.to)}` : told(change.to), why);
}

function fill(entries) {
  rows("trail", entries);
  $("trail").hidden = !entries.length;
}

async function showTrail() {
  try {
    const trail = await server.history();
    fill(trail.changes.map(entry));
    const kept = trail.file ? "also in the server's audit file" : "in memory only: the server was started without an audit file";
    say("trail-said", trail.changes.length ? `${trail.changes.length} of ${trail.total} changes since the start, newest first; ${kept}.` : "No change since the start.");
  } catch (error) {
    fill([]);
    const closed = error.status === 401 || error.status === 403;
    say("trail-said", error.status === 404 ? "This server keeps no audit trail."
      : closed ? `The audit trail is for administrators: ${error.message}.` : `The audit trail could not be read: ${error.message}.`);
    if (!closed && error.status !== 404) forgetTrail();
  }
}

async function act(work, done) {
  const buttons = $("level-form").querySelectorAll("button");
  buttons.forEach((one) => { one.disabled = true; });
  tell("Asking every worker …");
  try {
    const now = await work();
    tell(done(now), "good");
    forgetTrail();
    changed();
  } catch (error) {
    tell(error instanceof Refused ? `Not changed: ${error.message}.` : "Not changed: the page failed; reload it.", "bad");
  } finally {
    buttons.forEach((one) => { one.disabled = false; });
  }
}

export function followPolicy(onChange) {
  changed = onChange;
  $("level-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const body = { [target()]: Number($("target-value").value), reason: $("reason").value.trim() };
    act(() => server.change(body), (now) => `Level ${level(now.level)} is in force on every worker.`);
  });
  $("roll-back").addEventListener("click", () => {
    const reason = $("reason").value.trim();
    act(() => server.rollBack(reason ? { reason } : {}), (now) => `Undone: level ${level(now.level)} is in force again.`);
  });
  $("level-form").addEventListener("input", () => say("target-said", expectation()));
}
