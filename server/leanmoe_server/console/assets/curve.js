// The measured quality curve: skip rate against KLD, the level in force, what the traffic skips.

import { $, draw, level, loss, percent, say } from "./words.js";
import { roundUp } from "./speed.js";

const HEIGHT = 200, LEFT = 46, RIGHT = 14, TOP = 16, BOTTOM = 34;

function sentence(policy, seen) {
  const now = seen === null ? "No token went through in the last minute." : `The last minute skipped ${percent(seen)}.`;
  if (policy.level === null) return "No level is in force yet.";
  if (policy.union_budget !== null)
    return `A budget of ${policy.union_budget} experts a step is in force, and no curve knows what it costs. ${now}`;
  if (policy.level === 0) return `Level 0 is exact and costs nothing. ${now}`;
  const bound = policy.promise;
  return `Level ${level(policy.level)} was measured to cost at most ${loss(bound.kld_upper)} nats a token (95 % bound), ` +
    `to name the same likeliest token ${percent(bound.top1_agreement)} of the time and to skip up to ${percent(bound.skip_rate)}. ${now}`;
}

function dots(points, x, y, at, wide) {
  return points.flatMap((point) => {
    const now = point.level === at;
    return [
      draw("circle", { class: now ? "dot now" : "dot", cx: x(point.skip_rate), cy: y(point.kld), r: now ? 6 : 3.5 },
        draw("title", {}, `level ${level(point.level)}: ${percent(point.skip_rate)} skipped, KLD ${loss(point.kld)} (at most ${loss(point.kld_upper)}), top-1 agreement ${percent(point.top1_agreement)}`)),
      now ? draw("text", { class: "strong", x: x(point.skip_rate) + (x(point.skip_rate) > wide - 90 ? -10 : 10), y: y(point.kld) - 9, "text-anchor": x(point.skip_rate) > wide - 90 ? "end" : "start" }, `level ${level(point.level)}`) : "",
    ];
  });
}

export function showCurve(policy, seen) {
  const wide = $("curve").clientWidth || 420;
  if (!policy.curve) {
    $("curve").replaceChildren();
    say("curve-said", policy.level === null
      ? "No level is in force yet."
      : `This model has no quality curve, so only levels 0 and 1 can be asked for, and nothing says what they cost. “leanmoe curve MODEL” measures one.${seen === null ? "" : ` The last minute skipped ${percent(seen)}.`}`);
    return;
  }
  const points = policy.curve;
  const widest = roundUp(Math.max(...points.map((one) => one.skip_rate), seen ?? 0));
  const highest = roundUp(Math.max(...points.map((one) => one.kld_upper)));
  const x = (share) => LEFT + (share / widest) * (wide - LEFT - RIGHT);
  const y = (kld) => HEIGHT - BOTTOM - (kld / highest) * (HEIGHT - BOTTOM - TOP);
  const at = policy.level === null ? null : points.find((one) => one.level >= policy.level)?.level;
  const path = (value) => points.map((one) => `${x(one.skip_rate).toFixed(1)},${y(value(one)).toFixed(1)}`);
  const area = [...path((one) => one.kld_upper), ...path((one) => one.kld).reverse()].join(" ");
  const lines = [0, 0.5, 1].flatMap((part) => [
    draw("line", { class: part ? "axis" : "base", x1: LEFT, x2: wide - RIGHT, y1: y(part * highest), y2: y(part * highest) }),
    draw("text", { x: LEFT - 5, y: y(part * highest) + 4, "text-anchor": "end" }, loss(part * highest)),
    draw("text", { x: x(part * widest), y: HEIGHT - 18, "text-anchor": part === 1 ? "end" : part ? "middle" : "start" }, percent(part * widest, widest < 0.1 ? 1 : 0)),
  ]);
  const right = seen !== null && x(seen) > wide - 110;
  const traffic = seen === null ? [] : [
    draw("line", { class: "seen", x1: x(seen), x2: x(seen), y1: TOP, y2: HEIGHT - BOTTOM }),
    draw("text", { class: "seen-text", x: x(seen) + (right ? -5 : 5), y: TOP + 14, "text-anchor": right ? "end" : "start" }, `traffic: ${percent(seen)}`),
  ];
  const said = sentence(policy, seen);
  $("curve").replaceChildren(
    draw("svg", { viewBox: `0 0 ${wide} ${HEIGHT}`, role: "img", "aria-label": `Quality curve with ${points.length} measured levels. ${said}` },
      ...lines,
      draw("polygon", { class: "band", points: area }),
      draw("polyline", { class: "line-main", points: path((one) => one.kld).join(" ") }),
      ...traffic,
      ...dots(points, x, y, at, wide),
      draw("text", { x: LEFT, y: 9 }, "KLD, nats a token; band: 95 % bound"),
      draw("text", { x: wide - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "assignments skipped"),
    ),
  );
  say("curve-said", said);
}
