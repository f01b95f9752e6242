"use strict";
// Everything that comes from the API enters the page through `textContent`: names of teams and models are data.

const REFRESH_MS = 5000;
const ANSWER_MS = 20000;
const KEY = "hatchway-admin-key";
const MAX_ROWS = 500;
const GROUPS = ["team", "project", "model", "endpoint", "day", "domain", "provider", "key", "cost_center", "status", "policy"];
// Sections that a role has no use for, or may not see.
const WHERE_HIDDEN = {
  "endpoints-section": ["developer"],
  "months-section": ["developer", "operator"],
  "catalogues-section": ["developer", "operator"],
  "escapes-section": ["developer", "finance"],
  "versions-section": ["developer", "finance"],
  "audit-section": ["developer", "operator", "finance"],
  "new-key": ["developer", "operator", "finance"],
};
const INPUT = ["input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "input_audio_tokens", "input_image_tokens"];
const OUTPUT = ["output_tokens", "reasoning_tokens", "output_audio_tokens"];

const state = { key: "", csrf: "", role: "", month: "", paused: false, timer: 0, turn: 0, by: ["team"], keys: [], shown: new Map(), revoking: "", version: "" };
const $ = (id) => document.getElementById(id);

// Elements

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// columns: [{name, cell(row) -> text or element, total(totals), number or fixed: not to be broken}]
function table(columns, rows, totals) {
  const kind = (column) => (column.number ? "number" : column.fixed ? "fixed" : null);
  const cell = (column, content) => {
    const made = element("td", { "data-label": column.name, class: kind(column) });
    if (content !== null && content !== undefined && content !== "") made.append(content);
    return made;
  };
  const heads = columns.map((column) => element("th", { scope: "col", class: kind(column) }, column.name));
  const body = rows.map((row) => element("tr", {}, ...columns.map((column) => cell(column, column.cell(row)))));
  const foot = totals && element("tfoot", {}, element("tr", {}, ...columns.map((column) => cell(column, column.total?.(totals)))));
  return element("div", { class: "scroll" },
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body), foot));
}

const empty = (text) => element("p", { class: "empty" }, text);
const problem = (error) => element("p", { class: "problem" }, error.message);

// Draws only what changed, so that the reader's place and selection stay; focus survives by its name.
function draw(id, data, make) {
  const print = JSON.stringify(data);
  if (state.shown.get(id) === print) return;
  state.shown.set(id, print);
  const focused = document.activeElement?.closest?.(`#${id}`) ? document.activeElement.dataset.focus : undefined;
  $(id).replaceChildren(...[make()].flat());
  if (focused) [...$(id).querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focused)?.focus();
}

// Figures

const whole = new Intl.NumberFormat("en-US");
const dollars = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumFractionDigits: 6 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const calendar = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const count = (number) => whole.format(number);
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const sum = (row, names) => names.reduce((total, name) => total + row[name], 0);

function money(row) {
  if (row.cost_usd === null) return element("span", { class: "note" }, "unknown");
  const known = Number(row.cost_usd);
  const text = known > 0 && known < 0.000001 ? "<$0.000001" : dollars.format(row.cost_usd);
  // `+?`, as in the command line's table: attempts without a known price are missing from it.
  const title = row.unpriced ? `${row.cost_usd} USD, without ${plural(row.unpriced, "unpriced attempt")}` : `${row.cost_usd} USD`;
  return element("span", { title }, row.unpriced ? `${text}\u00a0+?` : text);
}

