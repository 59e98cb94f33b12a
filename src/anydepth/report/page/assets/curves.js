// Depth curves of all settings in one chart: accuracy against GFLOPs and against latency.

const COSTS = { gflops: { name: "GFLOPs", digits: 2 }, latency: { name: "ms", digits: 2 } };

function curveSection(host, comparison, legend) {
  const state = { figure: "AP", front: true };
  const charts = [];
  const redraw = () => Charts.redraw(charts);
  const controls = el(
    "div", { className: "controls" },
    segments("Accuracy", ["AP", "AP50", "AP75"].map((value) => ({ value, text: value })), (value) => { state.figure = value; redraw(); }, "AP"),
    checkbox("Pareto front over all settings (wide line)", true, (checked) => { state.front = checked; redraw(); }),
  );
  const grid = el("div", { className: "charts" });
  for (const cost of ["gflops", "latency"]) {
    if (!comparison.fronts.AP[cost]) continue;
    const chart = el("div", { className: "chart", attrs: { role: "img", "aria-label": `Accuracy against ${COSTS[cost].name}` } });
    const title = cost === "gflops" ? "Accuracy against GFLOPs (2 × MACs) of one image" : comparison.latency_title;
    grid.append(el("figure", {}, el("figcaption", { textContent: title }), chart));
    charts.push(Charts.add(chart, () => curveChart(comparison, legend, cost, state)));
  }
  legend.listeners.push(redraw);
  host.append(legend.row(), controls, grid);
  const notes = [];
  if (comparison.settings.some((setting) => setting.seeds > 1)) notes.push("Mean over seeds; the band spans the lowest and the highest seed.");
  if (comparison.settings.some((setting) => setting.points.some((point) => !point.rung))) {
    notes.push("Lines join the ladder from full to minimal; small marks are the other depths.");
  }
  host.append(el("p", { className: "soft small", textContent: notes.join(" "), hidden: !notes.length }));
}

function curveChart(comparison, legend, cost, state) {
  // First, so that it is drawn below the lines.
  const data = state.front ? [frontTrace(comparison, cost, state.figure)] : [];
  comparison.settings.forEach((setting, index) => {
    if (legend.shown[index]) data.push(...settingTraces(setting, index, cost, state.figure));
  });
  return {
    data,
    layout: {
      xaxis: { title: { text: cost === "gflops" ? "GFLOPs" : "median latency in ms", font: { size: 13 } } },
      yaxis: { title: { text: `${state.figure}, percent`, font: { size: 13 } } },
    },
  };
}

function settingTraces(setting, index, cost, figure) {
  const { colour, symbol, dash } = style(index);
  const known = setting.points.filter((point) => point[cost] !== null && point[figure]);
  const sorted = [...known].sort((a, b) => a[cost] - b[cost]);
  const rungs = sorted.filter((point) => point.rung);
  const others = sorted.filter((point) => !point.rung);
  const traces = [];
  if (setting.seeds > 1 && rungs.length > 1) {
    const x = rungs.map((point) => point[cost]);
    traces.push({
      type: "scatter", mode: "lines", x: [...x, ...[...x].reverse()],
      y: [...rungs.map((point) => point[figure][2]), ...rungs.map((point) => point[figure][1]).reverse()],
      fill: "toself", fillcolor: faded(colour, 0.16), line: { width: 0 }, hoverinfo: "skip",
    });
  }
  const points = (chosen, more) => ({
    type: "scatter", name: setting.label, x: chosen.map((point) => point[cost]), y: chosen.map((point) => point[figure][0]),
    text: chosen.map((point) => pointText(setting, point, figure)), hovertemplate: "%{text}<extra></extra>", ...more,
  });
  if (others.length) {
    traces.push(points(others, { mode: "markers", marker: { color: colour, symbol, size: 5, opacity: 0.5 } }));
  }
  traces.push(points(rungs, { mode: "lines+markers", line: { color: colour, width: 2, dash }, marker: { color: colour, symbol, size: 8 } }));
  return traces;
}

function frontTrace(comparison, cost, figure) {
  const points = (comparison.fronts[figure][cost] || []).map(([setting, point]) => comparison.settings[setting].points[point]);
  return {
    type: "scatter", mode: "lines", name: "Pareto front", x: points.map((point) => point[cost]), y: points.map((point) => point[figure][0]),
    line: { color: css("--front"), width: 11 }, hoverinfo: "skip",
  };
}

function pointText(setting, point, figure) {
  const [mean, low, high] = point[figure];
  const range = setting.seeds > 1 ? ` (${fixed(low, 1)} to ${fixed(high, 1)}, ${setting.seeds} seeds)` : "";
  const latency = point.latency === null ? "" : `<br>${fixed(point.latency, 2)} ms`;
  return `<b>${plain(point.depth)}</b><br>${wrapped(setting.label)}<br>${figure} ${fixed(mean, 1)}${range}<br>${fixed(point.gflops, 2)} GFLOPs${latency}`;
}

/** Splits a label into lines of at most 42 characters, as hover boxes do not wrap. */
function wrapped(text) {
  return (String(text).match(/.{1,42}(\s|,|$)|.{1,42}/g) || [""]).slice(0, 4).map((line) => plain(line.trim())).join("<br>");
}
