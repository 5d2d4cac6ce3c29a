"use strict";
// Text only ever enters the page as text nodes: names and reasons are users' input.

const QUALITY = ["skill", "calibration_error", "roc_auc", "accuracy", "log_loss", "rmse", "mae", "r2"];
const SHOWN_COLUMNS = 5;
const NAMES = { psi: "PSI", psi_max: "largest PSI", roc_auc: "ROC AUC", pr_auc: "PR AUC", rmse: "RMSE", mae: "MAE", r2: "R²" };
const cards = new Map(); // model name → its article

const byId = (id) => document.getElementById(id);
const pastOf = (made) => made.querySelector(":scope > details"); // of a card: its windows and releases

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const link = (text, href) => element("a", { href }, text);
const apart = (text, href) => element("a", { href, target: "_blank", rel: "noopener" }, text);
const muted = (text) => element("p", { class: "muted" }, text);
const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const number = (value) =>
  value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumSignificantDigits: 3 });
const count = (value) => Number(value).toLocaleString("en");
const words = (name) => name.replaceAll("_", " ");
const metricName = (name) => NAMES[name] ?? words(name);
const span = (start, end) => (start.slice(0, 10) === end.slice(0, 10)
  ? `${start.slice(0, 10)}, ${start.slice(11, 16)} to ${end.slice(11, 16)}`
  : `${start.slice(0, 10)} to ${end.slice(0, 10)}`);

function moment(text) {
  const title = new Date(text).toLocaleString();
  return element("time", { datetime: text, title }, `${text.slice(0, 16).replace("T", " ")} UTC`);
}

// ------------------------------------------------------------------ a model's card

function approvalEnd({ approval_ended: ended }) {
  return ended && element("small", { class: "ended", title: ended.reason }, "approval ended ", moment(ended.at));
}

function championFacts(model) {
  const champion = model.champion;
  if (!champion) return [muted("None yet: no release has been confirmed in production.")];
  const version = element("strong", { class: "version" }, `Version ${champion.version}`);
  const back = champion.replaced; // what was rolled back: a former champion, or what stood beside this one
  const facts = [
    element("p", {}, version, back?.was_live ? " (restored)" : ""),
    element("p", {}, back && !back.was_live ? "all traffic again since " : "since ", moment(champion.since)),
    champion.approved_by
      ? element("p", {}, "approved by ", element("b", {}, champion.approved_by), approvalEnd(champion))
      : muted("no approval"),
  ];
  const why = back ? `Version ${back.version} was taken back: ${champion.reason || "no reason given"}` : champion.reason;
  if (why) facts.push(element("p", { class: "muted clamp", title: why }, why));
  return facts;
}

function trafficFacts(champion) {
  if (!champion) return [muted("Nothing is served.")];
  const bar = element("div", { class: "bar", "aria-hidden": "true" });
  const facts = [element("p", { class: "muted" }, `${champion.endpoint}, revision ${champion.traffic_revision}`), bar];
  for (const variant of champion.traffic) {
    if (variant.role === "standby") {
      facts.push(element("p", { class: "variant standby" }, `standby: version ${variant.version}, loaded to go back to`));
      continue;
    }
    const share = variant.role === "shadow" ? "a copy of" : `${number(variant.weight * 100)} % of`;
    facts.push(element("p", { class: `variant ${variant.role}` }, `${variant.role}: version ${variant.version}, ${share} the traffic`));
    if (variant.role === "shadow") continue;
    const part = element("span", { class: variant.role });
    part.style.flexGrow = variant.weight;
    bar.append(part);
  }
  return facts;
}

function shownMetrics(windows) {
  const measured = (name) => windows.some((window) => Number.isFinite(window.metrics[name]));
  return [...QUALITY.filter(measured).slice(0, 3), ...["psi_max"].filter(measured)];
}

function qualityOf(window) {
  return shownMetrics([window]).map((name) => `${metricName(name)} ${number(window.metrics[name])}`).join(" · ") || "nothing measured";
}

// Alerts of one metric on many columns are one line, the worst column first.
function alertLines(alerts) {
  const lines = new Map();
  for (const alert of alerts) {
    const key = JSON.stringify([alert.severity, alert.metric, alert.threshold, alert.error]);
    lines.set(key, [...(lines.get(key) ?? []), alert]);
  }
  return [...lines.values()].map((same) => same.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)));
}

// What an alert is about; none for the window as a whole.
const place = ({ column, segment }) => [column, segment].filter(Boolean).join(" where ");

function alertItem(same, columns) {
  const [{ severity, metric, threshold, error, value }] = same;
  const named = same.filter(place);
  const some = named.slice(0, columns).map((alert) => (alert.value === null ? place(alert) : `${place(alert)} ${number(alert.value)}`));
  if (named.length > columns) some.push(`${named.length - columns} more`);
  const about = some.length ? `: ${some.join(", ")}` : "";
  const what = value === null
    ? ` could not be measured${about} (${error ?? "no reason given"})`
    : named.length ? ` ${threshold}${about}` : ` ${number(value)}, ${threshold}`;
  return element("li", { class: severity }, element("b", {}, severity), ` ${metricName(metric)}${what}`);
}

