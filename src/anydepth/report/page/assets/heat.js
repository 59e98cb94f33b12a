// Similarity of the features of full and shallower depths, per stage: one heat map per setting.

function compatibilitySection(host, comparison, compatibility) {
  const state = { measure: 0 };
  const charts = [];
  const choose = (value) => { state.measure = Number(value); Charts.redraw(charts); };
  const options = compatibility.measures.map((measure, index) => ({ value: index, text: measure.label }));
  host.append(el("div", { className: "controls" }, field("Measure", select(options, choose, 0), "long")));
  const grid = el("div", { className: "heats" });
  for (const map of compatibility.maps) {
    const rows = map.stages.length;
    const chart = el("div", { className: "chart", attrs: { role: "img", "aria-label": `Compatibility of ${map.label}` } });
    chart.style.height = `${Math.max(230, 130 + 44 * rows)}px`;
    const numbered = map.depths.map((depth, at) => (depth.length <= 9 ? null : `${at + 1}: ${depth}`)).filter(Boolean);
    grid.append(el("figure", {}, el("figcaption", { textContent: map.label }), chart, el("p", { className: "soft small", textContent: numbered.join(" · ") })));
    charts.push(Charts.add(chart, () => heatChart(map, compatibility, state.measure)));
  }
  host.append(grid);
}

function heatChart(map, compatibility, index) {
  const measure = compatibility.measures[index];
  const values = map.values[index];
  const cells = values.flat().filter((value) => value !== null);
  // One scale for all settings, so that their maps are comparable.
  const scale = measure.scale;
  const short = map.depths.map((depth, at) => (depth.length <= 9 ? depth : `${at + 1}`));
  const text = values.map((row) => row.map((value) => (value === null ? "" : value.toFixed(2))));
  const light = Theme.dark() ? ["#2a1a4a", "#7b4bb3", "#f4c95d"] : ["#6a2c91", "#c98ac4", "#fbf3d5"];
  const colours = measure.best === 1 ? [[0, light[0]], [0.5, light[1]], [1, light[2]]] : [[0, light[2]], [0.5, light[1]], [1, light[0]]];
  return {
    data: [{
      type: "heatmap", x: map.depths.map((_, at) => at), y: map.stages, z: values, zmin: scale[0], zmax: scale[1],
      colorscale: colours, xgap: 2, ygap: 2, text: cells.length <= 160 && !PHONE.matches ? text : undefined,
      texttemplate: cells.length <= 160 && !PHONE.matches ? "%{text}" : undefined, textfont: { size: 12 },
      customdata: values.map((row) => row.map((_, at) => plain(map.depths[at]))),
      hovertemplate: "%{y} at <b>%{customdata}</b><br>" + plain(measure.label) + ": %{z:.4f}<extra></extra>",
      colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: css("--soft"), size: 11 } },
    }],
    layout: {
      margin: { l: 60, r: 10, t: 8, b: 60 },
      xaxis: { tickmode: "array", tickvals: map.depths.map((_, at) => at), ticktext: short.map(plain), title: { text: "depth", font: { size: 12 } }, showgrid: false },
      yaxis: { autorange: "reversed", type: "category", showgrid: false },
    },
  };
}
