"use strict";
// The charts of a page. What can be shown is in the page as JSON; this cuts out the stage that is
// looked at, draws it with Plotly and makes a legend of buttons that never covers a curve.
const page = JSON.parse(document.getElementById("chart-data").textContent);
const WHOLE_RUN = "";
const LINES_FROM = 40; // more points than this are drawn without markers
// Dragging scrolls the page on a touch screen, where it would otherwise zoom the chart.
const isTouch = matchMedia("(pointer: coarse)").matches;
const TICKS = {
  share: {tickformat: ".0~%", hoverformat: ".1%", rangemode: "tozero"},
  count: {tickformat: "~s", hoverformat: ",.4~r", rangemode: "tozero"},
  value: {hoverformat: ".4~g"},
  small: {exponentformat: "e", showexponent: "all", hoverformat: ".3~g"},
};
const hiddenRuns = new Set();
let view = WHOLE_RUN;

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

// Plotly reads names as HTML.
const escaped = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// [least, most]; not Math.min(...values), which has a limit to its arguments.
const extent = (values) => values.reduce(
  ([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);

// The points of one metric in the stage looked at, or in all: there over minutes, and apart
// between stages, except for evaluations, which follow one policy through the run.
function pointsOf(run, metric, scale) {
  const x = [], y = [];
  for (const [number, places, values] of run.metrics[metric] ?? []) {
    const stage = run.stages[number];
    if (view !== WHOLE_RUN && stage.name !== view) continue;
    if (x.length && !metric.startsWith("eval/")) { x.push(null); y.push(null); }
    values.forEach((value, i) => {
      const point = stage.start + (places ? places[i] : i);
      x.push(view === WHOLE_RUN ? run.minutes[point] : run.steps[point]);
      y.push(value === null ? null : value * scale);
    });
  }
  return {x, y};
}

function tracesOf(chart) {
  const found = chart.curves
    .map((curve) => ({...curve, ...pointsOf(curve.run, curve.metric, chart.scale)}))
    .filter(({y}) => y.some((value) => value !== null));
  const most = Math.max(...found.map(({x}) => x.length));
  return found.map(({run, metric, label, colour, x, y}) => {
    // Evaluations are few and far apart: what lies between them is not measured.
    const sparse = metric.startsWith("eval/");
    const width = (most > 300 ? 1.2 : 1.8) * (run.is_mean ? 2 : 1);
    return {
      x, y, label, name: escaped(label),
      mode: most > LINES_FROM && !sparse && x.length > 1 ? "lines" : "lines+markers",
      line: {color: colour, width, dash: sparse ? "dot" : "solid"},
      marker: {color: colour, size: sparse ? 8 : 5},
    };
  });
}

function axisOf(chart, traces) {
  const values = traces.flatMap((trace) => trace.y).filter((value) => value !== null);
  const [least, most] = extent(values);
  const ticks = {...TICKS[chart.axis]};
  if (chart.log && least > 0 && most > 5 * least) {
    if (chart.axis === "small") ticks.tickformat = ".0e";
    // One label for each decade or, where there are few of them, three.
    return {...ticks, type: "log", dtick: most > 100 * least ? 1 : "D2", rangemode: "normal"};
  }
  if (least < 0) delete ticks.rangemode;
  if (chart.axis === "share" && most < 0.02) ticks.tickformat = ".2~%";
  return ticks;
}

// Of one run over its time: the stages that have points fill the width, dotted lines part them, and
// their names stand above where there is room.
function stageMarks(run, traces, width) {
  const times = traces.flatMap((trace) => trace.x).filter((x) => x !== null);
  const [first, last] = extent(times);
  const shown = run.stages.filter(
    ({start_min, stop_min}) => stop_min >= first && start_min <= last);
  const range = [shown[0].start_min, shown.at(-1).stop_min];
  const shapes = shown.slice(1).map(({start_min: x}) => ({
    type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x,
    line: {dash: "dot", width: 1, color: "#c3cad5"},
  }));
  const annotations = [];
  for (const {name, start_min, stop_min} of shown) {
    const room = (width * (stop_min - start_min)) / (range[1] - range[0]);
    if (room > 6.5 * name.length + 8) {
      annotations.push({
        x: start_min, xanchor: "left", xshift: 2, y: 1, yref: "paper", yanchor: "bottom",
        text: escaped(name), showarrow: false, font: {size: 11, color: "#8a94a3"},
      });
    }
  }
  const margin = 0.01 * (range[1] - range[0]) || 0.5;
  return {shapes, annotations, range: [range[0] - margin, range[1] + margin]};
}

// The steps of the stage looked at, in whichever run has most: all charts share them.
function stepRange() {
  const steps = page.runs.flatMap((run) => run.stages.flatMap(({name, start}, i) =>
    name === view ? run.steps.slice(start, run.stages[i + 1]?.start) : []));
  const [first, last] = extent(steps);
  const margin = Math.max(0.5, 0.02 * (last - first));
  return [first - margin, last + margin];
}

// A button that shows and hides what has this colour.
function keyButton(label, colour, onToggle) {
  const dot = element("i", {className: "dot"});
  dot.style.background = colour;
  const button = element("button", {type: "button", className: "key"}, dot, label);
  button.dataset.label = label;
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    onToggle(on);
  };
  return button;
}

function legendOf(plot, keys) {
  return element("div", {className: "keys"}, ...keys.map(({label, colour, trace}, i) =>
    keyButton(label, colour, (on) => {
      trace.visible = on;
      if (!undrawn.has(plot)) Plotly.restyle(plot, {visible: on}, [i]);
    })));
}

function figureOf(title, note, keys) {
  const plot = element("div", {className: "plot"});
  const figure = element("figure", {}, element("figcaption", {textContent: title}));
  if (note) figure.append(element("p", {className: "note", textContent: note}));
  if (keys.length > 1 || isComparison) figure.append(legendOf(plot, keys));
  figure.append(plot);
  return {figure, plot};
}

function draw(plot, data, {xaxis, yaxis, ...layout}) {
  const axis = {
    automargin: true, zeroline: false, fixedrange: isTouch,
    gridcolor: "#edf0f4", linecolor: "#c9d0da",
  };
  plot.drawn = Plotly.newPlot(plot, data, {
    showlegend: false, bargap: 0.35, dragmode: isTouch ? false : "zoom",
    margin: {l: 8, r: 12, t: 18, b: 8}, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: "#5d6778"},
    hoverlabel: {
      bgcolor: "#ffffff", bordercolor: "#c9d0da", font: {color: "#1b2230"}, namelength: -1,
    },
    ...layout,
    xaxis: {...axis, showgrid: false, showline: true, ...xaxis},
    yaxis: {...axis, nticks: 6, ...yaxis},
  }, {responsive: true, displaylogo: false, displayModeBar: false});
}

