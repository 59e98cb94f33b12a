// Viewer of the same pictures at every depth, with a slider from full to minimal depth.

class Viewer {
  constructor(comparison, gallery) {
    this.gallery = gallery;
    this.settings = gallery.settings;
    this.labels = this.settings.map((entry) => comparison.settings[entry.setting].label);
    this.picture = 0;
    this.first = 0;
    // Second pane: "none", the same setting at full depth ("full"), or the number of another setting.
    this.second = this.settings.length > 1 ? "1" : "full";
    this.step = 0;
    this.threshold = gallery.threshold;
    this.truth = true;
    this.tags = true;
    this.hidden = new Set();
    this.timer = null;
  }

  get depths() {
    return this.settings[this.first].depths;
  }

  build(host) {
    this.slider = el("input", { type: "range", min: 0, max: this.depths.length - 1, step: 1, value: 0, attrs: { "aria-label": "Depth, from full to minimal" } });
    this.slider.addEventListener("input", () => { this.stop(); this.step = Number(this.slider.value); this.paint(); });
    this.playButton = el("button", { type: "button", className: "play", textContent: "▶", attrs: { "aria-label": "Play through the depths" } });
    this.playButton.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    this.now = el("div", { className: "now" });
    this.panes = el("div", { className: "panes" });
    this.thumbs = el("div", { className: "thumbs", attrs: { role: "group", "aria-label": "Pictures" } });
    this.classes = el("ul", { className: "legend", attrs: { "aria-label": "Classes shown" } });
    this.stops = el("div", { className: "stops", attrs: { role: "group", "aria-label": "Depths" } });
    host.append(el(
      "div", { className: "viewer" },
      this.chooser(),
      el(
        "div", { className: "depthbar" }, this.now,
        el("div", { className: "row" }, this.playButton, el("div", { className: "track" }, this.stops, this.slider)),
        el("p", { className: "soft small stopkey", textContent: "Bars: GFLOPs from full to minimal" }),
      ),
      this.panes, this.thumbs, this.options(), this.classes,
    ));
    this.openPictures();
    new ResizeObserver(() => this.scaleTags()).observe(this.panes);
  }

  chooser() {
    const settings = this.labels.map((text, value) => ({ value: String(value), text }));
    const fixedChoices = [{ value: "none", text: "nothing" }, { value: "full", text: "same setting at full depth" }];
    const secondList = select([...fixedChoices, ...settings], (value) => { this.second = value; this.panesChanged(); }, this.second);
    const controls = el("div", { className: "controls" });
    if (settings.length > 1) {
      controls.append(field("Setting", select(settings, (value) => {
        this.first = Number(value);
        this.step = Math.min(this.step, this.depths.length - 1);
        this.slider.max = this.depths.length - 1;
        this.openPictures();
      }, "0"), "long"));
    }
    controls.append(field("Compare with", secondList, "long"));
    return controls;
  }

  options() {
    const value = el("output", { textContent: this.threshold.toFixed(2) });
    const range = el("input", { type: "range", min: 0.05, max: 0.95, step: 0.05, value: this.threshold, attrs: { "aria-label": "Minimum score of the boxes shown" } });
    range.addEventListener("input", () => {
      this.threshold = Number(range.value);
      value.textContent = this.threshold.toFixed(2);
      this.paint();
    });
    range.dataset.role = "threshold";
    return el(
      "div", { className: "controls" }, field("Minimum score", range), value,
      checkbox("Labels", true, (checked) => { this.tags = checked; this.paint(); }),
      checkbox("Ground truth", true, (checked) => { this.truth = checked; this.paint(); }),
    );
  }

  openPictures() {
    this.paintStops();
    const pictures = this.settings[this.first].pictures;
    this.picture = Math.min(this.picture, pictures.length - 1);
    this.thumbs.replaceChildren(...pictures.map((picture, index) => {
      const image = el("img", { src: DATA.images[picture.image].uri, alt: `Picture ${picture.id}`, loading: "lazy" });
      const button = el("button", { type: "button", attrs: { "aria-pressed": index === this.picture } }, image);
      button.addEventListener("click", () => {
        this.picture = index;
        for (const other of this.thumbs.children) other.setAttribute("aria-pressed", other === button);
        this.panesChanged();
      });
      return button;
    }));
    this.panesChanged();
  }

