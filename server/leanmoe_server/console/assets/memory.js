// Who holds how much memory.

import { $, bytes, make, say } from "./words.js";

const bar = (share, second) => {
  const filled = make("i", second ? { class: "second" } : {});
  filled.style.width = `${Math.max(0.5, 100 * share)}%`;
  return make("span", {}, filled);
};

export function showMemory(memory) {
  const resident = Object.entries(memory.resident ?? {}).map(([name, size]) => [`process ${name}`, size, false]);
  const device = Object.entries(memory.device ?? {}).map(([name, size]) => [`device of ${name}`, size, true]);
  const weights = Object.entries(memory.weights ?? {}).map(([name, size]) => [`of it weights, ${name}`, size, true]);
  const all = [...resident, ...device, ...weights];
  if (!all.length) {
    say("memory-said", "Not read yet.");
    return;
  }
  const most = Math.max(...all.map((one) => one[1]));
  $("memory").replaceChildren(make("div", { class: "bars" },
    ...all.flatMap(([name, size, second]) => [make("span", {}, name), bar(size / most, second), make("b", {}, bytes(size))])));
  say("memory-said", device.length ? "Resident memory of the server's processes, memory of the devices, and the model's weights."
    : "Resident memory of the server's processes, and the model's weights. There is no device memory to report.");
}
