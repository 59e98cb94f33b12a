"""What a run folder says about its origin."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from anydepth import provenance, runtime


def _git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one commit that this package seems to run from."""
    folder = tmp_path / "clone"
    (folder / "src" / "anydepth").mkdir(parents=True)
    (folder / "src" / "anydepth" / "code.py").write_text("one = 1\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(runtime, "PACKAGE_DIR", folder / "src" / "anydepth")
    return folder


def _written(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "provenance.json").read_text())
    assert isinstance(found, dict)
    return found


def test_a_changed_clone_leaves_what_git_apply_needs(clone: Path, tmp_path: Path) -> None:
    code = clone / "src" / "anydepth" / "code.py"
    code.write_text("one = 2\n")
    (code.parent / "new.py").touch()
    runtime.write_provenance(tmp_path / "run", {"seed": 1})
    state = _written(tmp_path / "run")["git"]
    assert isinstance(state, dict)
    assert (state["changed"], state["new_files"]) == (True, ["src/anydepth/new.py"])
    _git(clone, "checkout", "-q", ".")
    _git(clone, "apply", str(tmp_path / "run" / "uncommitted.patch"))
    assert code.read_text() == "one = 2\n"


def test_a_clean_clone_leaves_no_patch_not_even_an_old_one(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "uncommitted.patch").touch()
    runtime.write_provenance(tmp_path / "run", {"seed": 1})
    assert _written(tmp_path / "run")["git"]["changed"] is False  # type: ignore[index]
    assert not (tmp_path / "run" / "uncommitted.patch").exists()


def test_a_huge_difference_is_cut_and_says_so(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / "src" / "anydepth" / "code.py").write_text("x\n" * 1000)
    monkeypatch.setattr(provenance, "_LARGEST_PATCH", 500)
    runtime.write_provenance(tmp_path / "run", {})
    patch = (tmp_path / "run" / "uncommitted.patch").read_text()
    assert len(patch) < 600
    assert "[cut: these are 500 of " in patch


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PACKAGE_DIR", tmp_path / "lib" / "site-packages" / "anydepth")
    runtime.write_provenance(tmp_path / "run", {})
    assert _written(tmp_path / "run")["git"] is None


def test_the_command_gives_the_same_settings_again(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    overrides = ("+extra.name='two words'", "optim.multi_scale_sizes=[64,96]", "seed=3")
    config = runtime.plain(compose_run(tmp_path, *overrides))
    runtime.write_provenance(tmp_path, config)
    written = _written(tmp_path)
    program, *arguments = shlex.split(str(written["command"]))
    assert (program, arguments) == ("anydepth-train", written["overrides"])
    assert runtime.plain(runtime.compose("train", arguments, hydra_config=True)) == config
    assert (written["seed"], written["config_hash"]) == (3, runtime.result_hash(config))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config


def test_the_hash_of_a_result_ignores_where_it_lies_and_nothing_else(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    def hash_of(folder: str, *overrides: str) -> str:
        return runtime.result_hash(runtime.plain(compose_run(tmp_path / folder, *overrides)))

    first = hash_of("a")
    assert first == hash_of("b") == hash_of("a", "logger=none") == hash_of("c", "ckpt_path=x")
    others = [
        hash_of("a", text) for text in ("seed=1", "optim.lr=0.1", "callbacks.averaging=null", "weights=x")
    ]
    assert len({first, *others}) == 5


def test_what_is_known_later_is_added(tmp_path: Path) -> None:
    runtime.write_provenance(tmp_path, {"seed": 1})
    provenance.complete(tmp_path, device={"name": "x"})
    assert {"device", "seed", "versions", "platform", "time"} <= _written(tmp_path).keys()
    assert {"torch", "hydra-core", "wandb", "plotly"} <= provenance.versions().keys()


def test_half_written_provenance_is_none(tmp_path: Path) -> None:
    assert provenance.read(tmp_path) is None
    (tmp_path / "provenance.json").write_text('{"config_hash": ')
    assert provenance.read(tmp_path) is None