  /** Draws a bar per depth over the stops of the slider, with a height proportional to its cost. */
  paintStops() {
    const most = Math.max(...this.depths.map((depth) => depth.gflops)) || 1;
    const last = Math.max(1, this.depths.length - 1);
    this.stops.replaceChildren(...this.depths.map((depth, index) => {
      const bar = el("i");
      bar.style.height = `${(36 * depth.gflops) / most}px`;
      // With many depths, costs do not fit side by side and are shown above the slider only.
      const figure = this.depths.length <= (PHONE.matches ? 7 : 16) ? fixed(depth.gflops, depth.gflops < 10 ? 2 : 0) : "";
      const stop = el("button", { type: "button", title: depth.depth, attrs: { "aria-label": depth.depth, tabindex: -1 } }, bar, figure);
      stop.style.left = `${(100 * index) / last}%`;
      stop.addEventListener("click", () => {
        this.stop();
        this.step = index;
        this.slider.value = index;
        this.paint();
      });
      return stop;
    }));
  }

  /** Rebuilds the panes of the picture, each with a setting that follows the slider or stays at full depth. */
  panesChanged() {
    const chosen = [{ entry: this.settings[this.first], label: this.labels[this.first], follows: true }];
    if (this.second === "full") chosen.push({ ...chosen[0], follows: false });
    else if (this.second !== "none") {
      chosen.push({ entry: this.settings[this.second], label: this.labels[this.second], follows: true });
    }
    const image = this.settings[this.first].pictures[this.picture].image;
    this.shown = chosen.map((pane) => this.pane(pane, image));
    this.panes.replaceChildren(...this.shown.map((pane) => pane.figure));
    this.paint();
  }

  pane({ entry, label, follows }, image) {
    const { uri, width, height } = DATA.images[image];
    const picture = entry.pictures.find((candidate) => candidate.image === image);
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const img = el("img", { src: uri, width, height, alt: `Picture ${picture ? picture.id : ""}: ${label}` });
    const caption = el("figcaption");
    const figure = el(
      "figure", { className: "pane" },
      el("div", { className: "stage" }, el("div", { className: "frame" }, img, drawing)), caption,
    );
    figure.style.setProperty("--ratio", width / height);
    return { figure, drawing, caption, entry, label, follows, picture, img, width };
  }

  play() {
    this.playButton.textContent = "❚❚";
    this.playButton.setAttribute("aria-label", "Stop");
    this.timer = setInterval(() => {
      this.step = (this.step + 1) % this.depths.length;
      this.slider.value = this.step;
      this.paint();
    }, 900);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.playButton.textContent = "▶";
    this.playButton.setAttribute("aria-label", "Play through the depths");
  }

  /** Index of a pane's depth: the slider's depth, or if the setting lacks it, the same relative position. */
  depthOf(pane) {
    if (!pane.follows) return 0;
    const same = pane.entry.depths.findIndex((depth) => depth.depth === this.depths[this.step].depth);
    if (same >= 0) return same;
    return Math.round((this.step / Math.max(1, this.depths.length - 1)) * (pane.entry.depths.length - 1));
  }

  paint() {
    const depth = this.depths[this.step];
    const full = this.depths[0].gflops;
    [...this.stops.children].forEach((stop, index) => stop.setAttribute("aria-pressed", index === this.step));
    this.slider.setAttribute("aria-valuetext", `${depth.depth}, ${fixed(depth.gflops, 2)} GFLOPs`);
    this.now.replaceChildren(
      el("strong", { textContent: depth.depth }),
      el("span", { textContent: `${fixed(depth.gflops, 2)} GFLOPs` }),
      el("span", { className: "soft", textContent: full ? `${Math.round((100 * depth.gflops) / full)} % of the cost of full` : "" }),
      depth.ap === null ? null : el("span", { className: "soft", textContent: `AP ${fixed(depth.ap, 1)} on all images` }),
    );
    for (const pane of this.shown) this.paintPane(pane);
    this.paintClasses();
    this.scaleTags();
  }

