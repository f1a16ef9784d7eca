// Reads the server's state while the page is seen, and hands it to the parts.

import { $, bytes, clock, count, level, loss, make, percent, rate, say } from "./words.js";
import { keys, server } from "./server.js";
import { chatWith, followChat } from "./chat.js";
import { showCurve } from "./curve.js";
import { followHeat, showHeat } from "./heat.js";
import { showMemory } from "./memory.js";
import { followPolicy, forgetTrail, showPolicy } from "./policy.js";
import { showSpeed } from "./speed.js";

const EVERY_MS = 2000, LONGEST_MS = 15000, KEPT = 120;
let points = [], latest = null, failures = 0, awaySince = null, timer = null, asking = false, levelSet = false;

function state(name, text) {
  const pill = $("state");
  pill.dataset.state = name;
  say("state", text);
  document.body.classList.toggle("stale", name === "away" || name === "locked");
}

function notices(list, kind = "bad") {
  const text = JSON.stringify([list, kind]);
  if ($("notices").dataset.told === text) return;
  $("notices").dataset.told = text;
  $("notices").replaceChildren(...list.map((one) => make("p", { class: "notice", "data-kind": kind }, one)));
}

function showState(status) {
  const late = status.snapshot_age_seconds !== null && status.snapshot_age_seconds > 3 * status.poll_seconds + 5;
  if (status.stopping) state("stopping", "stopping");
  else if (!status.ready) state("unready", "not ready");
  else state("ready", "ready");
  if (status.stopping) notices(["The server is stopping: running answers finish, new ones are refused."], "warn");
  else if (!status.ready) notices(status.reasons.map((one) => `The server answers no request: ${one}.`));
  else if (late) notices([`The counters are ${count(status.snapshot_age_seconds)} s old: the workers do not report.`], "warn");
  else notices([]);
  say("updated", `as of ${clock(status.seconds)}`);
}

function showTiles(status) {
  const { policy } = status, newest = points.at(-1);
  say("tile-level", level(policy.level));
  const limits = [policy.max_kld === null ? "" : `for KLD ≤ ${loss(policy.max_kld)}`, policy.phases === "all" ? "" : "answers only", policy.max_level < 1 ? `at most ${level(policy.max_level)}` : ""];
  say("tile-level-more", limits.filter(Boolean).join(", ") || (policy.level === 0 ? "exact" : `version ${policy.version}`));
  const routed = status.layers.reduce((sum, one) => sum + one.routed, 0);
  const skipped = status.layers.reduce((sum, one) => sum + one.skipped, 0);
  say("tile-skipped", percent(seen()));
  say("tile-skipped-more", routed ? `last minute; ${percent(skipped / routed)} in all` : "no token yet");
  say("tile-decode", newest ? rate(newest.decode_per_second) : "–");
  say("tile-decode-more", "tokens a second");
  say("tile-prefill", newest ? rate(newest.prefill_per_second) : "–");
  say("tile-prefill-more", "tokens a second");
  say("tile-requests", count(newest?.running));
  say("tile-requests-more", newest ? `running, ${count(newest.waiting)} waiting` : "");
  say("tile-kv", percent(newest?.kv_cache ?? null));
  say("tile-kv-more", "in use");
  say("tile-memory", bytes(newest ? newest.device_bytes ?? newest.resident_bytes : null));
  const weights = Object.values(status.memory.weights ?? {}).reduce((sum, one) => sum + one, 0);
  say("tile-memory-more", weights ? `weights ${bytes(weights)}` : "");
}

/** The share skipped in the last minute, or `null` where no token came. */
function seen() {
  const from = (points.at(-1)?.seconds ?? 0) - 60;
  const minute = points.filter((one) => one.seconds > from);
  const routed = minute.reduce((sum, one) => sum + one.routed, 0);
  return routed ? minute.reduce((sum, one) => sum + one.skipped, 0) / routed : null;
}

function show(status) {
  points = [...points, ...status.points].slice(-KEPT);
  showState(status);
  showTiles(status);
  if (status.points.length || !latest) showPictures(status);
  latest = status;
  showPolicy(status.policy);
  if (!levelSet && status.policy.level !== null) {
    levelSet = true;
    $("ask-level").max = status.policy.max_level;
    $("ask-level").value = status.policy.level || (status.policy.has_curve ? Math.min(0.5, status.policy.max_level) : status.policy.max_level);
    if (!status.policy.request_levels) say("ask-said", "This server takes no level in single requests, so the second answer cannot have one of its own.");
  }
  say("about", `leanmoe ${status.version}; counters are read every ${status.poll_seconds} s.`);
}

function showPictures(status) {
  showCurve(status.policy, seen());
  showSpeed(points);
  showHeat(status, points);
  showMemory(status.memory);
}

async function nameModel() {
  let models;
  try {
    models = await server.models();
  } catch (error) {
    if (error.status === 401 || error.status === 403) say("ask-said", "Questions need a user's key: give one under Keys.");
    return;
  }
  const name = models.data?.[0]?.id;
  if (!name) return;
  chatWith(name);
  const short = name.replace(/\/+$/, "").split("/").at(-1);
  say("model", short);
  $("model").title = name;
  document.title = `${short} · LeanMoE console`;
}

function failed(error) {
  failures += 1;
  if (error.status === 401 || error.status === 403) {
    state("locked", "key needed");
    const given = keys.user || keys.admin;
    notices([given ? `The server refuses this key: ${error.message}.` : "This server asks for a key: give yours under Keys."], "warn");
    openKeys(true);
    return;
  }
  awaySince ??= Date.now() / 1000;
  state("away", error.status ? "in trouble" : "no answer");
  const what = error.status ? `The server answers ${error.status}: ${error.message}.` : `The server does not answer since ${clock(awaySince)}.`;
  notices([`${what} Figures below are the last known; trying again by itself.`]);
}

async function tick() {
  clearTimeout(timer);
  if (asking) return;
  asking = true;
  try {
    // After a silence another process may stand there, whose points are all new.
    if (failures) points = [];
    const status = await server.status(points.at(-1)?.number ?? 0);
    failures = 0;
    awaySince = null;
    show(status);
    if (status.ready && $("model").title === "") await nameModel();
  } catch (error) {
    if (error.status === undefined) throw error;
    failed(error);
  } finally {
    asking = false;
    const wait = failures ? Math.min(LONGEST_MS, EVERY_MS * 2 ** (failures - 1)) : EVERY_MS;
    if (!document.hidden) timer = setTimeout(tick, wait);
  }
}

function openKeys(open) {
  $("keys").hidden = !open;
  $("keys-button").setAttribute("aria-expanded", String(open));
}

function useKeys(user, admin) {
  keys.use(user, admin);
  failures = 0;
  forgetTrail();
  tick();
}

function followKeys() {
  keys.load();
  $("user-key").value = keys.user;
  $("admin-key").value = keys.admin;
  $("keys-button").addEventListener("click", () => openKeys($("keys").hidden));
  $("keys-form").addEventListener("submit", (event) => {
    event.preventDefault();
    openKeys(false);
    useKeys($("user-key").value, $("admin-key").value);
  });
  $("keys-forget").addEventListener("click", () => {
    $("keys-form").reset();
    useKeys("", "");
  });
}

followKeys();
followHeat();
followChat();
followPolicy(tick);
addEventListener("resize", () => latest && showPictures(latest));
document.addEventListener("visibilitychange", () => document.hidden || tick());
tick();
