"""Cost of a data set of COCO's size: seconds to load its json, and memory of the index per process.

Usage: ``python scripts/benchmark_index.py`` (COCO train2017's size), or smaller with ``--annotations 100000``

A json of COCO's shape (polygons, crowd regions with run lengths, ids with gaps, unordered annotations) is
written into a temporary folder and loaded in fresh processes: with the index, with the index and its
outlines, and with pycocotools, which keeps dictionaries. Memory is measured by the kernel (Linux): RSS counts
every page of a process, USS only those that no other process shares. "Steady" is after every row and array
has been read once. Then workers, started with each of Python's start methods, read every row; the growth of
their USS is the cost of each worker. 1 MB is 10^6 bytes.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from pycocotools.coco import COCO

from anydepth.data.coco.categories import read_categories
from anydepth.data.coco.index import CocoIndex

START_METHODS = ("fork", "spawn", "forkserver")
# COCO's own 80 category ids leave out these of 1 to 90.
ID_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COORDINATES = 48  # per outline on average: makes the json as large as instances_train2017.json


@dataclass(frozen=True)
class Shape:
    """Size of the data set."""

    images: int
    annotations: int
    crowd: int


def write_data_set(folder: Path, shape: Shape, seed: int = 0) -> tuple[Path, Path]:
    """Write a json of COCO's shape and one empty file per image; return the json and the image folder."""
    random = np.random.default_rng(seed)
    images = folder / "train2017"
    images.mkdir()
    image_ids = np.sort(random.choice(600_000, shape.images, replace=False))
    random.shuffle(image_ids)
    for image_id in image_ids.tolist():
        (images / f"{image_id:012}.jpg").touch()
    path = folder / "instances_train2017.json"
    with path.open("w", encoding="utf-8") as file:
        _write_json(file, random, shape, image_ids)
    return path, images


def _write_json(file: TextIO, random: np.random.Generator, shape: Shape, image_ids: np.ndarray) -> None:
    file.write('{"info": {"description": "COCO-sized", "year": 2017}, "licenses": [], "images": [')
    entries = (
        f'{{"license": 3, "file_name": "{image_id:012}.jpg", "coco_url": '
        f'"http://images.example.org/train2017/{image_id:012}.jpg", "height": 480, "width": 640, '
        f'"date_captured": "2013-11-14 11:18:45", "id": {image_id}}}'
        for image_id in image_ids.tolist()
    )
    _write_list(file, entries)
    file.write('], "annotations": [')
    _write_list(file, _annotations(random, shape, image_ids))
    categories = [
        {"supercategory": "thing", "id": number, "name": f"class {number}"}
        for number in range(1, 91)
        if number not in ID_GAPS
    ]
    file.write(f'], "categories": {json.dumps(categories)}}}')


def _write_list(file: TextIO, entries: Iterator[str]) -> None:
    for position, entry in enumerate(entries):
        file.write(", " + entry if position else entry)


def _annotations(random: np.random.Generator, shape: Shape, image_ids: np.ndarray) -> Iterator[str]:
    """Yield the text of each annotation; outlines are reused, because generating each takes minutes."""
    count = shape.annotations
    polygons = [_polygon(random) for _ in range(4096)]
    run_lengths = [str(random.integers(1, 900, 300).tolist()) for _ in range(64)]
    category_ids = [number for number in range(1, 91) if number not in ID_GAPS]
    owners = random.choice(image_ids, count).tolist()
    kinds = random.choice(category_ids, count).tolist()
    boxes = random.uniform((0, 0, 4, 4), (400, 300, 240, 180), (count, 4)).round(2).tolist()
    choice = random.integers(0, len(polygons), count).tolist()
    crowd = np.zeros(count, dtype=np.bool_)
    crowd[random.choice(count, shape.crowd, replace=False)] = True
    for position, (owner, kind, box, chosen, is_crowd) in enumerate(
        zip(owners, kinds, boxes, choice, crowd.tolist(), strict=True)
    ):
        outline = (
            f'{{"counts": {run_lengths[chosen % len(run_lengths)]}, "size": [480, 640]}}'
            if is_crowd
            else polygons[chosen]
        )
        annotation_id = 900_100_000_000 + position if is_crowd else 2 * position + 1
        yield (
            f'{{"segmentation": {outline}, "area": {0.6 * box[2] * box[3]:.6f}, "iscrowd": {int(is_crowd)}, '
            f'"image_id": {owner}, "bbox": {box}, "category_id": {kind}, "id": {annotation_id}}}'
        )


def _polygon(random: np.random.Generator) -> str:
    rings = [2 * max(3, round(random.gamma(1.5, COORDINATES / 3)))]
    if random.uniform() < 0.1:
        rings.append(int(2 * random.integers(3, 20)))
    # As in COCO's own files, without spaces.
    outline = [random.uniform(0, 640, count).round(2).tolist() for count in rings]
    return json.dumps(outline, separators=(",", ":"))


# -- memory --------------------------------------------------------------------------------------------------