  paintPane(pane) {
    const at = this.depthOf(pane);
    const depth = pane.entry.depths[at];
    const lines = [el("b", { textContent: pane.label })];
    if (this.settings.length > 1 || this.shown.length > 1) lines.push(` · ${depth.depth}`);
    if (!pane.picture) {
      pane.drawing.replaceChildren();
      pane.caption.replaceChildren(...lines, el("br"), "no detections stored for this picture");
      return;
    }
    const boxes = pane.picture.found[at].filter((box) => box[4] >= this.threshold && !this.hidden.has(box[5]));
    const truth = pane.picture.truth.filter((box) => !this.hidden.has(box[5]));
    const { missed, found } = matchTruth(boxes, truth);
    pane.drawing.replaceChildren();
    if (this.truth) {
      truth.forEach((box, index) => {
        pane.drawing.append(rectangle(box, "truthhalo"), rectangle(box, missed.has(index) ? "truth missed" : "truth"));
      });
    }
    for (const box of [...boxes].reverse()) this.paintBox(pane, box);
    const result = `${found} of ${truth.length} objects found, ${boxes.length - found} other ${boxes.length - found === 1 ? "box" : "boxes"}`;
    pane.caption.replaceChildren(...lines, el("br"), el("span", { className: "result", textContent: result }));
  }

  paintBox(pane, box) {
    const colour = CLASS_COLOURS[box[5] % CLASS_COLOURS.length];
    const line = rectangle(box, "box");
    line.setAttribute("stroke", colour);
    const title = svg("title");
    const label = `${this.className(box[5])} ${(100 * box[4]).toFixed(0)} %`;
    title.textContent = label;
    line.append(title);
    pane.drawing.append(rectangle(box, "halo"), line);
    if (!this.tags) return;
    const group = svg("g", { class: "tagged", "data-x": box[0], "data-y": box[1] });
    group.append(svg("rect", { fill: colour }), svg("text", { class: "tag", fill: "#0b0f13" }));
    group.lastChild.textContent = label;
    pane.drawing.append(group);
  }

  className(label) {
    return this.gallery.classes[label] ?? `class ${label}`;
  }

  /** Keeps the text size of labels on the screen, whatever the scale of the picture. */
  scaleTags() {
    for (const pane of this.shown || []) {
      const scale = pane.width / (pane.img.clientWidth || pane.width);
      for (const group of pane.drawing.querySelectorAll(".tagged")) {
        const [rect, text] = group.children;
        const wide = (6.4 * text.textContent.length + 6) * scale;
        const x = Math.max(0, Math.min(Number(group.dataset.x), pane.width - wide));
        const y = Math.max(0, Number(group.dataset.y) - 14 * scale);
        for (const [name, value] of Object.entries({ x, y, width: wide, height: 14 * scale })) rect.setAttribute(name, value);
        text.setAttribute("x", x + 3 * scale);
        text.setAttribute("y", y + 10.5 * scale);
        text.style.fontSize = `${11 * scale}px`;
      }
    }
  }

  /** Draws chips that toggle the classes in this picture. */
  paintClasses() {
    const present = new Set();
    for (const pane of this.shown) {
      if (!pane.picture) continue;
      for (const box of pane.picture.truth) present.add(box[5]);
      for (const box of pane.picture.found[this.depthOf(pane)]) if (box[4] >= this.threshold) present.add(box[5]);
    }
    if (document.activeElement && this.classes.contains(document.activeElement)) return;
    this.classes.replaceChildren(...[...present].sort((a, b) => a - b).map((label) => {
      const dot = svg("svg", { width: 12, height: 12, "aria-hidden": "true" });
      dot.append(svg("rect", { width: 12, height: 12, rx: 3, fill: CLASS_COLOURS[label % CLASS_COLOURS.length], stroke: "#0008" }));
      const chip = el(
        "button", { type: "button", className: "chip", attrs: { "aria-pressed": !this.hidden.has(label) } },
        dot, el("span", { className: "name", textContent: this.className(label) }),
      );
      chip.addEventListener("click", () => {
        if (!this.hidden.delete(label)) this.hidden.add(label);
        chip.setAttribute("aria-pressed", !this.hidden.has(label));
        this.paint();
      });
      return el("li", {}, chip);
    }));
  }
}

function rectangle(box, className) {
  return svg("rect", { class: className, x: box[0], y: box[1], width: Math.max(0, box[2] - box[0]), height: Math.max(0, box[3] - box[1]) });
}

/** Matches boxes, best score first, with objects of their class at an IoU of at least 0.5; each box counts once. */
function matchTruth(boxes, truth) {
  const missed = new Set(truth.keys());
  let found = 0;
  for (const box of [...boxes].sort((a, b) => b[4] - a[4])) {
    let best = null;
    for (const index of missed) {
      const overlap = truth[index][5] === box[5] ? iou(box, truth[index]) : 0;
      if (overlap >= 0.5 && (!best || overlap > best.overlap)) best = { index, overlap };
    }
    if (best) {
      missed.delete(best.index);
      found += 1;
    }
  }
  return { missed, found };
}

function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}