function milliseconds(value) {
  if (value === null) return "";
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10000 ? 2 : 1)} s`;
}

function moment(text) {
  if (text === null) return "";
  const at = new Date(text);
  const today = at.toDateString() === new Date().toDateString();
  return element("time", { datetime: text, title: text }, (today ? clock : calendar).format(at));
}

const badge = (mood, text, why) =>
  element("span", {}, element("span", { class: `state ${mood}` }, text), why ? element("span", { class: "why" }, why) : null);

// The API

class Refused extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function call(method, path, body) {
  let response;
  try {
    response = await fetch(`/admin/api${path}`, {
      method,
      headers: {
        ...(state.key ? { authorization: `Bearer ${state.key}` } : {}),
        ...(state.csrf && method !== "GET" ? { "x-hatchway-csrf": state.csrf } : {}),
        ...(body ? { "content-type": "application/json" } : {}),
      },
      body: body && JSON.stringify(body),
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    if (response.ok) return response.status === 204 ? null : await response.json();
  } catch {
    throw new Refused("The gateway does not answer. Is it running, and is this network connected?", 0, "away");
  }
  const error = (await response.json().catch(() => null))?.error;
  throw new Refused(error?.message ?? `The gateway answered with status ${response.status}.`, response.status, error?.code);
}

function explain(error) {
  if (error.status === 401) return "This admin key is unknown, expired or revoked.";
  if (error.status === 403) return `This is not for your role. ${error.message}`;
  if (error.code === "control_plane") return "The control plane is away. Applications are still served; this page tries again.";
  if (error.code === "store_unavailable") return `PostgreSQL cannot be asked. Applications are still served; usage is kept and recorded later.\n${error.message}`;
  return error.message;
}

// Signing in and out

async function signIn(key) {
  state.key = key.trim();
  if (!/^[!-~]+$/.test(state.key)) throw new Refused("A key has no spaces and only plain characters.", 400, "invalid");
  await open();
  sessionStorage.setItem(KEY, state.key);
}

// With the key, or with the cookie of a signed-in browser.
async function open() {
  const self = await call("GET", "/self");
  state.csrf = self.csrf ?? "";
  state.role = self.role;
  $("role").textContent = self.team ? `${self.id} (${self.role} of ${self.team})` : `${self.id} (${self.role})`;
  $("sign-in").hidden = true;
  $("console").hidden = false;
  $("admin-key").value = "";
  for (const [role, id] of Object.entries(WHERE_HIDDEN).flatMap(([id, roles]) => roles.map((role) => [role, id]))) {
    if (role === state.role) $(id).hidden = true;
  }
  await refresh();
}

async function offerLogin() {
  try {
    const offer = await (await fetch("/admin/login.json", { cache: "no-store" })).json();
    $("sign-in-elsewhere").hidden = !offer.available;
  } catch {
    $("sign-in-elsewhere").hidden = true;
  }
}

function signOut(reason) {
  sessionStorage.removeItem(KEY);
  if (state.csrf) fetch("/admin/logout", { method: "POST" }).catch(() => null);
  state.csrf = state.role = "";
  clearTimeout(state.timer);
  state.turn += 1;
  state.key = "";
  state.keys = [];
  state.shown.clear();
  for (const id of ["tiles", "usage", "endpoints", "routes", "requests", "keys", "attempts", "decision", "learned", "versions", "changes", "escapes", "escape", "budgets", "months", "catalogues", "unpriced", "audit"]) $(id).replaceChildren();
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
  $("console").hidden = true;
  $("sign-in").hidden = false;
  for (const id of Object.keys(WHERE_HIDDEN)) $(id).hidden = false;
  offerLogin();
  tell("sign-in-problem", reason);
  $("admin-key").focus();
}

function tell(id, text) {
  $(id).textContent = text ?? "";
  $(id).hidden = !text;
}

// Refreshing

async function refresh() {
  clearTimeout(state.timer);
  const turn = ++state.turn;
  const sections = [
    [() => call("GET", "/status"), showStatus, "endpoints", "endpoints-section"],
    [() => call("GET", `/usage?${usageQuery()}`), showUsage, "usage"],
    [() => call("GET", "/budgets"), showBudgets, "budgets", "budgets-section"],
    [() => call("GET", `/requests?limit=${$("limit").value}`), showRequests, "requests"],
    [() => call("GET", "/keys"), showKeys, "keys"],
    [() => call("GET", "/learned"), showLearned, "learned", "versions-section"],
    [() => call("GET", "/policy/versions?limit=20"), showVersions, "versions", "versions-section"],
    [() => call("GET", "/escapes?limit=20"), showEscapes, "escapes", "escapes-section"],
    [() => call("GET", "/months"), showMonths, "months", "months-section"],
    [() => call("GET", "/prices/catalogues?limit=20"), showCatalogues, "catalogues", "catalogues-section"],
    [() => call("GET", "/prices/unpriced"), showUnpriced, "unpriced", "catalogues-section"],
    [() => call("GET", "/audit?limit=20"), showAudit, "audit", "audit-section"],
  ]
    .filter(([, , , within]) => !within || !$(within).hidden)
    .map(([ask, show, id]) => [ask(), show, id]);
  const answers = await Promise.allSettled(sections.map(([answer]) => answer));
  if (turn !== state.turn) return;
  const failures = answers.filter((answer) => answer.status === "rejected").map((answer) => answer.reason);
  const denied = failures.find((error) => error.status === 401);
  if (denied) return signOut(explain(denied));
  const isAway = (error) => error.status === 0 || error.status >= 500;
  const away = failures.find(isAway);
  tell("away", away && `${explain(away)}\nWhat stands below was true when it last answered.`);
  answers.forEach((answer, index) => {
    const [, show, id] = sections[index];
    if (answer.status === "fulfilled") show(answer.value);
    // While the gateway is away the last figures stay, under the banner that says so.
    else if (!isAway(answer.reason)) draw(id, answer.reason.message, () => problem(answer.reason));
  });
  if (!away) $("updated").textContent = `updated ${clock.format(new Date())}`;
  schedule();
}

function schedule() {
  clearTimeout(state.timer);
  if (!state.paused && state.key) state.timer = setTimeout(() => (document.hidden ? schedule() : refresh()), REFRESH_MS);
}

function usageQuery() {
  const query = new URLSearchParams({ by: state.by.join(",") });
  const period = $("period").value;
  const [from, to] = period === "custom" ? [$("from").value, $("to").value] : [period, ""];
  if (from) query.set("from", from);
  if (to) query.set("to", to);
  return query;
}

// Sections

function showStatus(status) {
  $("version").textContent = status.version;
  $("rejected-version").textContent = status.version;
  $("rejected-reason").textContent = status.rejected ?? "";
  $("rejected").hidden = !status.rejected;
  draw("endpoints", status.endpoints, () =>
    status.endpoints.length === 0
      ? empty("No endpoints. Add one to the configuration.")
      : table([
          { name: "endpoint", fixed: true, cell: (row) => element("strong", {}, row.id) },
          { name: "provider", cell: (row) => (row.provider === row.adapter ? row.provider : `${row.provider} (${row.adapter})`) },
          { name: "upstream model", cell: (row) => (row.upstream_model === "*" ? "as asked" : row.upstream_model) },
          { name: "region", cell: (row) => row.region },
          { name: "health", cell: health },
          { name: "TTFT", number: true, cell: (row) => (row.health.ttft === null ? "" : milliseconds(row.health.ttft * 1000)) },
          { name: "in flight", number: true, cell: (row) => count(row.health.in_flight) },
        ], status.endpoints));
  const policies = new Map(status.policies.map((policy) => [policy.name, policy]));
  draw("routes", [status.routes, status.policies], () =>
    status.routes.length === 0
      ? empty("No routes: nothing can be asked for.")
      : table([
          { name: "route", cell: (row) => row.name },
          { name: "policy", cell: (row) => row.policy },
          { name: "select", cell: (row) => policies.get(row.policy)?.select },
          { name: "endpoints", cell: (row) => policies.get(row.policy)?.endpoints.join(", ") },
        ], status.routes));
}

function health(endpoint) {
  const { ttft, failures, ejected, ejected_for: left } = endpoint.health;
  if (endpoint.missing) return badge("idle", "not set up", endpoint.missing);
  if (ejected) return badge("bad", "ejected", `${plural(failures, "failure")} in a row; tried again in ${Math.ceil(left)} s`);
  if (failures > 0) return badge("warn", "failing", `${plural(failures, "failure")} in a row`);
  return ttft === null ? badge("idle", "not used yet") : badge("good", "healthy");
}

function showUsage(report) {
  const total = report.total;
  const tile = (value, name, mood = "") => element("div", { class: `tile ${mood}` }, element("b", {}, value), element("span", {}, name));
  draw("tiles", total, () => [
    tile(money(total), "total cost"),
    tile(count(total.requests), "requests"),
    tile(count(sum(total, INPUT)), "input tokens"),
    tile(count(sum(total, OUTPUT)), "output tokens"),
    tile(count(total.errors), "failed attempts", total.errors ? "bad" : ""),
    tile(count(total.unpriced), "unpriced attempts", total.unpriced ? "warn" : ""),
  ]);
  const names = report.by.map((name, index) => ({
    name: name.replace("_", " "),
    cell: (row) => row[name] ?? element("span", { class: "note" }, "none"),
    total: index === 0 ? () => "total" : undefined,
  }));
  const figure = (name, value) => ({ name, number: true, cell: value, total: value });
  const columns = [
    ...names,
    figure("requests", (row) => count(row.requests)),
    figure("attempts", (row) => count(row.attempts)),
    figure("failed", (row) => count(row.errors)),
    figure("input tokens", (row) => count(sum(row, INPUT))),
    figure("output tokens", (row) => count(sum(row, OUTPUT))),
    figure("unpriced", (row) => count(row.unpriced)),
    figure("cost", money),
  ];
  draw("usage", [report.by, report.rows, total], () => {
    if (report.rows.length === 0) return empty("Nothing was used in this period.");
    const shown = table(columns, report.rows.slice(0, MAX_ROWS), total);
    const rest = report.rows.length - MAX_ROWS;
    return rest > 0 ? [shown, empty(`${plural(rest, "group")} more: \`hatchway report\` has them all.`)] : shown;
  });
}

