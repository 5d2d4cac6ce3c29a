"use strict";
// Text only ever enters the page as text nodes: model names and reasons are users' input.

const element = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
// The page lives in a frame: links to Airflow's own pages must leave it.
const link = (text, href) => element("a", text, { href, target: "_top" });
const external = (text, href) => element("a", text, { href, target: "_blank", rel: "noopener" });
const day = (text) => text.slice(0, 10);
const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: 3 }));
const QUALITY = ["skill", "log_loss", "calibration_error", "roc_auc", "accuracy", "rmse", "mae"];

function championText(champion) {
  if (!champion) return "no champion yet";
  const by = champion.approved_by ? `, approved by ${champion.approved_by}` : "";
  return `version ${champion.version} serves all of “${champion.endpoint}” since ` +
    `${champion.since.slice(0, 16).replace("T", " ")} UTC (revision ${champion.revision}${by})`;
}

function alertsCell(window) {
  const cell = element("td");
  for (const alert of window.alerts) {
    const what = [alert.metric, alert.column].filter(Boolean).join(" of ");
    cell.append(element("span", `${what} = ${number(alert.value)} (${alert.threshold})`, { class: `alert ${alert.severity}` }));
  }
  if (!window.alerts.length) cell.append(element("span", "none", { class: "ok" }));
  if (window.retrain) cell.append(element("span", "retraining was started", { class: "muted" }));
  return cell;
}

function windowRow(model, window) {
  const row = element("tr");
  const measured = QUALITY.filter((name) => window.metrics[name] !== undefined && window.metrics[name] !== null);
  const [dag, run] = window.run.split(/\/(.*)/s);
  const links = element("td");
  links.append(
    link("run", `/dags/${encodeURIComponent(dag)}/runs/${encodeURIComponent(run)}`), " ",
    external("report", `reports/${encodeURIComponent(model)}/${window.report}`));
  row.append(
    element("td", `${day(window.start)} – ${day(window.end)}`),
    element("td", number(window.predictions), { class: "number" }),
    element("td", number(window.labelled), { class: "number" }),
    element("td", measured.slice(0, 4).map((name) => `${name} ${number(window.metrics[name])}`).join(", ") || "–"),
    alertsCell(window), links);
  return row;
}

function modelCard(model, mlflow) {
  const card = document.getElementById("model").content.cloneNode(true);
  card.querySelector("article").id = model.name;
  card.querySelector("h2").textContent = model.name;
  card.querySelector(".champion").textContent = championText(model.champion);
  const nav = card.querySelector("nav");
  for (const kind of model.dags) nav.append(link(kind, `/dags/${encodeURIComponent(`${model.name}__${kind}`)}`));
  nav.append(external("MLflow", `${mlflow}/#/models/${encodeURIComponent(model.name)}`));
  const approvals = card.querySelector(".approvals");
  for (const request of model.approvals) {
    const line = element("p", `Version ${request.version} waits for approval by ${request.assigned.join(" or ")}: `);
    line.append(link("decide", request.link));
    approvals.append(line);
  }
  const body = card.querySelector("tbody");
  for (const window of model.windows) body.append(windowRow(model.name, window));
  if (!model.windows.length) card.querySelector("table").replaceWith(element("p", "not monitored yet", { class: "muted" }));
  return card;
}

async function load() {
  const summary = document.getElementById("summary");
  try {
    const answer = await fetch("api/models", { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const { models, mlflow } = await answer.json();
    const waiting = models.reduce((sum, model) => sum + model.approvals.length, 0);
    const alerting = models.filter((model) => model.windows.length && model.windows[0].alerts.length).length;
    summary.textContent = `${models.length} models, ${waiting} waiting for approval, ${alerting} with alerts in the last window`;
    document.getElementById("models").replaceChildren(...models.map((model) => modelCard(model, mlflow)));
    if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  } catch (error) {
    summary.textContent = `The models could not be loaded (${error.message}).`;
  }
}

load();
