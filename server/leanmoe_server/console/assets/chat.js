// One question, two answers: exact and skipping, through the ordinary API.

import { $, count, level, make, percent, rate, say } from "./words.js";
import { Refused, server } from "./server.js";

const SIDES = [
  { name: "exact", wish: () => "off", turns: [] },
  { name: "skipping", wish: () => ({ level: Number($("ask-level").value) }), turns: [] },
];
let model = null, running = null;

export function chatWith(name) {
  model = name;
}

function body(side, prompt, kind) {
  const common = { model, stream: true, stream_options: { include_usage: true }, temperature: 0, max_tokens: Number($("ask-tokens").value), expert_skipping: side.wish() };
  if (kind === "text") return { ...common, prompt };
  const turns = side.turns.flatMap(([asked, answered]) => [{ role: "user", content: asked }, { role: "assistant", content: answered }]);
  return { ...common, messages: [...turns, { role: "user", content: prompt }] };
}

function figures(run) {
  const parts = [];
  if (run.level !== null) parts.push(`level ${level(Number(run.level))}`);
  if (run.first === null) parts.push("waiting for the first token");
  else parts.push(`first token ${Math.round(run.first - run.started)} ms`);
  const tokens = run.usage?.completion_tokens ?? run.pieces;
  if (tokens > 1) parts.push(`${rate((1000 * (tokens - 1)) / Math.max(1, run.last - run.first))} tokens/s`);
  if (run.usage) parts.push(`${count(tokens)} tokens`);
  const stated = run.usage?.expert_skipping;
  if (stated?.routed > 0) parts.push(`${percent(stated.skipped / stated.routed)} skipped`);
  return parts.join(" · ");
}

function piece(event, kind) {
  const choice = event.choices?.[0];
  return (kind === "text" ? choice?.text : choice?.delta?.content ?? choice?.delta?.reasoning) ?? "";
}

async function run(side, prompt, kind, signal) {
  const talk = $(`${side.name}-talk`), answer = make("p", { class: "answer" });
  talk.append(make("p", { class: "asked" }, prompt), answer);
  const state = { started: performance.now(), first: null, last: null, pieces: 0, level: null, usage: null, text: "" };
  const tell = () => say(`${side.name}-figures`, figures(state));
  tell();
  const path = kind === "text" ? "v1/completions" : "v1/chat/completions";
  for await (const { headers, event } of server.stream(path, body(side, prompt, kind), signal)) {
    if (headers) state.level = headers.get("x-leanmoe-skip-level");
    if (event?.error) throw new Refused(0, event.error.message ?? "the server ended the answer");
    const text = event ? piece(event, kind) : "";
    if (text) {
      state.last = performance.now();
      state.first ??= state.last;
      state.pieces += 1;
      state.text += text;
      answer.textContent = state.text;
      if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80) talk.scrollTop = talk.scrollHeight;
    }
    state.usage = event?.usage ?? state.usage;
    tell();
  }
  if (!state.text) answer.textContent = "(an empty answer)";
  side.turns.push([prompt, state.text]);
  return { ...state, element: answer };
}

async function attempt(side, prompt, kind, signal) {
  try {
    return await run(side, prompt, kind, signal);
  } catch (error) {
    const stopped = error.name === "AbortError";
    const why = stopped ? "Stopped." : error instanceof Refused ? error.message : "The answer broke off: the connection was lost.";
    $(`${side.name}-talk`).append(make("p", { class: stopped ? "soft" : "failed" }, why));
    if ($(`${side.name}-figures`).textContent.includes("waiting")) say(`${side.name}-figures`, stopped ? "stopped" : "no answer");
    return null;
  }
}

/** `text` with the word that holds place `same` marked. */
function markedAt(text, same) {
  const from = Math.max(text.lastIndexOf(" ", same) + 1, text.lastIndexOf("\n", same) + 1);
  const word = /^\S*/.exec(text.slice(from))[0];
  return [text.slice(0, from), make("mark", {}, word), text.slice(from + word.length)];
}

/** Mark where the second answer leaves the first, and say it. */
function compare(exact, skipping) {
  const a = exact.text, b = skipping.text;
  if (a === b) return "Both answers are the same, letter for letter.";
  let same = 0;
  while (same < Math.min(a.length, b.length) && a[same] === b[same]) same += 1;
  for (const [run, text] of [[exact, a], [skipping, b]])
    run.element.replaceChildren(...markedAt(text, same));
  return same ? `The answers part after ${count(same)} of ${count(a.length)} characters; the place is marked.`
    : "The answers differ from the first word on.";
}

async function ask(event) {
  event.preventDefault();
  const prompt = $("prompt").value, kind = $("ask-kind").value;
  if (running || !prompt.trim()) return;
  if (model === null) {
    say("ask-said", "The server has not named its model yet; see above what it waits for.");
    return;
  }
  running = new AbortController();
  busy(true);
  say("ask-live", "Asked.");
  const { signal } = running, apart = $("ask-apart").checked;
  const answers = apart
    ? [await attempt(SIDES[0], prompt, kind, signal), signal.aborted ? null : await attempt(SIDES[1], prompt, kind, signal)]
    : await Promise.all(SIDES.map((side) => attempt(side, prompt, kind, signal)));
  running = null;
  busy(false);
  const said = answers.every(Boolean) ? compare(...answers) : "Not both answers came whole.";
  say("ask-said", said);
  say("ask-live", said);
}

function busy(is) {
  $("ask-send").disabled = is;
  $("ask-clear").disabled = is;
  $("ask-stop").hidden = !is;
}

function clear() {
  for (const side of SIDES) {
    side.turns = [];
    $(`${side.name}-talk`).replaceChildren();
    say(`${side.name}-figures`, "not asked yet");
  }
  $("prompt").focus();
}

export function followChat() {
  $("ask-form").addEventListener("submit", ask);
  $("ask-stop").addEventListener("click", () => running?.abort());
  $("ask-clear").addEventListener("click", clear);
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask-form").requestSubmit();
  });
}
