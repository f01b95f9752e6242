// The page's second half: decisions, what was learned, versions of the configuration, escapes.

const text = (value) => (value === null || value === undefined ? "" : String(value));
const percent = (share) => (share === null || share === undefined ? "" : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`);
const seconds = (value) => (value === null || value === undefined ? "" : milliseconds(value * 1000));
const note = (value) => element("span", { class: "note" }, value);
const smallButton = (name, focus, label, click) =>
  element("button", { type: "button", class: "small", "data-focus": focus, "aria-label": label, click }, name);

// Why a request went where it went

function decisionCard(decision) {
  if (!decision) return empty("Its decision is not kept (any more).");
  const chosen = table([
    { name: "order", cell: (row) => String(decision.candidates.indexOf(row) + 1) },
    { name: "endpoint", fixed: true, cell: (row) => row.endpoint },
    { name: "expected cost", number: true, cell: (row) => (row.expected_cost_usd === null ? note("unknown") : `$${row.expected_cost_usd}`) },
    { name: "expected TTFT", number: true, cell: (row) => seconds(row.expected_ttft_s) },
    { name: "placed by", cell: (row) => (row.ejected ? badge("bad", "ejected") : row.placed_by ?? "selection") },
  ], decision.candidates);
  const dropped = decision.dropped.map((row) => element("li", {}, element("code", {}, row.endpoint), ` ${row.detail} (${row.reason})`));
  return element("div", { class: "attempt" },
    element("h3", {}, `Route ${decision.route}, policy ${decision.policy}, select ${decision.select}`),
    note(`domain ${decision.domain ?? "none"}, ${decision.complexity}, version ${decision.policy_version}`),
    decision.candidates.length ? chosen : null,
    dropped.length ? element("ul", {}, ...dropped) : null);
}

async function showDecision(id) {
  $("decision").replaceChildren();
  try {
    const { decision } = await call("GET", `/decisions/${encodeURIComponent(id)}`);
    $("decision").replaceChildren(decisionCard(decision));
  } catch (error) {
    $("decision").replaceChildren(problem({ message: explain(error) }));
  }
}

// What was learned

function showLearned(learned) {
  const rows = Object.entries(learned.endpoints).map(([name, one]) => ({ name, ...one }));
  const routes = Object.entries(learned.routes).map(([name, one]) => ({ name, ...one }));
  const forget = (name) => smallButton("Forget", name, `Forget what was learned of ${name}`, () => forgetLearned(name));
  draw("learned", learned, () => [
    rows.length === 0
      ? empty(learned.enabled ? "Nothing was learned yet." : "Learning is switched off.")
      : table([
          { name: "endpoint", fixed: true, cell: (row) => row.name },
          { name: "TTFT p50", number: true, cell: (row) => seconds(row.ttft_p50) },
          { name: "p95", number: true, cell: (row) => seconds(row.ttft_p95) },
          { name: "tokens/s", number: true, cell: (row) => (row.tokens_per_second === null ? "" : row.tokens_per_second.toFixed(1)) },
          { name: "cached", number: true, cell: (row) => percent(row.cache_share) },
          { name: "failed", number: true, cell: (row) => percent(row.failure_share) },
          { name: "samples", number: true, cell: (row) => count(Math.round(row.samples)) },
          { name: "", fixed: true, cell: (row) => forget(row.name) },
        ], rows),
    routes.length === 0 ? null : table([
      { name: "route", fixed: true, cell: (row) => row.name },
      { name: "output tokens", number: true, cell: (row) => (row.output_tokens === null ? "" : count(Math.round(row.output_tokens))) },
      { name: "input ratio", number: true, cell: (row) => (row.input_ratio === null ? "" : row.input_ratio.toFixed(2)) },
      { name: "", fixed: true, cell: (row) => forget(row.name) },
    ], routes),
    ...learned.frozen.map((one) => element("p", { class: "problem" }, `${one.number} of ${one.name} is frozen: ${one.reason}`)),
  ].filter(Boolean));
}

async function forgetLearned(name) {
  await call("POST", `/learned/reset?${new URLSearchParams({ name })}`);
  refresh();
}

// Versions of the configuration

function showVersions({ state: now, versions }) {
  draw("versions", [now, versions], () =>
    versions.length === 0
      ? empty("No version is recorded yet.")
      : table([
          { name: "version", fixed: true, cell: (row) => element("code", {}, row.version) },
          { name: "in force since", fixed: true, cell: (row) => moment(row.in_force[0]?.at ?? null) },
          { name: "author", cell: (row) => row.in_force[0]?.author },
          { name: "by", cell: (row) => row.in_force[0]?.source },
          { name: "note", cell: (row) => row.in_force[0]?.note },
          { name: "state", cell: (row) => (row.state.length ? badge(row.state.includes("in force") ? "good" : "idle", row.state.join(", ")) : "") },
          { name: "", fixed: true, cell: (row) => versionButtons(row, now) },
        ], versions));
}

function versionButtons(row, now) {
  if (row.state.includes("in force")) return "";
  return element("span", {},
    smallButton("Changes", `diff-${row.version}`, `What changed since ${row.version}`, () => showChanges(row.version, now.in_force)),
    row.is_complete
      ? smallButton("Roll back", `back-${row.version}`, `Roll back to ${row.version}`, () => confirmRollback(row.version, now.in_force))
      : note("not kept whole"));
}

async function showChanges(before, after) {
  state.version = "";
  $("version-title").textContent = `What changed from ${before} to ${after}`;
  $("version-note").hidden = $("roll-back").hidden = true;
  await drawChanges(before, after);
}

async function confirmRollback(version, inForce) {
  state.version = version;
  $("version-title").textContent = `Roll back to ${version}?`;
  $("version-note").hidden = $("roll-back").hidden = false;
  await drawChanges(inForce, version);
}

async function drawChanges(before, after) {
  tell("version-problem", "");
  $("changes").replaceChildren(empty("Loading…"));
  $("version-dialog").showModal();
  try {
    const { changes } = await call("GET", `/policy/diff?${new URLSearchParams({ from: before, to: after })}`);
    $("changes").replaceChildren(changes.length === 0 ? empty("Nothing.") : table([
      { name: "where", cell: (row) => element("code", {}, row.path) },
      { name: "what", cell: (row) => row.kind },
      { name: "before", cell: (row) => (row.before === null ? "" : JSON.stringify(row.before)) },
      { name: "after", cell: (row) => (row.after === null ? "" : JSON.stringify(row.after)) },
    ], changes));
  } catch (error) {
    $("changes").replaceChildren(problem({ message: explain(error) }));
  }
}

async function rollBack() {
  await call("POST", "/policy/rollback", { version: state.version, note: $("version-why").value.trim() || null });
  $("version-why").value = "";
  $("version-dialog").close();
  await refresh();
}

// Escapes

const ESCAPE_MOODS = { finished: "good", halted: "bad", stopped: "idle", held: "warn", paused: "warn" };

function showEscapes({ escapes }) {
  draw("escapes", escapes, () =>
    escapes.length === 0
      ? empty("No traffic was moved yet.")
      : table([
          { name: "escape", fixed: true, cell: (row) => escapeButton(row) },
          { name: "from", cell: (row) => row.from },
          { name: "to", cell: (row) => row.to },
          { name: "state", cell: (row) => badge(ESCAPE_MOODS[row.state] ?? "good", row.state, row.reason) },
          { name: "step", cell: (row) => `${row.step} of ${row.steps} (${row.kind})` },
          { name: "moved", number: true, cell: (row) => percent(row.share) },
          { name: "seen", number: true, cell: (row) => count(row.target.requests) },
          { name: "failed", number: true, cell: (row) => percent(row.target.error_rate) },
          { name: "started", fixed: true, cell: (row) => moment(row.started_at) },
          { name: "", fixed: true, cell: (row) => (row.ended_at && row.share === 0 ? "" : stopButton(row)) },
        ], escapes));
}

const stopButton = (row) => smallButton("Stop", `stop-${row.id}`, `Stop the escape ${row.id}: everything back to ${row.from}`, async () => {
  await call("DELETE", `/escapes/${encodeURIComponent(row.id)}`);
  refresh();
});

const escapeButton = (row) => element("button", { type: "button", class: "link", "data-focus": row.id, click: () => showEscape(row.id) },
  element("code", {}, row.id));

async function showEscape(id) {
  $("escape-title").textContent = `Escape ${id}`;
  await drawEscape(async () => {
    const found = await call("GET", `/escapes/${encodeURIComponent(id)}`);
    const steps = [...found.results, { kind: found.kind, share: found.share, target: found.target, source: found.source, verdict: found.verdict }];
    return [
      table([
        { name: "step", cell: (row) => `${row.kind} ${percent(row.share)}` },
        { name: "requests", number: true, cell: (row) => count(row.target.requests) },
        { name: "failed", number: true, cell: (row) => percent(row.target.error_rate) },
        { name: "TTFT", number: true, cell: (row) => milliseconds(row.target.ttft_p50_ms) },
        { name: "source's", number: true, cell: (row) => milliseconds(row.source.ttft_p50_ms) },
        { name: "usable", number: true, cell: (row) => percent(row.target.validity) },
        { name: "verdict", cell: (row) => text(row.verdict?.state) },
      ], steps),
      element("ul", {}, ...found.events.map((event) => element("li", {}, moment(event.at), ` ${event.what}`))),
      ...(found.edit ?? []).map((line) => element("p", {}, line)),
    ];
  });
}

async function planEscape(form) {
  const { from, to } = Object.fromEntries(new FormData(form));
  $("escape-title").textContent = `From ${from} to ${to}`;
  await drawEscape(async () => {
    const plan = await call("GET", `/escapes/plan?${new URLSearchParams({ from, to })}`);
    const costs = plan.costs;
    const lines = [
      `${plural(plan.requests, "request")} in the last 7 days, of which ${count(plan.movable)} could move (${percent(plan.movable_share)}).`,
      costs.now_usd === null ? "Cost: unknown." : `Cost of ${plural(costs.requests, "request")}: ${costs.now_usd} USD now, ${costs.then_usd} USD then.`,
      ...plan.breaks.map((one) => `Breaks: ${one.feature}, ${plural(one.requests, "request")}.`),
      ...plan.notes,
    ];
    return [element("ul", {}, ...lines.map((line) => element("li", {}, line)))];
  });
}

async function drawEscape(make) {
  $("escape").replaceChildren(empty("Loading…"));
  $("escape-dialog").showModal();
  try {
    $("escape").replaceChildren(...(await make()));
  } catch (error) {
    $("escape").replaceChildren(problem({ message: explain(error) }));
  }
}

async function startEscape(form) {
  const { from, to } = Object.fromEntries(new FormData(form));
  await call("POST", "/escapes", { from, to });
  form.reset();
  await refresh();
}

function wireRouting() {
  $("roll-back").addEventListener("click", () => attempt($("roll-back"), "version-problem", rollBack));
  $("escape-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const work = event.submitter === $("escape-start") ? startEscape : planEscape;
    attempt(event.submitter, "escape-problem", () => work(event.target));
  });
}
