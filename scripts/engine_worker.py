"""One process of benchmark_engines.py: keeps one form of a network open, and times passes on request.

An engine's idle threads spin for a while and disturb what else runs in their process, so that each form has
one of its own. Usage: ``python scripts/engine_worker.py JSON``, where ``job`` of the JSON is the name of one
of :data:`OPENERS`, or of a job that is done once: ``bundle`` and ``peer``, which export. Nothing but what a
form needs is imported.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pass = Callable[[NDArray[np.float32]], object]


def open_torch(job: Mapping[str, Any]) -> list[Pass]:
    """Open a detector in PyTorch at a depth, specialised or as it is."""
    import torch

    from anydepth.zoo import build

    torch.set_num_threads(job["threads"])
    depth = job["depth"]
    network = build(job["detector"]).eval()
    if job["specialise"]:
        network = network.specialise(depth)

    def run(images: NDArray[np.float32]) -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(images), depth=depth)

    return [run]


def open_graph(job: Mapping[str, Any]) -> list[Pass]:
    """Open an ONNX graph as the runtime does."""
    from anydepth.deploy.runtime.engines import open_session
    from anydepth.deploy.runtime.engines.base import EngineOptions

    session = open_session(job["engine"], Path(job["graph"]), EngineOptions(threads=job["threads"]))
    return [session.run]


def open_sleeping(job: Mapping[str, Any]) -> list[Pass]:
    """Open an ONNX graph in ONNX Runtime with threads that sleep while they wait."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job["threads"]
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(job["graph"], settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [lambda images: session.run(None, {name: images})]


def open_depths(job: Mapping[str, Any]) -> list[Pass]:
    """Open two depths of a bundle; four passes that stay at a depth for two, and four that alternate."""
    from anydepth.deploy import load

    detector = load(job["folder"], engine=job["engine"], threads=job["threads"], verify=False)
    first, second = job["depths"]

    def in_order(*depths: str) -> Pass:
        return lambda images: [detector.run(images, depth) for depth in depths]

    return [in_order(first, first, second, second), in_order(first, second, first, second)]


OPENERS: Mapping[str, Callable[[Mapping[str, Any]], list[Pass]]] = {
    "torch": open_torch,
    "graph": open_graph,
    "sleeping": open_sleeping,
    "depths": open_depths,
}


def serve(job: Mapping[str, Any]) -> None:
    """Open a form, and answer each number on the standard input with the times of so many passes.

    The answer is a JSON list with the milliseconds of each pass, for each function that the job opens; of
    several functions, the passes take turns.
    """
    height, width = job["size"]
    images = np.random.default_rng(0).random((1, 3, height, width), np.float32)
    passes = OPENERS[job["job"]](job)
    for run in passes * 2:
        run(images)
    print("ready", flush=True)
    for line in sys.stdin:
        times: list[list[float]] = [[] for _ in passes]
        for _ in range(int(line)):
            for run, own in zip(passes, times, strict=True):
                start = time.perf_counter()
                run(images)
                own.append(1000 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


def start_cold(job: Mapping[str, Any]) -> None:
    """Print the peak memory after the first pass, by the loader or the engine alone, in units of 10^6 bytes.

    The parent takes the time, with the start of Python in it.
    """
    height, width = job["size"]
    images = np.zeros((1, 3, height, width), np.float32)
    if job["loader"]:
        from anydepth.deploy import load

        detector = load(job["folder"], engine=job["engine"], threads=job["threads"])
        detector.run(images, job["depth"])
        assert "torch" not in sys.modules, "the loader imported torch"
    elif job["engine"] == "onnxruntime":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = job["threads"]
        session = onnxruntime.InferenceSession(job["graph"], settings, providers=["CPUExecutionProvider"])
        session.run(None, {"images": images})
    else:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": job["threads"], "INFERENCE_PRECISION_HINT": "f32"}
        core = openvino.Core()
        core.compile_model(core.read_model(job["graph"]), "CPU", settings)([images])
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    print(int(peak) * 1024 / 1e6)


def export_bundle(job: Mapping[str, Any]) -> None:
    """Export a detector with random weights, which take as long as trained ones."""
    import torch

    from anydepth.deploy.export.bundle_writer import write_bundle
    from anydepth.zoo import build

    torch.manual_seed(0)
    detector = build(job["detector"]).eval()
    detector.input_size = tuple(job["size"])
    randomise_norms(detector)
    depths = detector.depth_space.parse_list(job["depths"])
    write_bundle(detector, depths, job["folder"], engine=None, on_step=print)


def export_peer(job: Mapping[str, Any]) -> None:
    """Export RT-DETR of transformers with random weights, and write its GMACs beside the graph."""
    import torch
    from torch import Tensor, nn
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    from anydepth.layers.macs import count_forward

    # As published: the small one has basic blocks, fusion blocks of half the width and three decoder layers.
    small = {
        "backbone_config": RTDetrResNetConfig(
            layer_type="basic",
            depths=[2, 2, 2, 2],
            hidden_sizes=[64, 128, 256, 512],
            out_features=["stage2", "stage3", "stage4"],
        ),
        "encoder_in_channels": [128, 256, 512],
        "hidden_expansion": 0.5,
        "decoder_layers": 3,
    }
    torch.manual_seed(0)
    # Anchors of a fixed size are computed once, as a deployment would have it.
    size = list(job["size"])
    config = RTDetrConfig(
        **(small if job["peer"] == "rtdetr_r18" else {}), num_labels=80, anchor_image_size=size
    )
    network = RTDetrForObjectDetection(config).eval()
    randomise_norms(network)

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            found = self.network(pixel_values=images, return_dict=True)
            return found.pred_boxes, found.logits

    images = torch.zeros(1, 3, *size)
    outputs = Outputs().eval()
    with torch.no_grad():
        macs = count_forward(outputs, images).macs
        torch.onnx.export(
            outputs,
            (images,),
            job["graph"],
            dynamo=True,
            opset_version=18,
            input_names=["images"],
            output_names=["boxes", "scores"],
            verbose=False,
        )
    Path(job["graph"]).with_suffix(".json").write_text(json.dumps({"gmacs": macs / 1e9}))


def randomise_norms(network: Any) -> None:
    """Give norms statistics of trained ones, so that values neither vanish nor overflow."""
    import torch

    for norm in network.modules():
        if hasattr(norm, "running_var"):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                norm.weight.uniform_(0.7, 1.3)
                norm.bias.normal_(0, 0.1)


def main() -> None:
    """Do the job of the command line."""
    job = json.loads(sys.argv[1])
    once = {"cold": start_cold, "bundle": export_bundle, "peer": export_peer}
    once.get(job["job"], serve)(job)


if __name__ == "__main__":
    main()