function alertList(window, columns = Infinity) {
  if (!window.alerts.length) return element("p", { class: "calm" }, "no alerts");
  return element("ul", { class: "alerts" }, ...alertLines(window.alerts).map((same) => alertItem(same, columns)));
}

function strip(windows) {
  const marks = windows.toReversed().map((window) => {
    const what = `${span(window.start, window.end)}: ${window.severity ?? "no alerts"}${window.retrain ? ", retraining started" : ""}`;
    return element("li", { class: `${window.severity ?? "calm"}${window.retrain ? " retrain" : ""}`, title: what }, element("span", {}, what));
  });
  return element("ol", { class: "strip", "aria-label": "Windows, oldest first" }, ...marks);
}

const reportLinks = (window, kind = "") => window.reports.flatMap((report) => [apart(report.name + kind, report.link), " "]);

function findingFacts(model) {
  const window = model.last_window;
  if (!window) return [muted("Not monitored yet.")];
  return [
    element("p", {}, `${span(window.start, window.end)}: ${count(window.predictions)} predictions, ${count(window.labelled)} with label`),
    element("p", {}, qualityOf(window)),
    alertList(window, SHOWN_COLUMNS),
    window.retrain ? element("p", { class: "retraining" }, "A retraining was started.") : null,
    element("p", { class: "links" }, ...reportLinks(window, " report"), link("run", window.run)),
    strip(model.windows),
  ].filter(Boolean);
}

function share(busy) {
  const released = busy.traffic.find((variant) => variant.version === busy.version);
  if (!released || released.role === "champion") return "";
  return released.role === "canary" ? `, ${+(100 * released.weight).toPrecision(3)} % of the traffic` : `, ${released.role}`;
}

function notes(model) {
  const found = model.approvals.map((request) => element("p", { class: "note" },
    element("span", {}, element("b", {}, `Version ${request.version}`), ` waits for approval by ${request.assigned.join(" or ")} since `, moment(request.opened_at)),
    element("a", { href: request.link, class: "button" }, "Decide")));
  const busy = model.under_way;
  if (busy) found.push(element("p", { class: "note quiet" }, element("span", {}, `A ${busy.kind} of version ${busy.version} is under way (revision ${busy.revision}, ${busy.state}${share(busy)}), begun `, moment(busy.begun))));
  return found;
}

function card(model, mlflow) {
  const made = byId("model").content.cloneNode(true).querySelector("article");
  made.id = model.name;
  made.querySelector("h2").append(model.name);
  const nav = made.querySelector("nav");
  nav.append(...model.dags.map((dag) => link(dag.kind, dag.link)));
  if (mlflow) nav.append(apart("MLflow", `${mlflow}/#/models/${encodeURIComponent(model.name)}`));
  made.querySelector(".notes").append(...notes(model));
  made.querySelector(".champion").append(...championFacts(model));
  made.querySelector(".traffic").append(...trafficFacts(model.champion));
  made.querySelector(".findings").append(...findingFacts(model));
  if (model.watch) showWatch(made.querySelector(".watch"), model.name, model.watch);
  made.dataset.urgent = String(model.approvals.length > 0 || ["warning", "critical"].includes(model.windows[0]?.severity));
  const details = pastOf(made);
  details.addEventListener("toggle", () => details.open && showHistory(model.name, details.querySelector(".history")));
  return made;
}

// ------------------------------------------------------------------ a model's history

function table(caption, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, ...[cell].flat()))));
  const made = element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}

function windowTable(windows) {
  const metrics = shownMetrics(windows);
  const heads = ["Window", "Versions", "Predictions", "With label", ...metrics.map(metricName), "Alerts", "Reports"];
  return table("Windows, newest first", heads, windows.map((window) => windowCells(window, metrics)));
}

function windowCells(window, metrics) {
  return [
    element("span", { class: "whole" }, span(window.start, window.end)),
    window.versions.join(", ") || "–",
    count(window.predictions),
    count(window.labelled),
    ...metrics.map((name) => number(window.metrics[name])),
    [alertList(window), ...(window.retrain ? [element("p", { class: "retraining" }, "retraining started")] : [])],
    element("span", { class: "whole" }, ...reportLinks(window), link("run", window.run)),
  ];
}

