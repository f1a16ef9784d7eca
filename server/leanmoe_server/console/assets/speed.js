// Tokens per second over the last minutes.

import { $, clock, draw, make, rate, say } from "./words.js";

const HEIGHT = 150, LEFT = 38, RIGHT = 8, TOP = 10, BOTTOM = 22;

/** A round number at or above `value`, for the end of an axis. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((one) => one * step).find((one) => one >= value);
}

function line(points, value, x, y, kind) {
  const places = points.map((one) => `${x(one).toFixed(1)},${y(value(one)).toFixed(1)}`);
  return draw("polyline", { class: kind, points: places.join(" ") });
}

export function showSpeed(points) {
  const wide = $("speed").clientWidth || 420;
  if (points.length < 2) {
    say("speed-said", "The first readings are on their way.");
    return;
  }
  const first = points[0].seconds, last = points.at(-1).seconds;
  const most = roundUp(Math.max(...points.flatMap((one) => [one.decode_per_second, one.prefill_per_second])));
  const x = (one) => LEFT + ((one.seconds - first) / (last - first || 1)) * (wide - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP);
  const lines = [0, most / 2, most].flatMap((value) => [
    draw("line", { class: value ? "axis" : "base", x1: LEFT, x2: wide - RIGHT, y1: y(value), y2: y(value) }),
    draw("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, rate(value).replace(/\.0$/, "")),
  ]);
  const generated = points.reduce((sum, one) => sum + one.decode_per_second, 0) / points.length;
  const picture = draw(
    "svg",
    { viewBox: `0 0 ${wide} ${HEIGHT}`, role: "img", "aria-label": `Tokens per second from ${clock(first)} to ${clock(last)}: ${rate(generated)} generated on average, ${rate(points.at(-1).decode_per_second)} now` },
    ...lines,
    line(points, (one) => one.prefill_per_second, x, y, "line-second"),
    line(points, (one) => one.decode_per_second, x, y, "line-main"),
    draw("text", { x: LEFT, y: HEIGHT - 6 }, clock(first)),
    draw("text", { x: wide - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, clock(last)),
  );
  const key = make("div", { class: "key" }, make("span", {}, "generated"), make("span", { class: "second" }, "prompt tokens read"));
  $("speed").replaceChildren(picture, key);
  say("speed-said", `Average over the time shown: ${rate(generated)} generated a second.`);
}
