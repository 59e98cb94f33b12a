"""``anydepth-quantize``: a bundle in int8, calibrated on images of a data set, with AP before and after."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from anydepth.config.compose import check_config, entry_point, instantiate
from anydepth.data.coco.layout import SPLIT_NAMES, SplitName
from anydepth.data.datamodule import DetectionDataModule
from anydepth.data.dataset import DetectionDataset
from anydepth.deploy.runtime.bundle import INT8_FORMATS, Bundle, read_bundle
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.deploy.runtime.engines import check_engine, check_graphs, choose_engine
from anydepth.deploy.runtime.hub_bundle import find_bundle
from anydepth.evaluation.classes import category_ids_of
from anydepth.evaluation.coco_eval import CocoEvaluator, EvaluationError
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.runs.job import check_output
from anydepth.runs.multirun import run_job
from anydepth.training.checkpointing.sigterm import terminate_on_sigterm
from anydepth.utils.arguments import check_count
from anydepth.utils.console import print_lines
from anydepth.utils.optional_packages import needing_packages

# Loss of AP, in [0, 1], above which int8 is not worth its speed.
_MAX_LOSS: Final = 0.01


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Quantise depths of a float bundle to a new bundle.

    Args:
        cfg: Configuration composed from ``conf/quantize.yaml``.

    Returns:
        ``mebibytes`` of the new bundle, number of ``depths``, and ``DEPTH/AP`` where it was measured; and the
        ``bundle``.

    Raises:
        ValueError: A setting, a bundle or a data set that cannot be used; the message says what to change.
        MissingPackageError: A package that this needs is not installed.
        EngineError: The engine in which AP is measured is not installed.
        ExportError: A folder that holds something else.
        QuantizationError: A bundle that cannot be quantised, or NNCF is not installed.
    """
    config = check_config(cfg, "quantize")
    if config["bundle"] is None:
        raise ValueError("bundle has no value: give bundle=FOLDER, a bundle that anydepth-export wrote")
    for name in (config["split"], config["calibration"]["split"]):
        if name not in SPLIT_NAMES:
            raise ValueError(f"got the split {name}, expected one of {', '.join(SPLIT_NAMES)}")
    count = check_count("calibration.images", config["calibration"]["images"])
    check_output(config["output"])
    source = read_bundle(find_bundle(config["bundle"]))
    depths = _parse_depths(config["depths"], source)
    graph_format = config["format"]
    if graph_format not in INT8_FORMATS:
        raise ValueError(f"got format={graph_format}, expected {' or '.join(INT8_FORMATS)}")
    if config["engine"] is not None:
        config["engine"] = choose_engine(config["engine"], graph_format)
        check_engine(config["engine"])
        check_graphs(config["engine"], graph_format, "int8")
    with needing_packages("int8", "the extras `export` and `int8` of this package"):
        from anydepth.deploy.export.int8_bundle import write_int8_bundle
    cfg = cfg.copy()
    cfg.data.input_size, cfg.data.fit = list(source.input.size), source.input.fit
    data: DetectionDataModule = instantiate(cfg.data)
    evaluate = None if config["engine"] is None else _evaluation(config, data, source, depths)
    with terminate_on_sigterm():
        bundle: Bundle = write_int8_bundle(
            source,
            depths,
            config["output"],
            _calibration_images(data, config["calibration"]["split"], count),
            evaluate=evaluate,
            graph_format=graph_format,
            on_step=print_lines,
        )
    size, before = _mebibytes(bundle), _mebibytes(source)
    print_lines(
        *(_describe(entry.figures, entry.float_figures, str(entry.config)) for entry in bundle.depths),
        *_warning(bundle),
        f"{size:.1f} MiB in {bundle.folder} (float, {len(source.depths)} depths: {before:.1f} MiB)",
    )
    figures = {f"{entry.config}/AP": entry.figures["AP"] for entry in bundle.depths if "AP" in entry.figures}
    return {"mebibytes": size, "depths": float(len(depths)), **figures}, {"bundle": bundle}


def _parse_depths(given: Any, bundle: Bundle) -> list[str]:
    """Return the texts of depths of a bundle.

    Raises:
        DepthError: A depth that was not exported.
    """
    if given is None or given == "all":
        return [str(entry.config) for entry in bundle.depths]
    listed = [given] if isinstance(given, str | int | float) else given
    return [str(bundle.depth(str(depth)).config) for depth in listed]


def _evaluation(
    config: Mapping[str, Any], data: DetectionDataModule, bundle: Bundle, depths: list[str]
) -> Callable[[Bundle], DepthCurve]:
    """Return the function that measures AP of a bundle; the ground truth is read once, and at once.

    Raises:
        EvaluationError: The split has no objects, or classes that the detector does not know.
    """
    from anydepth.deploy.evaluation import evaluate_bundle

    split: SplitName = config["split"]
    index = data.index(split)
    if not index.has_objects:
        raise EvaluationError(
            f"{index.json_path}: holds no annotations to measure AP with; choose another split, or "
            "engine=null for no AP"
        )
    evaluator = CocoEvaluator(
        ground_truth=index.to_coco_dict(),
        category_ids=category_ids_of(bundle.class_names, index.categories),
        backend=config["backend"],
    )

    def evaluate(one: Bundle) -> DepthCurve:
        detector = DeployedDetector(one, engine=config["engine"])
        return evaluate_bundle(detector, data.eval_dataloader(split), evaluator, depths)

    return evaluate


def _calibration_images(data: DetectionDataModule, split: SplitName, count: int) -> NDArray[np.uint8]:
    """Return [N, 3, H, W] uint8 of images spread over a split, as an evaluation resizes them."""
    dataset = data.eval_dataloader(split).dataset
    assert isinstance(dataset, DetectionDataset)
    # A data set may list its images class by class.
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    return np.stack([dataset[int(row)].image.numpy() for row in rows])


def _mebibytes(bundle: Bundle) -> float:
    return sum(file.bytes for file in bundle.files.values()) / 2**20


def _describe(after: Mapping[str, float], before: Mapping[str, float], depth: str) -> str:
    if "AP" not in after or "AP" not in before:
        return f"depth     {depth}: AP was not measured"
    return (
        f"depth     {depth}: AP {100 * before['AP']:.1f} in float, {100 * after['AP']:.1f} in int8 "
        f"({100 * (after['AP'] - before['AP']):+.1f})"
    )


def _warning(bundle: Bundle) -> list[str]:
    """Return a line that names the depths at which int8 costs more than a point of AP, if there are any."""
    lossy = [
        str(entry.config)
        for entry in bundle.depths
        if entry.float_figures.get("AP", 0.0) - entry.figures.get("AP", 0.0) > _MAX_LOSS
    ]
    if not lossy:
        return []
    return [
        f"Warning: at {', '.join(lossy)}, int8 loses more than {100 * _MAX_LOSS:.0f} AP in this engine; use "
        "the float bundle, or more images to calibrate with (calibration.images)"
    ]


def summarize(figures: Mapping[str, float]) -> str:
    """Return the figures of a quantisation in one line."""
    return f"{figures['depths']:.0f} depths, {figures['mebibytes']:.1f} MiB"


@entry_point("quantize")
def main(cfg: DictConfig) -> float | None:
    """Console script ``anydepth-quantize``."""
    return run_job(cfg, run, summarize)


if __name__ == "__main__":
    main()