def memory_mb() -> dict[str, float]:
    """Return RSS, PSS and USS of this process in MB."""
    amounts: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
        key, value = line.split()[:2]
        amounts[key.rstrip(":")] = int(value) * 1024
    uss = sum(amounts[key] for key in ("Private_Clean", "Private_Dirty"))
    return {"rss": amounts["Rss"] / 1e6, "pss": amounts["Pss"] / 1e6, "uss": uss / 1e6}


def peak_rss_mb() -> float:
    """Return the highest RSS of this process since :func:`reset_peak`, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no VmHWM: memory is measured on Linux only")


def reset_peak() -> None:
    """Reset the high-water mark, which imports have raised."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _added(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {f"added_{key}_mb": round(now[key] - before[key], 1) for key in now}


# -- measurements --------------------------------------------------------------------------------------------


def walk_index(index: CocoIndex) -> int:
    """Read every row as a data loader does; return the number of boxes."""
    boxes = 0
    for row in range(len(index)):
        index.path(row)
        boxes += len(index.training_boxes(row)[0])
        index.outlines_of(row)
    return boxes


def walk_pycocotools(coco: COCO) -> int:
    """Read the same rows from pycocotools' dictionaries; return the number of boxes."""
    boxes = 0
    for image_id in coco.getImgIds():
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image_id], iscrowd=False))
        boxes += len(np.array([annotation["bbox"] for annotation in found]).reshape(-1, 4))
    return boxes


def measure_index(path: Path, images: Path, outlines: bool, workers: int) -> dict[str, Any]:
    """Load the index in this process, read it, and let workers read it."""
    before = memory_mb()
    reset_peak()
    start = time.perf_counter()
    index = CocoIndex.load(path, images, for_training=True, outlines=outlines)
    seconds = time.perf_counter() - start
    peak = peak_rss_mb() - before["rss"]
    loaded = _added(memory_mb(), before)
    boxes = walk_index(index)
    for array in (index.areas, index.annotation_ids):  # Only evaluation reads these.
        array.max()
    return {
        "seconds": round(seconds, 2),
        "peak_rss_mb": round(peak),
        "arrays_mb": round(index.nbytes / 1e6, 1),
        "after_loading": loaded,
        "steady": _added(memory_mb(), before),
        "workers_uss_growth_mb": {
            method: _worker_growth(index, walk_index, boxes, method, workers) for method in START_METHODS
        },
    }


def measure_pycocotools(path: Path, workers: int) -> dict[str, Any]:
    """Measure pycocotools; workers are only forked, because spawned ones would each copy everything."""
    before = memory_mb()
    reset_peak()
    start = time.perf_counter()
    coco = COCO(str(path))
    seconds = time.perf_counter() - start
    peak = peak_rss_mb() - before["rss"]
    return {
        "seconds": round(seconds, 2),
        "peak_rss_mb": round(peak),
        "after_loading": _added(memory_mb(), before),
        "workers_uss_growth_mb": {
            "fork": _worker_growth(coco, walk_pycocotools, walk_pycocotools(coco), "fork", workers)
        },
    }


def measure_categories(path: Path) -> dict[str, Any]:
    """Measure reading the categories alone."""
    before = memory_mb()
    reset_peak()
    start = time.perf_counter()
    read_categories(path)
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "peak_rss_mb": round(peak_rss_mb() - before["rss"]),
        **_added(memory_mb(), before),
    }


def _worker_growth(
    data: Any, walk: Callable[[Any], int], boxes: int, method: str, workers: int
) -> list[float]:
    """Return by how many MB the USS of each worker grows while it reads every row."""
    context: Any = multiprocessing.get_context(method)
    started = []
    for _ in range(workers):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(data, walk, boxes, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    growth = []
    for process, receiver in started:
        growth.append(round(receiver.recv(), 1))
        process.join()
    return growth


def _work(data: Any, walk: Callable[[Any], int], boxes: int, sender: Connection) -> None:
    before = memory_mb()["uss"]
    if walk(data) != boxes:
        raise RuntimeError("a worker reads other boxes than the process that started it")
    sender.send(memory_mb()["uss"] - before)


def in_new_process(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Call a function in a process that has loaded nothing yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--crowd", type=int, default=10_000, help="crowd regions among the annotations")
    parser.add_argument("--workers", type=int, default=2, help="worker processes per start method")
    parser.add_argument("--only-index", action="store_true", help="leave out outlines and pycocotools")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder (default: $TMPDIR)")
    arguments = parser.parse_args()
    shape = Shape(arguments.images, arguments.annotations, arguments.crowd)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, images = write_data_set(Path(folder), shape)
        result: dict[str, object] = {
            "images": shape.images,
            "annotations": shape.annotations,
            "json_mb": round(path.stat().st_size / 1e6),
            "categories": in_new_process(measure_categories, path),
            "index": in_new_process(measure_index, path, images, False, arguments.workers),
        }
        if not arguments.only_index:
            result["index_with_outlines"] = in_new_process(
                measure_index, path, images, True, arguments.workers
            )
            result["pycocotools"] = in_new_process(measure_pycocotools, path, arguments.workers)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