function drawCurves(place, chart, traces) {
  const isWhole = view === WHOLE_RUN;
  const title = {text: isWhole ? "minutes" : "step", standoff: 6, font: {size: 12}};
  const unifiedhovertitle = {text: isWhole ? "minute %{x:.2f}" : "step %{x}"};
  const xaxis = {title, unifiedhovertitle};
  let marks = {};
  if (!isWhole) {
    xaxis.range = stepRange();
  } else if (page.runs.length === 1) {
    // The stages of several runs do not end together.
    ({range: xaxis.range, ...marks} = stageMarks(page.runs[0], traces, place.clientWidth - 50));
  }
  const yaxis = axisOf(chart, traces);
  draw(place, traces, {hovermode: "x unified", hoverdistance: 10, xaxis, yaxis, ...marks});
}

// Charts are drawn when they come near the window: a page has dozens.
const undrawn = new Map();
const nearWindow = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) if (isIntersecting) drawNow(target);
}, {rootMargin: "400px"});
addEventListener("beforeprint", () => [...undrawn.keys()].forEach(drawNow));

function drawLater(plot, show) {
  undrawn.set(plot, show);
  nearWindow.observe(plot);
}

function drawNow(plot) {
  const show = undrawn.get(plot);
  nearWindow.unobserve(plot);
  if (undrawn.delete(plot)) show();
}

function discard(plot) {
  nearWindow.unobserve(plot);
  // Plotly goes on drawing for a while, and fails on what was purged meanwhile.
  if (!undrawn.delete(plot)) plot.drawn.then(() => Plotly.purge(plot));
}

// The figure of a chart; null where it has no points in this view.
function curveFigure(chart) {
  const traces = tracesOf(chart);
  if (!traces.length) return null;
  const keys = traces.map((trace) => ({label: trace.label, colour: trace.line.color, trace}));
  const {figure, plot} = figureOf(chart.title, chart.note, keys);
  drawLater(plot, () => drawCurves(plot, chart, traces));
  return figure;
}

function fill(grid, figures) {
  grid.querySelectorAll(".plot").forEach(discard);
  grid.replaceChildren(...figures.filter((figure) => figure !== null));
  applyRunKeys(grid);
}

