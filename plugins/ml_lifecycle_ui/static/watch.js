"use strict";
// How a release is judged while it has a part of the traffic. Uses page.js, which is loaded after it.

const PATIENCE = 20_000; // milliseconds; a lake may be out of reach
const DECISIONS = { promote: "Promoted", hold: "Held", roll_back: "Rolled back" };
const VERDICTS = { worse: "✗ worse", not_worse: "✓ not worse", undecided: "undecided" };
const MEASURED = {
  errors: "requests not answered, or refused by it alone",
  latency: "answers that were slow",
  score_distribution: "distance of the scores",
  disagreement: "requests decided otherwise",
  labels: "mean loss where the label is known",
};

function stepWords(step, over) {
  const answers = over ? "answered" : "answers";
  if (step.role === "canary") return `canary, ${answers} ${number(100 * step.weight)} % of the traffic`;
  if (step.role === "shadow") return `shadow, ${over ? "got" : "gets"} a copy of the traffic and ${answers} nobody`;
  return step.role === "champion" ? `champion, ${answers} all traffic` : "standby, loaded and checked";
}

const signed = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3, signDisplay: "exceptZero" });
const small = (text) => element("small", {}, text);
const requests = (rows) => `${count(rows)} ${rows === 1 ? "request" : "requests"}`;

// A share is read in percent, and how far two are apart in points. A distance has no sign.
const scaled = (row, value) => (row.in_percent ? 100 * value : value);
const gap = (row, value) => (row.challenger === null ? number : signed)(scaled(row, value));
function withUnit(row, text) {
  if (!row.in_percent) return text;
  return row.metric === "disagreement" ? `${text} %` : `${text} ${text === "1" ? "point" : "points"}`;
}

function sideCell(row, value, rows) {
  const shown = value === null ? "–" : `${number(scaled(row, value))}${row.in_percent ? " %" : ""}`;
  return [shown, small(requests(rows))];
}

function apartCell(row) {
  if (row.difference === null) return "–";
  return [withUnit(row, gap(row, row.difference)), small(`${gap(row, row.low)} to ${gap(row, row.high)}`)];
}

function missing(row) {
  if (!row.required) return "not waited for";
  if (row.missing_rows) return requests(row.missing_rows);
  return row.verdict === "undecided" ? "a clear answer" : "nothing";
}

function comparisonRow(row, judged) {
  const measured = row.metric === "latency" && judged.latency_limit_ms !== null
    ? `answers slower than ${number(judged.latency_limit_ms)} ms`
    : MEASURED[row.metric] ?? "mean of a business metric";
  const cells = [
    sideCell(row, row.challenger, row.challenger_rows),
    sideCell(row, row.champion, row.champion_rows),
    apartCell(row),
    withUnit(row, number(scaled(row, row.margin))),
    element("b", { class: `verdict ${row.verdict}` }, VERDICTS[row.verdict]),
    ...(judged.decision === "roll_back" ? [] : [missing(row)]),
  ];
  return element("tr", {},
    element("th", { scope: "row" }, row.segment ? `${metricName(row.metric)} of ${row.segment}` : metricName(row.metric), small(measured)),
    ...cells.map((cell) => element("td", {}, ...[cell].flat())));
}

function comparisonTable(caption, rows, judged) {
  const heads = ["Metric", "Challenger", "Champion", "Worse by, and bounds", "Accepted", "Verdict"];
  if (judged.decision !== "roll_back") heads.push("Missing for a promotion");
  const made = element("table", { class: "comparisons" },
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row) => comparisonRow(row, judged))));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}

function segmentTable(rows, judged) {
  if (!rows.length) return null;
  const tally = Object.keys(VERDICTS).map((verdict) => [rows.filter((row) => row.verdict === verdict).length, words(verdict)]);
  const told = tally.filter(([times]) => times).map(([times, verdict]) => `${times} ${verdict}`).join(", ");
  const made = element("details", {}, element("summary", {}, `By segment, which no promotion waits for: ${told}`), comparisonTable("By segment", rows, judged));
  made.open = rows.some((row) => row.verdict === "worse");
  return made;
}

