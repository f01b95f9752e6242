// The page's third part: budgets, months, prices, the audit log. Each is asked for only where the role may see it.

const usd = (value) => (value === null || value === undefined ? note("unknown") : element("span", { title: `${value} USD` }, dollars.format(value)));
const share = (part, whole) => (Number(whole) > 0 ? Number(part) / Number(whole) : 0);
const short = (hash) => element("code", { title: hash }, hash.slice(0, 12));

// Budgets

function budgetState(row) {
  const spent = share(row.spent_usd, row.limit_usd);
  const told = row.alerts.length ? `told at ${row.alerts.map((one) => percent(Number(one.threshold))).join(", ")}` : null;
  if (spent >= 1) return badge(row.hard ? "bad" : "warn", row.hard ? "spent" : "passed", told);
  if (row.forecast_usd !== null && Number(row.forecast_usd) > Number(row.limit_usd)) return badge("warn", "will not last", told);
  return badge("good", "within", told);
}

function showBudgets({ budgets }) {
  draw("budgets", budgets, () =>
    budgets.length === 0
      ? empty("No budgets. Teams, projects, keys, cost centres, organisations and models may have one.")
      : table([
          { name: "account", fixed: true, cell: (row) => element("strong", {}, row.account) },
          { name: "kind", cell: (row) => `${row.hard ? "hard" : "soft"}, per ${row.per}` },
          { name: "limit", number: true, cell: (row) => usd(row.limit_usd) },
          { name: "spent", number: true, cell: (row) => usd(row.spent_usd) },
          { name: "of it", number: true, cell: (row) => percent(share(row.spent_usd, row.limit_usd)) },
          { name: "left", number: true, cell: (row) => usd(row.left_usd) },
          { name: "forecast", number: true, cell: (row) => (row.forecast_usd === null ? note("too early") : usd(row.forecast_usd)) },
          { name: "until", fixed: true, cell: (row) => moment(row.period_end) },
          { name: "state", fixed: true, cell: budgetState },
        ], budgets));
}

// Months

function showMonths({ open, closed }) {
  draw("months", [open, closed], () => [
    open.length === 0 ? null : table([
      { name: "open month", fixed: true, cell: (row) => element("strong", {}, row.month) },
      { name: "attempts", number: true, cell: (row) => count(row.attempts) },
      { name: "cost so far", number: true, cell: (row) => usd(row.cost_usd) },
      { name: "unpriced", number: true, cell: (row) => count(row.unpriced) },
      { name: "", fixed: true, cell: (row) => smallButton("Close", `close-${row.month}`, `Close ${row.month}`, () => confirmClose(row.month)) },
    ], open),
    closed.length === 0 ? empty("No month is closed yet.") : table([
      { name: "closed month", fixed: true, cell: (row) => element("strong", {}, row.month) },
      { name: "manifest", cell: (row) => short(row.sha256) },
      { name: "signed with", cell: (row) => short(row.public_key) },
      { name: "", fixed: true, cell: (row) => smallButton("Verify", `verify-${row.month}`, `Verify ${row.month}`, () => verifyMonth(row.month)) },
    ], closed),
  ].filter(Boolean));
}

function confirmClose(month) {
  state.month = month;
  $("month-title").textContent = `Close ${month}?`;
  tell("month-problem", "");
  $("month-dialog").showModal();
}

async function verifyMonth(month) {
  tell("months-said", `Verifying ${month}…`);
  try {
    const found = await call("POST", `/months/${encodeURIComponent(month)}/verify`);
    tell("months-said", found.is_intact ? `${month} is as it was signed.` : `${month} differs from what was signed: ${found.difference}`);
  } catch (error) {
    tell("months-said", explain(error));
  }
}

// Prices

const CATALOGUE_MOODS = { "in force": "good", proposed: "warn", approved: "idle", rejected: "idle" };

function showCatalogues({ catalogues }) {
  const decide = (row, verb) => smallButton(verb, `${verb}-${row.version}`, `${verb} catalogue ${row.version}`, () => decideCatalogue(row.version, verb));
  draw("catalogues", catalogues, () =>
    catalogues.length === 0
      ? empty("No price catalogue is registered yet.")
      : table([
          { name: "catalogue", fixed: true, cell: (row) => element("code", {}, row.version) },
          { name: "source", cell: (row) => row.source },
          { name: "state", fixed: true, cell: (row) => badge(CATALOGUE_MOODS[row.state], row.state) },
          { name: "proposed", fixed: true, cell: (row) => moment(row.proposed_at) },
          { name: "by", cell: (row) => row.author },
          { name: "decided by", cell: (row) => row.decided_by },
          { name: "", fixed: true, cell: (row) => (row.state === "proposed" ? element("span", {}, decide(row, "Approve"), decide(row, "Reject")) : "") },
        ], catalogues));
}

async function decideCatalogue(version, verb) {
  tell("prices-said", "");
  try {
    if (verb === "Approve") await call("POST", `/prices/catalogues/${encodeURIComponent(version)}/approve`, {});
    else await call("POST", `/prices/catalogues/${encodeURIComponent(version)}/reject`);
    await refresh();
  } catch (error) {
    tell("prices-said", explain(error));
  }
}

function showUnpriced({ models }) {
  draw("unpriced", models, () =>
    models.length === 0 ? empty("Every attempt has a price.") : table([
      { name: "model without a price", cell: (row) => row.upstream_model },
      { name: "endpoint", fixed: true, cell: (row) => row.endpoint },
      { name: "attempts", number: true, cell: (row) => count(row.attempts) },
      { name: "tokens", number: true, cell: (row) => count(row.tokens) },
      { name: "last", fixed: true, cell: (row) => moment(row.last) },
    ], models));
}

// The audit log

function showAudit({ rows }) {
  draw("audit", rows, () =>
    rows.length === 0
      ? empty("Nothing was changed yet.")
      : table([
          { name: "when", fixed: true, cell: (row) => moment(row.at) },
          { name: "who", cell: (row) => row.actor },
          { name: "did", fixed: true, cell: (row) => element("code", {}, row.action) },
          { name: "to", cell: (row) => row.subject },
          { name: "hash", cell: (row) => short(row.hash) },
        ], rows));
}

async function verifyAudit() {
  tell("audit-said", "Verifying…");
  try {
    const found = await call("GET", "/audit/verify");
    tell("audit-said", found.broken_at === null
      ? `${plural(found.rows, "row")}, none changed or missing. Head: ${found.head}`
      : `Broken at row ${found.broken_at}: ${found.reason}`);
  } catch (error) {
    tell("audit-said", explain(error));
  }
}

function wireFinance() {
  $("verify-audit").addEventListener("click", verifyAudit);
  $("close-month").addEventListener("click", () =>
    attempt($("close-month"), "month-problem", async () => {
      await call("POST", `/months/${encodeURIComponent(state.month)}/close`, { force: $("month-force").checked });
      $("month-force").checked = false;
      $("month-dialog").close();
      await refresh();
    }));
}

start();