const MOODS = { ok: "good", error: "bad", timeout: "bad", shed: "warn", cancelled: "idle" };

function showRequests({ attempts }) {
  draw("requests", attempts, () =>
    attempts.length === 0
      ? empty("No requests yet. Point an application at this gateway: its base URL here, and a key from below.")
      : table([
          { name: "started", fixed: true, cell: (row) => moment(row.started_at) },
          { name: "request", fixed: true, cell: (row) => requestButton(row) },
          { name: "team", cell: (row) => row.team },
          { name: "model", cell: (row) => row.model },
          { name: "endpoint", fixed: true, cell: (row) => row.endpoint },
          { name: "status", cell: (row) => badge(MOODS[row.status] ?? "idle", row.status, row.error_type) },
          { name: "TTFT", number: true, cell: (row) => milliseconds(row.ttft_ms) },
          { name: "duration", number: true, cell: (row) => milliseconds(row.duration_ms) },
          { name: "tokens in / out", number: true, cell: (row) => `${count(sum(row, INPUT))} / ${count(sum(row, OUTPUT))}` },
          { name: "cost", number: true, cell: money },
        ], attempts));
}

function requestButton(row) {
  const short = row.request_id.length > 12 ? `…${row.request_id.slice(-10)}` : row.request_id;
  const button = element("button", { type: "button", class: "link", title: row.request_id, "data-focus": row.event_id,
    click: () => showRequest(row.request_id) }, element("code", {}, short));
  return row.attempt > 1 ? element("span", {}, button, element("span", { class: "why" }, `attempt ${row.attempt}`)) : button;
}

