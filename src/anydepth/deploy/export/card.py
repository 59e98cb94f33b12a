"""The model card of a bundle, for people."""

from collections.abc import Iterable, Sequence
from typing import Final

from anydepth.deploy.runtime.bundle import Bundle, BundledDepth
from anydepth.deploy.runtime.package_file import read_table
from anydepth.utils.messages import join_few

# Class names in a sentence: enough to recognise the data set.
_MAX_CLASSES: Final = 20


def model_card(bundle: Bundle) -> str:
    """Return the card in Markdown: what the bundle holds, what it is worth, and how to use it."""
    height, width = bundle.input.size
    fit = (
        "keeping the aspect ratio, with grey borders"
        if bundle.input.fit == "letter_box"
        else "each side on its own"
    )
    batch = bundle.input.batch or "any number of"
    engines = {"onnx": "onnxruntime or openvino", "torch": "torch"}.get(bundle.graph_format, "openvino")
    compiled = bundle.graph_format == "torch"
    depths = [str(entry.config) for entry in bundle.depths]
    return "\n".join(
        [
            *_front_matter(bundle),
            f"# {bundle.detector}, {len(depths)} depths",
            "",
            "An any-depth object detector: one set of weights (`weights.bin`) and "
            f"{_graphs(bundle.depths)}. The depth is chosen for each image.",
            "",
            *_depth_table(bundle.depths),
            "",
            f"- Classes ({len(bundle.class_names)}): "
            f"{join_few([*map(_escape, bundle.class_names)], _MAX_CLASSES)}",
            f"- Input: {batch} RGB images of {height} x {width} pixels in [0, 1], resized {fit}",
            *_selection_lines(bundle),
            *_feature_lines(bundle),
            *_precision_lines(bundle),
            *(_code_lines(bundle) if compiled else []),
            f"- Boxes are scored {'clipped' if bundle.clips_boxes else 'unclipped'}; `predict` clips them",
            f"- Made with {', '.join(f'{name} {text}' for name, text in bundle.versions.items())}",
            "",
            "## Use",
            "",
            "```python",
            f"from anydepth.deploy import load  # needs numpy, Pillow and {engines}"
            + ("" if compiled else ", not torch"),
            "",
            "# This folder, or the name OWNER/NAME of its repository on the Hugging Face hub.",
            'detector = load("FOLDER", trust_code=True)'
            if compiled
            else f'detector = load("FOLDER", engine="{engines.split()[0]}")',
            f'detections = detector.predict("photo.jpg", depth="{depths[-1]}")',
            "```",
            "",
        ]
    )


def _graphs(depths: Sequence[BundledDepth]) -> str:
    shared = depths[0].number is not None
    return f"one graph for all depths (`{depths[0].graph}`)" if shared else "one graph per depth"


def _front_matter(bundle: Bundle) -> list[str]:
    """Return the metadata in YAML by which the Hugging Face hub lists a model; elsewhere it does no harm."""
    return [
        "---",
        "library_name: anydepth",
        "pipeline_tag: object-detection",
        *([f"license: {bundle.license}"] if bundle.license else []),
        "tags:",
        "- any-depth",
        f"- {bundle.graph_format}",
        "---",
        "",
    ]


def _selection_lines(bundle: Bundle) -> list[str]:
    if not bundle.selects:
        return []
    return [
        "- Graphs select detections: inputs `images` and `threshold` (lowest score), outputs `boxes` in"
        " pixels of the input, `scores`, `labels` and `counts`, see `bundle.json`"
    ]


def _feature_lines(bundle: Bundle) -> list[str]:
    if bundle.features is None:
        return []
    return [f"- Graphs also return feature maps for a router of depths: {bundle.features}, see `bundle.json`"]


def _code_lines(bundle: Bundle) -> list[str]:
    """Return what the reader must know of machine code: its risk, and where it runs."""
    table = read_table((bundle.folder / bundle.depths[0].graph).read_bytes())
    return [
        "- **Holds machine code**, which can do whatever the program that loads it can: load it only if you "
        "trust who made it",
        f"- Compiled by PyTorch {table.torch} for {table.machine} processors with "
        f"{', '.join(table.instructions)}; it runs with this version, on processors that have all of these",
    ]


def _precision_lines(bundle: Bundle) -> list[str]:
    if bundle.precision == "fp32":
        return []
    before = [
        f"`{entry.config}` {_percent(entry.float_figures['AP'])}"
        for entry in bundle.depths
        if "AP" in entry.float_figures
    ]
    return [
        f"- Numbers: {bundle.precision}"
        + (f"; AP of the float bundle: {', '.join(before)}" if before else "")
    ]


def _depth_table(depths: Sequence[BundledDepth]) -> list[str]:
    heading = ["depth", "GFLOPs", "parameters run", "AP", "AP50", "found", "boxes differ (px)"]
    rows = [
        [
            f"`{entry.config}`",
            f"{2 * entry.gmacs:.2f}",
            f"{entry.parameters / 1e6:.2f} M",
            _percent(entry.figures.get("AP")),
            _percent(entry.figures.get("AP50")),
            _percent(entry.equality.get("found")),
            f"{entry.equality['boxes']:.1e}" if "boxes" in entry.equality else "-",
        ]
        for entry in depths
    ]
    return [
        *map(_row, [heading, ["---"] * len(heading), *rows]),
        "",
        "AP in percent, of the depth curve that was given to the export. `found`: share of PyTorch's 30 best "
        "detections of each image that the graph finds, measured at the export.",
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _escape(text: str) -> str:
    """Return a text without characters that Markdown or HTML gives a meaning."""
    return "".join(f"&#{ord(letter)};" if letter in "<>&`*_[]|\\" else letter for letter in text).replace(
        "\n", " "
    )
