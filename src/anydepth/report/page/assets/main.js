// Builds the interactive parts of every section.

function start() {
  Theme.start();
  startTables();
  DATA.comparisons.forEach((comparison, index) => {
    const host = (name) => document.querySelector(`[data-part="${index}-${name}"]`);
    const legend = new Legend(comparison.settings);
    curveSection(host("curves"), comparison, legend);
    if (comparison.training) {
      trainingSection(host("training"), comparison, legend, comparison.training, "Training curves");
    }
    if (comparison.gradients) {
      trainingSection(host("gradients"), comparison, legend, comparison.gradients, "Gradients during training");
    }
    if (comparison.compatibility) compatibilitySection(host("compatibility"), comparison, comparison.compatibility);
    if (comparison.gallery) new Viewer(comparison, comparison.gallery).build(host("detections"));
    Charts.themed.push(() => legend.paint());
  });
  window.addEventListener("beforeprint", () => Charts.drawAll());
  document.documentElement.dataset.ready = "true";
}

start();