function judgementFacts(judged, waits) {
  const decision = judged.for_people ? "Held for people to decide" : DECISIONS[judged.decision];
  const rules = judged.min_time === null ? "" : `; a promotion takes ${judged.min_time} at least, and after ${judged.deadline} people decide`;
  return [
    element("p", {}, element("strong", { class: `decision ${judged.decision}` }, decision), " at the last look, ", moment(judged.judged_at)),
    waits ? element("p", {}, "The DAG rollback takes it back; promote of the same version with all_traffic gives it all traffic.") : null,
    element("ul", { class: "reasons" }, ...judged.reasons.map((reason) => element("li", {}, reason))),
    element("p", { class: "muted" }, "With traffic since ", moment(judged.began_at), `${rules}. Bounds hold at every look.`),
    comparisonTable("All traffic of this step", judged.comparisons.filter((row) => row.segment === null), judged),
    segmentTable(judged.comparisons.filter((row) => row.segment !== null), judged),
  ];
}

const isForPeople = (found) => found.state === "applied" && Boolean(found.judged?.for_people);
const isOver = (found) => ["superseded", "rolled_back"].includes(found.state);

function watchFacts(found) {
  const judged = found.judged;
  const facts = [element("p", {}, element("b", {}, `Version ${found.version}`), `: ${stepWords(found.step, isOver(found))} (revision ${found.revision}, ${words(found.state)})`)];
  const told = judged?.decision === "roll_back" && judged.reasons.join("; ") === found.reason;
  if (found.state === "rolled_back" && !told) facts.push(element("p", {}, `Rolled back: ${found.reason || "no reason given"}`));
  if (found.problem) facts.push(element("p", { class: "error" }, found.overdue ? found.problem : `The judgement cannot be read. ${found.problem}`));
  else if (!judged) facts.push(muted("Nobody has looked at this step yet."));
  if (judged && judged.revision !== found.revision) facts.push(muted(`Nobody has looked at this step yet. The one before (revision ${judged.revision}: ${stepWords(judged.step, true)}):`));
  if (judged) facts.push(...judgementFacts(judged, isForPeople(found)));
  return facts.filter(Boolean);
}

async function loadWatch(name, { endpoint, revision }) {
  const address = `api/models/${encodeURIComponent(name)}/watches/${encodeURIComponent(endpoint)}/${revision}`;
  try {
    return await json(address, { signal: AbortSignal.timeout(PATIENCE) });
  } catch (error) {
    throw error.name === "TimeoutError" ? new Error(`no answer within ${PATIENCE / 1000} seconds`) : error;
  }
}

const notLoaded = (error) => element("p", { class: "error" }, `The watch could not be loaded: ${error.message}.`);

async function showWatch(place, name, release) {
  const head = element("h3", {}, "Watch");
  place.hidden = false;
  place.replaceChildren(head, muted("Loading…"));
  try {
    const found = await loadWatch(name, release);
    place.hidden = !found.step?.watched; // what failed its checks was taken back before it had traffic
    place.replaceChildren(head, ...(place.hidden ? [] : watchFacts(found)));
    if (found.overdue || isForPeople(found)) place.closest("article").dataset.urgent = "true";
    filterCards();
  } catch (error) {
    place.replaceChildren(head, notLoaded(error));
  }
}

// In the table of releases: opens a row below the release's own.
function judgementButton(name, release) {
  const button = element("button", { type: "button", "aria-expanded": "false", "aria-label": `Judgement of revision ${release.revision}` }, "Judgement");
  const place = element("td", { class: "watch", "aria-live": "polite" });
  const row = element("tr", {}, place);
  button.addEventListener("click", async () => {
    const opened = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", String(opened));
    if (!opened) return row.remove();
    const own = button.closest("tr");
    place.colSpan = own.cells.length;
    place.replaceChildren(muted("Loading…"));
    own.after(row);
    try {
      place.replaceChildren(...watchFacts(await loadWatch(name, release)));
    } catch (error) {
      place.replaceChildren(notLoaded(error));
    }
  });
  return button;
}
