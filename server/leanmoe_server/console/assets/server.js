// What the page asks of the server. Addresses are relative, for servers behind a prefix.

const PLACE = "leanmoe-console-keys";
const SILENT_MS = 15000;

/** The two keys, in this tab alone: gone when it is closed. */
export const keys = {
  ...{ user: "", admin: "" },
  load() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(PLACE) ?? "{}");
      this.user = String(kept.user ?? "");
      this.admin = String(kept.admin ?? "");
    } catch { /* a browser that keeps nothing: typed keys serve until a reload */ }
  },
  use(user, admin) {
    this.user = user.trim();
    this.admin = admin.trim();
    try {
      if (this.user || this.admin) sessionStorage.setItem(PLACE, JSON.stringify({ user: this.user, admin: this.admin }));
      else sessionStorage.removeItem(PLACE);
    } catch { /* as above */ }
  },
};

/** An answer that is not a success: `status` 0 where none came at all. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function authorization(asAdmin) {
  const key = asAdmin ? keys.admin || keys.user : keys.user || keys.admin;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function said(response) {
  const text = await response.text().catch(() => "");
  try {
    const content = JSON.parse(text);
    return content.error?.message ?? content.message ?? content.detail ?? text;
  } catch {
    return text;
  }
}

async function send(path, { method = "GET", body, asAdmin = false, signal } = {}) {
  const headers = authorization(asAdmin);
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      ...{ method, headers, signal, credentials: "omit", cache: "no-store", redirect: "error" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server does not answer");
  }
  if (!response.ok) {
    const why = String(await said(response)).slice(0, 600);
    throw new Refused(response.status, why || `the server answered ${response.status}`);
  }
  return response;
}

const timed = () => AbortSignal.timeout(SILENT_MS);

async function read(path, options = {}) {
  try {
    return await (await send(path, { signal: timed(), ...options })).json();
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Refused(0, "the server does not answer");
  }
}

export const server = {
  status: (after) => read(`v1/expert_skipping/status?after=${after}`),
  history: () => read("v1/expert_skipping/history?limit=50", { asAdmin: true }),
  models: () => read("v1/models"),
  change: async (body) => (await send("v1/expert_skipping", { method: "PUT", body, asAdmin: true })).json(),
  rollBack: async (body) =>
    (await send("v1/expert_skipping/rollback", { method: "POST", body, asAdmin: true })).json(),

  /** Events of a streamed answer as they come, and its headers before them. */
  async *stream(path, body, signal) {
    const response = await send(path, { method: "POST", body, signal });
    yield { headers: response.headers };
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const text = line.startsWith("data:") ? line.slice(5).trim() : "";
        if (text && text !== "[DONE]") yield { event: JSON.parse(text) };
      }
    }
  },
};
