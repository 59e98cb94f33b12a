"""Files of whole networks are read without their classes and without calling anything that they name."""

import builtins
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anydepth.weights.files import WeightsError, read_state_dict
from foreign_networks import foreign_classes, network_of


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


# -- networks --------------------------------------------------------------------------------------------


def test_a_network_alone_and_one_that_holds_itself_are_read(tmp_path: Path) -> None:
    state = {"model.0.conv.weight": torch.randn(2, 3), "model.0.bn.num_batches_tracked": torch.tensor(4)}
    with foreign_classes() as foreign:
        network = network_of(foreign, state)
        torch.save(network, tmp_path / "alone.pt")
        network.get_submodule("model.0")._modules["again"] = network
        torch.save({"model": network}, tmp_path / "cyclic.pt")
    for name in ("alone.pt", "cyclic.pt"):
        tensors = read_state_dict(tmp_path / name).tensors
        assert tensors.keys() == state.keys()
        assert all(torch.equal(tensors[key], value) for key, value in state.items())


def test_views_of_one_storage_are_restored(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    with foreign_classes() as foreign:
        network = foreign.DetectionModel()
        network.register_buffer("column", whole[:, 1])
        network.register_buffer("transposed", whole.T[2:])
        network.register_buffer("empty", torch.empty(0, 3))
        torch.save(network, tmp_path / "views.pt")
    tensors = read_state_dict(tmp_path / "views.pt").tensors
    assert tensors["column"].tolist() == [1, 5, 9]
    assert tensors["transposed"].tolist() == [[2, 6, 10], [3, 7, 11]]
    assert tensors["empty"].shape == (0, 3)


def test_truncated_or_damaged_files_are_refused(tmp_path: Path) -> None:
    with foreign_classes() as foreign:
        network = network_of(foreign, {"model.0.conv.weight": torch.ones(4, 999)})
        contents = saved({"model": network})
    position = contents.index(torch.ones(9).numpy().tobytes())
    for damaged in (contents[:-900], contents[: position + 9] + b"\x01" + contents[position + 10 :]):
        path = tmp_path / "damaged.pt"
        path.write_bytes(damaged)
        with pytest.raises(
            WeightsError, match=r"damaged\.pt: cannot be read as a checkpoint .*copy it again"
        ):
            read_state_dict(path)


def test_networks_in_files_older_than_the_archive_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    with foreign_classes() as foreign:
        network = network_of(foreign, {"model.0.conv.weight": torch.ones(1)})
        path.write_bytes(saved({"model": network}, _use_new_zipfile_serialization=False))
    with pytest.raises(WeightsError, match=r"refused.*requests foreign_yolo\.\w+.*torch 1\.6.*older"):
        read_state_dict(path)


# -- hostile files ---------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


def archive(pickled: bytes, **records: bytes) -> bytes:
    """Wrap any pickle in a file with the layout of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        # torch looks for the version before anything else.
        file.writestr("best/version", "3\n")
        file.writestr("best/data.pkl", pickled)
        for name, contents in records.items():
            file.writestr(f"best/data/{name}", contents)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("hostile", "wanted"),
    [
        (lambda trace: Calls(os.system, f"touch {trace}"), r"(posix|nt)\.system"),
        (lambda trace: Calls(builtins.eval, f"open({str(trace)!r}, 'w')"), r"builtins\.eval"),
        (lambda trace: Calls(builtins.exec, f"open({str(trace)!r}, 'w')"), r"builtins\.exec"),
        (lambda trace: Calls(builtins.open, str(trace), "w"), r"_?io\.open"),
        (lambda trace: Calls(builtins.getattr, "os", "system"), r"builtins\.getattr"),
        (lambda trace: Calls(builtins.print, "reached"), r"builtins\.print"),
        (lambda trace: Calls(builtins.__import__, "antigravity"), r"builtins\.__import__"),
        (lambda trace: [{"deep": (1, {"er": Calls(os.mkdir, str(trace))})}], r"(posix|nt)\.mkdir"),
        (
            lambda trace: Calls(Calls, Calls(os.mkdir, str(trace)), Calls(print, "reached")),
            r"(posix|nt)\.mkdir",
        ),
    ],
    ids=["system", "eval", "exec", "open", "getattr", "print", "import", "nested", "argument"],
)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["entry", "attribute"])
def test_a_pickle_that_calls_the_library_is_refused_and_runs_nothing(
    hostile: Callable[[Path], object],
    wanted: str,
    protocol: int,
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, trace = tmp_path / "best.pt", tmp_path / "trace"
    with foreign_classes() as foreign:
        network = network_of(foreign, {"model.0.conv.weight": torch.ones(1)})
        contents: dict[str, object] = {"model": network}
        where = contents if place == "entry" else vars(network.get_submodule("model.0"))
        where["extra"] = hostile(trace)
        path.write_bytes(saved(contents, pickle_protocol=protocol))
    with pytest.raises(
        WeightsError, match=rf"refused, because this pickle requests {wanted} and could run any"
    ):
        read_state_dict(path)
    assert not trace.exists()
    assert "reached" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        # INST, and names that lead through other modules, of old and new protocols.
        (b"(S'touch TRACE'\nios\nsystem\n.", r"refused.*requests os\.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", r"refused.*requests builtins\.eval"),
        (b"\x80\x04\x8c\x0fimportlib.utils\x8c\x04call\x93.", r"refused.*requests importlib\.utils\.call"),
        (
            b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x0btouch TRACE\x85R.",
            "got a .*expected a state dict|no state",
        ),
        (b"ctorch.os\nsystem\n(S'touch TRACE'\ntR.", "got a .*expected a state dict|no state"),
        (b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR.", "got a .*expected a state dict|no state"),
        # Attributes set on objects that later code would call.
        (b"ctorch._utils\n_rebuild_tensor_v2\n}S'__defaults__'\n(I1\ntsb.", "changes a function"),
        (b"cbuiltins\nset\n}S'add'\nI1\nsb.", "cannot be read as a checkpoint"),
        (b"cforeign\nThing\n}S'append'\nI1\nsb.", "cannot be read as a checkpoint"),
        # Calls of objects that are not functions, and tensors that exceed their storage.
        (b"cforeign\nThing\n(tR(tR.", "cannot be read as a checkpoint"),
        (b"(S'module'\nI1\ntQ.", "a reference to something other than a storage"),
        (
            b"}S'model'\n}S'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\n"
            b"S'cpu'\nI1\ntQI0\n(I9\nt(I1\ntI00\nNtRss.",
            "cannot be read as a checkpoint",
        ),
        (b"}S'model'\n}S'w'\nctorch._utils\n_rebuild_tensor_v2\n(NI0\n(t(tI00\nNtRss.", "without a storage"),
        (b"\x80\x02}q\x00", "cannot be read as a checkpoint"),
        # Numbers of objects, for which memory would be allocated.
        (b"I1\np4000000000\n.", "gives an object the number 4000000000"),
        (b"I1\nr\xff\xff\xff\x7f.", "gives an object the number 2147483647"),
        (b"\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "cannot be read as a checkpoint"),
    ],
)
def test_pickles_written_by_hand_reach_nothing(pickled: bytes, message: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "best.pt", tmp_path / "trace"
    # A class that weights_only refuses makes the reader use the stubs.
    unknown = b"cforeign\nThing\n0"
    start = 2 if pickled.startswith(b"\x80") else 0
    path.write_bytes(archive(pickled[:start] + unknown + pickled[start:], **{"0": b"\0\0\0\0"}))
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)
    assert not trace.exists()
    assert not Path("TRACE").exists()


def test_methods_of_a_dictionary_cannot_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(
        archive(
            b"cforeign\nThing\n0ccollections\nOrderedDict\n(tR}S'items'\ncforeign\nThing\nsbS'epoch'\nI3\ns."
        )
    )
    with pytest.raises(WeightsError, match="holds no state dict; got the entries 'epoch'"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"names": ["best/data.pkl", "best/more/data.pkl"]}, "got 2 pickles"),
        ({"names": ["a/other.pkl"]}, "cannot be read as a checkpoint"),
        ({"byteorder": b"big"}, "byte order"),
    ],
)
def test_archives_of_another_kind_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    names = change.get("names", ["best/data.pkl"])
    with zipfile.ZipFile(path, "w", change.get("compression", zipfile.ZIP_STORED)) as file:
        for folder in {name.partition("/")[0] for name in names}:
            file.writestr(f"{folder}/version", "3\n")
        for name in names:
            file.writestr(name, pickle.dumps({"x": Calls(os.getcwd)}, protocol=2))
        if "byteorder" in change:
            file.writestr("best/byteorder", change["byteorder"])
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)
