// Shared by all parts of the page: data, elements, colours, theme, and charts that are drawn lazily.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PHONE = window.matchMedia("(max-width: 600px)");
const COARSE = window.matchMedia("(pointer: coarse)");
const PREFERS_DARK = window.matchMedia("(prefers-color-scheme: dark)");
const SVG = "http://www.w3.org/2000/svg";

// Colours that colour-blind readers can distinguish (checked by a test), with symbols as a second cue.
const PALETTES = {
  light: DATA.palettes.light,
  dark: DATA.palettes.dark,
};
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "pentagon", "star", "hexagon"];
const SYMBOL_TEXT = ["●", "■", "◆", "▲", "✚", "✖", "▼", "⬟", "★", "⬢"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
// For photographs: bright colours, as every line has a dark outline.
const CLASS_COLOURS = [
  "#4cc9ff", "#ffb000", "#5be37d", "#ff7ac6", "#b79cff", "#ffe94a", "#ff8552", "#62f0dc", "#d3d9df", "#9fd356",
];

/** Creates an element with properties, attributes (in `attrs`) and children; text is never parsed as HTML. */
function el(tag, properties = {}, ...children) {
  const { attrs = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(attrs)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attrs = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attrs)) element.setAttribute(name, value);
  return element;
}

function select(options, onchange, value) {
  const list = el("select");
  let group = null;
  for (const option of options) {
    if (option.group && (!group || group.label !== option.group)) {
      group = el("optgroup", { label: option.group });
      list.append(group);
    }
    (option.group ? group : list).append(el("option", { value: option.value, textContent: option.text }));
  }
  if (value !== undefined) list.value = value;
  list.addEventListener("change", () => onchange(list.value));
  return list;
}

function field(text, control, className = "") {
  return el("label", { className }, el("span", { textContent: text, className: "soft small" }), control);
}

function checkbox(text, checked, onchange) {
  const box = el("input", { type: "checkbox", checked });
  box.addEventListener("change", () => onchange(box.checked));
  return el("label", {}, box, el("span", { textContent: text }));
}

function segments(name, options, onchange, value) {
  const buttons = options.map((option) => {
    const button = el("button", { type: "button", textContent: option.text, attrs: { "aria-pressed": option.value === value } });
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      onchange(option.value);
    });
    return button;
  });
  return el("div", { className: "segments", attrs: { role: "group", "aria-label": name } }, ...buttons);
}

function fixed(value, digits) {
  return value === null || value === undefined ? "-" : Number(value).toFixed(digits);
}

/** Escapes text for hover boxes of charts, which interpret some HTML tags. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// -- theme ------------------------------------------------------------------------------------------------

const Theme = {
  choice: "auto",
  dark() {
    return this.choice === "auto" ? PREFERS_DARK.matches : this.choice === "dark";
  },
  apply() {
    document.documentElement.dataset.theme = this.dark() ? "dark" : "light";
    const button = document.getElementById("theme");
    button.textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[this.choice];
    button.setAttribute("aria-label", `Theme: ${this.choice}. Change theme`);
  },
  start() {
    try {
      const kept = localStorage.getItem("anydepth-theme");
      this.choice = ["light", "dark"].includes(kept) ? kept : "auto";
    } catch { /* browsers may deny storage to local files */ }
    this.apply();
    document.getElementById("theme").addEventListener("click", () => {
      this.choice = { auto: "light", light: "dark", dark: "auto" }[this.choice];
      try { localStorage.setItem("anydepth-theme", this.choice); } catch { /* as above */ }
      this.apply();
      Charts.redraw();
    });
    PREFERS_DARK.addEventListener("change", () => { this.apply(); Charts.redraw(); });
  },
};

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Style of a setting in every chart, by its number: colour, symbol, and other dashes if colours repeat. */
function style(index) {
  const colours = PALETTES[Theme.dark() ? "dark" : "light"];
  return {
    colour: colours[index % colours.length],
    symbol: SYMBOLS[index % SYMBOLS.length],
    dash: DASHES[Math.floor(index / colours.length) % DASHES.length],
  };
}