// A chart of one metric: its name in full, and how the listed chart of it would be drawn.
function chartOfMetric(metric) {
  const known = page.charts.find((chart) => chart.curves.some((curve) => curve.metric === metric));
  const {axis, log, scale, unit} = known ?? {axis: "value", log: false, scale: 1, unit: ""};
  const curves = page.runs.map((run) => ({run, metric, label: run.name, colour: run.colour}));
  return {title: unit ? `${metric}, ${unit}` : metric, note: "", axis, log, scale, metric, curves};
}

const allMetrics = [...new Set(page.runs.flatMap((run) => Object.keys(run.metrics)))].sort();
const allStages = [...new Set(page.runs.flatMap((run) => run.stages.map((stage) => stage.name)))];
const isComparison = "first_metrics" in page;
const added = isComparison ? page.first_metrics.filter((name) => allMetrics.includes(name)) : [];

function addedFigure(metric) {
  const figure = curveFigure(chartOfMetric(metric));
  if (!figure) return null;
  const remove = element("button", {type: "button", className: "remove", textContent: "\u00d7"});
  remove.setAttribute("aria-label", `Remove ${metric}`);
  remove.onclick = () => {
    added.splice(added.indexOf(metric), 1);
    discard(figure.querySelector(".plot"));
    figure.remove();
  };
  figure.append(remove);
  return figure;
}

function showCurves() {
  const [run] = page.runs;
  for (const section of document.querySelectorAll("[data-group]")) {
    const figures = page.charts
      .filter((chart) => chart.group === section.dataset.group)
      .map((chart) => ({...chart, curves: chart.curves.map((curve) => ({...curve, run}))}))
      .map(curveFigure);
    fill(section.querySelector(".charts"), figures);
    section.hidden = figures.every((figure) => figure === null);
  }
  fill(document.querySelector("[data-added] .charts"), added.map(addedFigure));
  document.getElementById("added-nothing").textContent = "";
}

function showEvaluations() {
  const grid = document.getElementById("evaluation-charts");
  if (!grid) return;
  for (const chart of page.evaluations) {
    const keys = chart.legend.map((key, i) => ({...key, trace: chart.data[i]}));
    const {figure, plot} = figureOf(chart.title, "", keys);
    grid.append(figure);
    drawLater(plot, () => draw(plot, chart.data, {hovermode: "closest", ...chart.layout}));
  }
}

function setUpView() {
  const select = document.getElementById("view");
  if (!select) return;
  if (allStages.length > 1) {
    select.append(new Option("the whole run, over its time", WHOLE_RUN));
  }
  for (const stage of allStages) select.append(new Option(`${stage}, over its steps`, stage));
  // Several runs are compared step by step: in the last stage that samples, if there is one.
  const samples = (run, stage) => (run.metrics["rollout/accuracy"] ?? [])
    .some(([number]) => run.stages[number].name === stage);
  const preferred = allStages.findLast((stage) => page.runs.some((run) => samples(run, stage)));
  select.value = isComparison ? preferred ?? allStages.at(-1) : select.options[0].value;
  view = select.value;
  select.onchange = () => { view = select.value; showCurves(); };
}

function setUpAdding() {
  const select = document.querySelector(".add-metric");
  if (!select) return;
  const rooms = new Map();
  for (const name of allMetrics) {
    const room = name.split("/")[0];
    rooms.set(room, [...(rooms.get(room) ?? []), name]);
  }
  for (const [room, names] of rooms) {
    const options = names.map((name) => new Option(name, name));
    select.append(element("optgroup", {label: room}, ...options));
  }
  select.onchange = () => {
    const metric = select.value;
    select.value = "";
    if (!metric || added.includes(metric)) return;
    const figure = addedFigure(metric);
    document.getElementById("added-nothing").textContent =
      figure ? "" : `${metric} has no points in what is shown.`;
    if (!figure) return;
    added.unshift(metric);
    document.querySelector("[data-added] .charts").prepend(figure);
    applyRunKeys(figure);
  };
}

function setUpRunKeys() {
  const keys = document.getElementById("run-keys");
  if (!keys) return;
  for (const run of page.runs) {
    keys.append(keyButton(run.name, run.colour, (on) => {
      if (on) hiddenRuns.delete(run.name); else hiddenRuns.add(run.name);
      applyRunKeys(document.querySelector("[data-added] .charts"));
    }));
  }
}

// A run that is hidden on the page is hidden in every chart of it.
function applyRunKeys(place) {
  if (!isComparison) return;
  for (const button of place.querySelectorAll(".key")) {
    const isShown = button.getAttribute("aria-pressed") === "true";
    if (isShown === hiddenRuns.has(button.dataset.label)) button.click();
  }
}

showEvaluations();
setUpView();
setUpAdding();
setUpRunKeys();
if (document.getElementById("curves")) showCurves();