async function showRequest(id) {
  $("request-id").textContent = id;
  $("attempts").replaceChildren(empty("Loading…"));
  $("request-dialog").showModal();
  showDecision(id);
  try {
    const { attempts } = await call("GET", `/requests/${encodeURIComponent(id)}`);
    $("attempts").replaceChildren(...attempts.map(attemptCard));
  } catch (error) {
    $("attempts").replaceChildren(problem({ message: explain(error) }));
  }
}

function attemptCard(row) {
  const lines = Object.entries(row)
    .filter(([name, value]) => name !== "request_id" && value !== null && !(value === 0 && name.endsWith("_tokens")))
    .map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value, null, 2) : String(value)]);
  return element("div", { class: "attempt" },
    element("h3", {}, `Attempt ${row.attempt} at ${row.endpoint}: `, badge(MOODS[row.status] ?? "idle", row.status)),
    element("dl", {}, ...lines.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
}

function showKeys({ keys }) {
  state.keys = keys;
  const shown = keys.filter((key) => key.state === "active" || $("show-ended").checked);
  draw("keys", shown, () =>
    shown.length === 0
      ? empty("No active keys. Create one, and give its secret to an application.")
      : table([
          { name: "key", fixed: true, cell: (row) => element("code", {}, row.key_id) },
          { name: "secret", fixed: true, cell: (row) => (row.prefix ? element("code", {}, `${row.prefix}…`) : "") },
          { name: "team", cell: (row) => (row.project ? `${row.team} / ${row.project}` : row.team) },
          { name: "name", cell: (row) => row.name },
          { name: "role", fixed: true, cell: (row) => row.role },
          { name: "models", cell: (row) => row.models.join(", ") || "all" },
          { name: "state", fixed: true, cell: keyState },
          { name: "created", fixed: true, cell: (row) => moment(row.created_at) },
          { name: "", fixed: true, cell: (row) => (row.state === "active" ? revokeButton(row) : "") },
        ], shown));
}

function keyState(key) {
  if (key.state === "revoked") return badge("bad", "revoked");
  if (key.state === "expired") return badge("warn", "expired");
  return badge("good", "active", key.expires_at ? `until ${calendar.format(new Date(key.expires_at))}` : null);
}

function revokeButton(key) {
  return element("button", { type: "button", class: "small", "data-focus": key.key_id, "aria-label": `Revoke ${key.key_id}`,
    click: () => {
      state.revoking = key.key_id;
      $("revoke-text").textContent = `${key.key_id} of team ${key.team}${key.name ? ` (${key.name})` : ""}`;
      tell("revoke-problem", "");
      $("revoke-dialog").showModal();
    } }, "Revoke");
}

// Changing keys

// Runs work once however often the button is pressed, and shows why it failed.
async function attempt(button, problemId, work) {
  tell(problemId, "");
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell(problemId, explain(error));
  } finally {
    button.disabled = false;
  }
}