// Without verbs: the same is said of what is under way and of what is over.
function answered(release) {
  if (release.state === "intent") return "not published yet";
  const part = ({ role, weight }) => ({ standby: "stood by", shadow: "a copy (shadow)" })[role] ?? `${number(100 * weight)} %${role === "canary" ? " (canary)" : ""}`;
  const own = (variant) => variant.version === release.version;
  const variants = [...release.traffic.filter(own), ...release.traffic.filter((variant) => !own(variant))];
  return variants.map((variant) => `version ${variant.version}: ${part(variant)}`).join("; ") || "nothing was served";
}

function releaseCells(name, release) {
  return [
    String(release.revision),
    release.kind,
    answered(release),
    element("span", { class: `state ${release.state}` }, words(release.state)),
    moment(release.begun),
    release.taken_back_by ? `nobody: the ${release.taken_back_by}` : release.requested_by ?? "schedule",
    [release.approved_by ?? "–", approvalEnd(release)].filter(Boolean),
    element("span", { class: "reason" }, release.reason || "–"),
    release.step?.watched ? judgementButton(name, release) : "–",
  ];
}

async function showHistory(name, place) {
  place.replaceChildren(muted("Loading…"));
  try {
    const { windows, releases } = await json(`api/models/${encodeURIComponent(name)}`);
    place.replaceChildren(
      windows.length ? windowTable(windows) : muted("No window has been monitored yet."),
      releases.length ? table("Releases in production, newest first", ["Revision", "Kind", "Answered", "State", "Begun", "Requested by", "Approved by", "Reason", "Watch"], releases.map((release) => releaseCells(name, release))) : muted("Nothing has been released yet."));
  } catch (error) {
    place.replaceChildren(element("p", { class: "error" }, `The history could not be loaded: ${error.message}`));
  }
}

// ------------------------------------------------------------------ the page

async function json(address, options = {}) {
  const answer = await fetch(address, { headers: { Accept: "application/json" }, ...options });
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => ({}));
  throw new Error(answer.status === 401 ? "your session has ended; log in again" : body.detail ?? `HTTP ${answer.status}`);
}

function filterCards() {
  const wanted = byId("search").value.trim().toLowerCase();
  const urgent = byId("urgent").checked;
  for (const [name, made] of cards) made.hidden = !name.toLowerCase().includes(wanted) || (urgent && made.dataset.urgent !== "true");
}

function showTarget() {
  const name = decodeURIComponent(location.hash.slice(1));
  for (const [other, made] of cards) made.classList.toggle("target", other === name);
  const made = cards.get(name);
  if (!made) return;
  pastOf(made).open = true;
  made.scrollIntoView({ block: "start" });
}

async function load() {
  const summary = byId("summary");
  const open = [...cards].filter(([, made]) => pastOf(made).open).map(([name]) => name);
  try {
    const { models, mlflow } = await json("api/models");
    cards.clear();
    for (const model of models) cards.set(model.name, card(model, mlflow));
    byId("models").replaceChildren(...cards.values());
    for (const name of open) if (cards.has(name)) pastOf(cards.get(name)).open = true;
    const waiting = models.reduce((sum, model) => sum + model.approvals.length, 0);
    const alerting = models.filter((model) => model.last_window?.alerts.length).length;
    summary.className = "";
    summary.textContent = models.length
      ? `${plural(models.length, "model")} · ${waiting} waiting for approval · ${alerting} with alerts in the last window`
      : "";
    byId("tools").hidden = !models.length;
    if (!models.length) byId("models").append(element("p", { class: "empty" }, "There are no models you may see. A model appears here once its folder in dags/models has been parsed and you may read its DAGs."));
    filterCards();
  } catch (error) {
    summary.className = "error";
    summary.textContent = `The models could not be loaded: ${error.message}.`;
  }
}

// Airflow shows the page in a sandboxed frame that may neither leave itself nor open windows, so links are
// followed by Airflow's own document.
function followOutside(event) {
  const clicked = event.target.closest("a[href]");
  if (!clicked || event.button > 1) return;
  event.preventDefault();
  const outside = parent.document.createElement("a");
  outside.href = clicked.href;
  if (clicked.target || event.button === 1 || event.ctrlKey || event.metaKey || event.shiftKey) {
    outside.target = "_blank";
    outside.rel = "noopener";
  }
  parent.document.body.append(outside);
  outside.click();
  outside.remove();
}

function followTheme() {
  const airflow = parent.document.documentElement;
  const show = () => document.documentElement.dataset.theme = airflow.classList.contains("dark") ? "dark" : "light";
  new MutationObserver(show).observe(airflow, { attributes: true, attributeFilter: ["class"] });
  show();
}

if (parent !== window) { // the page's policy allows Airflow's own origin only to frame it
  document.documentElement.classList.add("framed");
  document.addEventListener("click", followOutside);
  document.addEventListener("auxclick", followOutside);
  followTheme();
}
byId("search").addEventListener("input", filterCards);
byId("urgent").addEventListener("change", filterCards);
byId("refresh").addEventListener("click", load);
window.addEventListener("hashchange", showTarget);
load().then(showTarget);
