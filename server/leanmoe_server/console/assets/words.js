// Numbers and elements as the page writes them. Text is set as text: nothing here takes markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** Set an element's text, if it is another: screen readers hear changes. */
export function say(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((one) => one ?? ""));
  return element;
}

export const make = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);
export const draw = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const percent = (share, digits = 1) => (known(share) ? `${(100 * share).toFixed(digits)}\u00a0%` : "–");
export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en") : "–");
export const level = (value) => (known(value) ? String(Number(value.toFixed(3))) : "–");
export const loss = (value) => (known(value) ? String(Number(value.toPrecision(3))) : "–");
export const rate = (value) =>
  known(value) ? (value >= 100 ? count(value) : value.toFixed(1)) : "–";

export function bytes(size) {
  if (!known(size)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size.toFixed(unit && size < 100 ? 1 : 0)}\u00a0${units[unit]}`;
}

export const clock = (seconds) =>
  new Date(1000 * seconds).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** Put `make`d rows into a table's body. */
export function rows(id, all) {
  $(id).tBodies[0].replaceChildren(...all);
}

export function row(...cells) {
  return make("tr", {}, ...cells.map((one) => (one instanceof Node ? make("td", {}, one) : make("td", {}, String(one)))));
}