function faded(colour, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

// -- charts -----------------------------------------------------------------------------------------------

const Charts = {
  all: [],
  /** `build` returns traces and layout each time the chart is drawn: on entering the view, and on changes. */
  add(host, build) {
    const chart = { host, build, drawn: false };
    this.all.push(chart);
    host.chart = chart;
    this.watch.observe(host);
    return chart;
  },
  draw(chart) {
    chart.drawn = true;
    const { data, layout } = chart.build();
    Plotly.react(chart.host, data, frame(layout), {
      responsive: true,
      displaylogo: false,
      // By default, plotly.js offers to upload charts to the service of its vendor.
      showSendToCloud: false,
      plotlyServerURL: "",
      displayModeBar: COARSE.matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  },
  /** Callbacks that also run on a change of theme. */
  themed: [],
  redraw(charts = this.all) {
    for (const repaint of this.themed) repaint();
    for (const chart of charts) if (chart.drawn) this.draw(chart);
  },
  /** Draws what has not come into view yet, so that all of it is printed. */
  drawAll() {
    for (const chart of this.all) if (!chart.drawn) this.draw(chart);
  },
  watch: new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      Charts.watch.unobserve(entry.target);
      Charts.draw(entry.target.chart);
    }
  }, { rootMargin: "400px" }),
};

function frame(layout) {
  const axis = {
    gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--line"),
    tickfont: { color: css("--soft"), size: 12 }, automargin: true, zeroline: false, ticks: "outside", tickcolor: css("--line"),
  };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", color: css("--ink"), size: 13 },
    margin: { l: 50, r: 14, t: 12, b: 46 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 13 }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
    dragmode: COARSE.matches ? false : "zoom",
    ...layout,
  };
  merged.xaxis = { ...axis, ...layout.xaxis };
  merged.yaxis = { ...axis, ...layout.yaxis };
  return merged;
}

// -- settings shown ----------------------------------------------------------------------------------------

/** Settings of one comparison shown in its charts, toggled by chips in every copy of the legend. */
class Legend {
  constructor(settings) {
    this.settings = settings;
    this.shown = settings.map(() => true);
    this.chips = [];
    this.listeners = [];
  }

  /** Returns a row of chips; hidden with a single setting, which cannot be toggled. */
  row() {
    const list = el("ul", { className: "legend", attrs: { "aria-label": "Settings shown in the charts" } });
    if (this.settings.length < 2) return el("div", { hidden: true });
    this.settings.forEach((setting, index) => {
      const mark = svg("svg", { width: 26, height: 14, "aria-hidden": "true" });
      const chip = el(
        "button",
        { type: "button", className: "chip", title: "Click to show or hide, double-click to show only this one" },
        mark, el("span", { className: "name", textContent: setting.label }),
      );
      chip.addEventListener("click", () => this.toggle(index));
      chip.addEventListener("dblclick", () => this.only(index));
      this.chips.push({ chip, mark, index });
      list.append(el("li", {}, chip));
    });
    const all = el("button", { type: "button", className: "chip", textContent: "Show all" });
    all.addEventListener("click", () => { this.shown.fill(true); this.changed(); });
    list.append(el("li", {}, all));
    this.paint();
    return list;
  }

  toggle(index) {
    this.shown[index] = !this.shown[index];
    this.changed();
  }

  only(index) {
    this.shown = this.shown.map((_, other) => other === index);
    this.changed();
  }

  changed() {
    this.paint();
    for (const listener of this.listeners) listener();
  }

  paint() {
    for (const { chip, mark, index } of this.chips) {
      const { colour, dash } = style(index);
      chip.setAttribute("aria-pressed", this.shown[index]);
      const pattern = { solid: "", dash: "5 3", dot: "2 2", dashdot: "5 2 2 2", longdash: "8 3" }[dash];
      const line = svg("line", { x1: 0, x2: 26, y1: 7, y2: 7, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": pattern });
      const dot = svg("text", { x: 13, y: 12, "text-anchor": "middle", "font-size": 14, fill: colour });
      dot.textContent = SYMBOL_TEXT[index % SYMBOL_TEXT.length];
      mark.replaceChildren(line, dot);
    }
  }
}
