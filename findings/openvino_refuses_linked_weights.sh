#!/usr/bin/env bash
# OpenVINO 2026.4.1 does not read an ONNX graph with external weights from a folder of links, as huggingface_hub makes.
#
# A graph above 2 GB has its weights in files of their own (external data), and many smaller ones have, too. In the
# cache of a downloader that keeps each content once, such as a snapshot of huggingface_hub, graph and weights are both
# symbolic links into one folder of contents. OpenVINO resolves the link of the weights but not that of the graph, and
# refuses the weights as outside of the graph's folder: `read_model` fails, although both lie side by side by their
# names, and side by side with links resolved. ONNX Runtime 1.32.0 resolves both, and reads the same folder; it refuses
# only weights that leave the folder of the resolved graph, too.
#
#   graph         weights         OpenVINO    ONNX Runtime
#   file          file            reads       reads
#   file          link            refuses     refuses
#   link          link            refuses     reads          (a snapshot of huggingface_hub)
#
# A good guess would have been that both engines read the snapshot that `snapshot_download` returns. Remedy: hard links
# or copies (`cp -rL`), or a download with `local_dir=`.
#
# Output seen: each line below as asserted. Needs Python 3.11 or newer and a package index; installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
  openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
PYTHONPATH="$folder/packages" python3 - "$folder" <<'PY'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

root = Path(sys.argv[1])
contents = root / "contents"
contents.mkdir()
kernel = np.arange(256, dtype=np.float32)
kernel.tofile(contents / "weights.bin")

weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[256], data_location=TensorProto.EXTERNAL)
for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "1024")):
    weight.external_data.add(key=key, value=value)
sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "add", sides[:1], sides[1:], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.save(model, contents / "add.onnx")
onnx.checker.check_model(str(contents / "add.onnx"))


def snapshot(*linked: str) -> Path:
    """A folder of both files, some of them links to their contents."""
    place = root / f"snapshot{len(linked)}"
    place.mkdir()
    for name in ("add.onnx", "weights.bin"):
        if name in linked:
            (place / name).symlink_to(contents / name)
        else:
            (place / name).write_bytes((contents / name).read_bytes())
    return place / "add.onnx"


def by_openvino(path: Path) -> str:
    try:
        core = openvino.Core()
        result = core.compile_model(core.read_model(path), "CPU")(np.zeros(256, np.float32))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print("  ", " ".join(lines)[-300:])
        return "refuses"
    assert np.array_equal(result["y"], kernel)
    return "reads"


def by_onnxruntime(path: Path) -> str:
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no other base
        print("  ", str(error)[-300:])
        return "refuses"
    assert np.array_equal(session.run(None, {"x": np.zeros(256, np.float32)})[0], kernel)
    return "reads"


print("openvino", openvino.__version__, "onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
seen = {}
for name, linked in (
    ("files", ()),
    ("weights linked", ("weights.bin",)),
    ("both linked", ("add.onnx", "weights.bin")),
):
    path = snapshot(*linked)
    seen[name] = (by_openvino(path), by_onnxruntime(path))
    print(f"{name:15} OpenVINO {seen[name][0]:8} ONNX Runtime {seen[name][1]}")
assert seen == {
    "files": ("reads", "reads"),
    "weights linked": ("refuses", "refuses"),
    "both linked": ("refuses", "reads"),
}
print("as described: OpenVINO alone refuses a folder in which graph and weights are links")
PY
