"""``anydepth-export``: a bundle of several depths of saved weights, for machines without PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig

from anydepth import hub, zoo
from anydepth.config.compose import check_config, entry_point
from anydepth.deploy.runtime.bundle import DESCRIPTION, Bundle
from anydepth.evaluation.depth_curve import DepthCurve
from anydepth.runs.job import check_output
from anydepth.runs.multirun import run_job
from anydepth.training.checkpointing.sigterm import terminate_on_sigterm
from anydepth.utils.console import print_lines
from anydepth.utils.optional_packages import needing_packages

CURVE: Final = "depth_curve.json"


def run(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Export depths of saved weights to a bundle.

    Args:
        cfg: Configuration composed from ``conf/export.yaml``.

    Returns:
        ``mebibytes`` of the bundle and number of ``depths``, and the ``bundle``.

    Raises:
        ValueError: A setting or a file that cannot be used; the message says what to change.
        MissingPackageError: A package that this needs is not installed.
        ExportError: A detector or a folder that cannot be exported to.
        EngineError: The engine of the comparison is not installed.
        HubError: The hub cannot be reached, or refuses. The bundle is complete if it was written by then.
    """
    config = check_config(cfg, "export")
    folder = Path(config["output"])
    check_output(folder)
    if config["hub"] is not None:  # An export takes minutes.
        hub.check_publishing(config["hub"])
    detector = zoo.load_for_evaluation(config["weights"], config["input_size"])
    weights = detector.weights_file
    assert weights is not None, "anydepth.load sets it"
    depths = detector.resolve_list(config["depths"], specialised=True)
    curve = _read_curve(config["curve"], weights, detector.input_size)
    with needing_packages("exporting", "the extra `export` of this package"):
        from anydepth.deploy.export.bundle_writer import write_bundle
    with terminate_on_sigterm():
        bundle: Bundle = write_bundle(
            detector,
            depths,
            folder,
            batch=config["batch"],
            graph=config["graph"],
            graph_format=config["format"],
            selection=config["selection"],
            category_ids=config["category_ids"],
            curve=curve,
            engine=config["engine"],
            feature_grid=config["feature_grid"],
            license_id=config["license"],
            on_step=print_lines,
        )
    size = sum(file.bytes for file in bundle.files.values()) / 2**20
    print_lines(*_report(bundle, size, with_curve=curve is not None))
    if config["hub"] is not None:
        _publish(bundle, weights, config["hub"], private=config["private"])
    return {"mebibytes": size, "depths": float(len(bundle.depths))}, {"bundle": bundle}


def _publish(bundle: Bundle, weights: Path, name: str, *, private: bool) -> None:
    """Write a bundle and the weights that it was made of into a repository of the hub.

    Raises:
        HubError: The hub cannot be reached, or refuses; the message says that the bundle is complete.
    """
    names = (*bundle.files, DESCRIPTION)
    files = {hub.WEIGHTS: weights, **{file: bundle.folder / file for file in names}}
    try:
        address = hub.publish(name, files, private=private)
    except (hub.HubError, OSError) as error:
        raise hub.HubError(
            f"{error}. The bundle is complete in {bundle.folder}; `hf upload {name} {bundle.folder}` uploads "
            "it later"
        ) from error
    print_lines(f"published {address}")


def _read_curve(given: str | None, weights: Path, input_size: tuple[int, int]) -> DepthCurve | None:
    """Read the depth curve; the one beside the weights only counts if it was measured at this input size."""
    if given is None:
        return None
    path = weights.parent / CURVE if given == "auto" else Path(given)
    if not path.is_file():
        if given == "auto":
            return None
        raise ValueError(f"{path}: no such depth curve; give curve=FILE, or curve=null for none")
    curve = DepthCurve.from_json(path.read_text(encoding="utf-8"))
    if given == "auto" and tuple(curve.input_size) != tuple(input_size):
        print_lines(f"curve     {path} is of {curve.input_size} pixels and left out")
        return None
    return curve


def _report(bundle: Bundle, mebibytes: float, *, with_curve: bool) -> list[str]:
    lines = []
    for entry in bundle.depths:
        ap = f", AP {100 * entry.figures['AP']:.1f}" if "AP" in entry.figures else ""
        equal = ""
        if entry.equality:
            found = entry.equality["found"]
            equal = (
                f"; {found:.0%} of the best detections found, boxes within {entry.equality['boxes']:.1e} px"
            )
        lines.append(f"depth     {entry.config}: {2 * entry.gmacs:.2f} GFLOPs{ap}{equal}")
    missed = [str(entry.config) for entry in bundle.depths if entry.equality.get("found", 1.0) < 1]
    if missed:
        lines.append(
            f"Warning: at {', '.join(missed)}, {bundle.depths[0].equality_engine} does not find all that "
            "PyTorch finds. Weights that were hardly trained amplify rounding; with trained ones, compare AP"
        )
    if not with_curve:
        lines.append("no AP     is in the bundle: give curve=depth_curve.json of an evaluation")
    return [*lines, f"{mebibytes:.1f} MiB in {bundle.folder}"]


def summarize(figures: Mapping[str, float]) -> str:
    """Return the figures of an export in one line."""
    return f"{figures['depths']:.0f} depths, {figures['mebibytes']:.1f} MiB"


@entry_point("export", positional="weights")
def main(cfg: DictConfig) -> float | None:
    """Console script ``anydepth-export``."""
    return run_job(cfg, run, summarize)


if __name__ == "__main__":
    main()