async function createKey(form) {
  const given = Object.fromEntries(new FormData(form));
  const made = await call("POST", "/keys", {
    team: given.team.trim(),
    project: given.project.trim() || null,
    name: given.name.trim() || null,
    models: given.models.split(",").map((glob) => glob.trim()).filter(Boolean),
    role: given.role,
    expires_at: given.expires_at ? new Date(given.expires_at).toISOString() : null,
    budget: given.budget.trim() ? { usd: given.budget.trim(), per: given.per, hard: true } : null,
    rpm: given.rpm ? Number(given.rpm) : null,
    tpm: given.tpm ? Number(given.tpm) : null,
  });
  form.reset();
  $("key-dialog").close();
  $("secret").value = made.secret;
  $("copied").textContent = "";
  $("secret-dialog").showModal();
  $("secret").select();
  refresh();
}

async function copySecret() {
  $("secret").select();
  let done = false;
  if (navigator.clipboard) done = await navigator.clipboard.writeText($("secret").value).then(() => true, () => false);
  if (!done) done = document.execCommand("copy"); // pages without TLS have no clipboard of the newer kind
  $("copied").textContent = done ? "Copied." : "Copying is not allowed here: the secret is selected, press Ctrl+C.";
}

// Wiring

function start() {
  for (const name of GROUPS) {
    const chip = element("button", { type: "button", "aria-pressed": String(state.by.includes(name)) }, name.replace("_", " "));
    chip.addEventListener("click", () => {
      const chosen = state.by.includes(name) ? state.by.filter((one) => one !== name) : [...state.by, name];
      if (chosen.length === 0) return;
      state.by = chosen;
      chip.setAttribute("aria-pressed", String(chosen.includes(name)));
      refresh();
    });
    $("groups").append(chip);
  }
  $("period").addEventListener("change", () => {
    $("custom-period").hidden = $("period").value !== "custom";
    refresh();
  });
  for (const id of ["from", "to", "limit", "show-ended"]) $(id).addEventListener("change", () => refresh());
  $("pause").addEventListener("click", () => {
    state.paused = !state.paused;
    $("pause").textContent = state.paused ? "Resume" : "Pause";
    if (state.paused) clearTimeout(state.timer);
    else refresh();
  });
  $("sign-out").addEventListener("click", () => signOut());
  $("sign-in-form").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(event.submitter, "sign-in-problem", () => signIn($("admin-key").value));
  });
  $("new-key").addEventListener("click", () => {
    tell("key-problem", "");
    $("key-dialog").showModal();
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(event.submitter, "key-problem", () => createKey(event.target));
  });
  $("copy").addEventListener("click", copySecret);
  $("secret-dialog").addEventListener("close", () => ($("secret").value = ""));
  $("revoke").addEventListener("click", () =>
    attempt($("revoke"), "revoke-problem", async () => {
      await call("DELETE", `/keys/${encodeURIComponent(state.revoking)}`);
      $("revoke-dialog").close();
      await refresh();
    }));
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  wireRouting();
  wireFinance();
  const kept = sessionStorage.getItem(KEY);
  (kept ? signIn(kept) : open()).catch((error) => {
    if (!kept) return signOut();
    if (error.status === 401 || error.status === 403) return signOut(explain(error));
    // The gateway is away, not the key wrong: the console opens under its banner and tries again.
    $("console").hidden = false;
    refresh();
  });
}
