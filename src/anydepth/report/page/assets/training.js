// Training logs, one quantity at a time, over epochs or steps.

function trainingSection(host, comparison, legend, training, caption) {
  const state = { metric: training.metrics[0], axis: "steps", smooth: false };
  const key = el("p", { className: "key" });
  const chartHost = el("div", { className: "chart wide", attrs: { role: "img", "aria-label": caption } });
  const chart = Charts.add(chartHost, () => trainingChart(comparison, legend, training, state));
  const redraw = () => { trainingKey(key, state.metric); Charts.redraw([chart]); };
  legend.listeners.push(redraw);
  const options = training.metrics.map((metric, index) => ({ value: index, text: metric.label, group: metric.group }));
  host.append(
    legend.row(),
    el(
      "div", { className: "controls" },
      field("Show", select(options, (value) => { state.metric = training.metrics[value]; redraw(); }, 0), "long"),
      field("over", select(
        [{ value: "epochs", text: "epochs" }, { value: "steps", text: "steps" }],
        (value) => { state.axis = value; redraw(); }, "steps",
      )),
      checkbox("Smooth", false, (checked) => { state.smooth = checked; redraw(); }),
    ),
    chartHost, key,
  );
  trainingKey(key, state.metric);
}

/** Shows which dashes belong to which column if several are shown. */
function trainingKey(key, metric) {
  key.replaceChildren(...(metric.columns.length < 2 ? [] : metric.columns.map((column, index) => {
    const sample = svg("svg", { width: 34, height: 8, "aria-hidden": "true" });
    const pattern = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "11 4" }[DASHES[index % DASHES.length]];
    sample.append(svg("line", { x1: 0, x2: 34, y1: 4, y2: 4, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": pattern }));
    return el("span", {}, sample, column.label);
  })));
}

function trainingChart(comparison, legend, training, state) {
  const data = [];
  for (const run of training.runs) {
    if (!legend.shown[run.setting]) continue;
    const setting = comparison.settings[run.setting];
    const { colour, symbol } = style(run.setting);
    state.metric.columns.forEach((column, index) => {
      const series = run.series[column.name];
      if (!series) return;
      const y = state.smooth ? smoothed(series.values) : series.values;
      data.push({
        type: "scatter", mode: series.values.length < 30 ? "lines+markers" : "lines", x: run.axes[series.axis][state.axis], y,
        line: { color: colour, width: 1.8, dash: DASHES[index % DASHES.length] }, marker: { color: colour, symbol, size: 6 },
        opacity: setting.seeds > 1 ? 0.8 : 1,
        hovertemplate: `<b>${wrapped(setting.label)}</b><br>${plain(run.name)}<br>${plain(column.label)}: %{y:.4g}<br>${state.axis.slice(0, -1)} %{x}<extra></extra>`,
      });
    });
  }
  return {
    data,
    layout: {
      xaxis: { title: { text: state.axis, font: { size: 13 } } },
      yaxis: { title: { text: state.metric.unit, font: { size: 13 } }, exponentformat: "power" },
    },
  };
}

/** Means over a window of a tenth of the points around each one. */
function smoothed(values) {
  const reach = Math.max(1, Math.round(values.length / 20));
  return values.map((_, at) => {
    const near = values.slice(Math.max(0, at - reach), at + reach + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}
