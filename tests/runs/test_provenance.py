"""Provenance in a run folder."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from anydepth.config.compose import compose, resolve_config
from anydepth.runs import provenance
from anydepth.runs.identity import result_hash
from anydepth.runs.provenance import write_provenance


def _git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one commit, from which this package appears to run."""
    folder = tmp_path / "clone"
    (folder / "src" / "anydepth").mkdir(parents=True)
    (folder / "src" / "anydepth" / "code.py").write_text("one = 1\n")
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(sys.modules["anydepth.config.compose"], "PACKAGE_DIR", folder / "src" / "anydepth")
    return folder


def _written(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "provenance.json").read_text())
    assert isinstance(found, dict)
    return found


def test_a_changed_clone_leaves_a_patch_for_git_apply(clone: Path, tmp_path: Path) -> None:
    code = clone / "src" / "anydepth" / "code.py"
    code.write_text("one = 2\n")
    new = code.parent / "new.py"
    new.write_text("two = 2\n")
    (code.parent / "empty.py").touch()
    (clone / "other.txt").touch()
    for setting in ("diff.noprefix", "diff.mnemonicPrefix"):
        _git(clone, "config", setting, "true")
    _git(clone, "config", "color.ui", "always")
    _git(clone, "config", "diff.external", "false")
    write_provenance(tmp_path / "run", {"seed": 1})
    state = _written(tmp_path / "run")["git"]
    assert isinstance(state, dict)
    assert (state["changed"], state["new_files"]) == (True, ["src/anydepth/empty.py", "src/anydepth/new.py"])
    # The clone's own index does not list new files.
    assert provenance.git_state(clone) == state
    _git(clone, "checkout", "-q", ".")
    new.unlink()
    (code.parent / "empty.py").unlink()
    _git(clone, "config", "--unset", "diff.noprefix")
    _git(clone, "apply", str(tmp_path / "run" / "uncommitted.patch"))
    assert code.read_text() == "one = 2\n"
    assert new.read_text() == "two = 2\n"
    assert (code.parent / "empty.py").read_text() == ""


def test_new_files_alone_leave_a_patch(clone: Path, tmp_path: Path) -> None:
    (clone / "src" / "anydepth" / "new.py").write_text("two = 2\n")
    write_provenance(tmp_path / "run", {"seed": 1})
    assert _written(tmp_path / "run")["git"]["changed"] is False  # type: ignore[index]
    assert "+two = 2" in (tmp_path / "run" / "uncommitted.patch").read_text()


def test_a_resumed_run_keeps_the_record_of_its_parts(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, code = tmp_path / "run", clone / "src" / "anydepth" / "code.py"
    config = {"seed": 1, "paths": {"output_dir": str(folder)}, "ckpt_path": None}
    code.write_text("one = 2\n")
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "versions", lambda: {"torch": "1.0", "numpy": "2.0"})
        write_provenance(folder, config)
    provenance.complete(folder, device={"type": "cuda"})
    first = _written(folder)
    assert "history" not in first
    _git(clone, "commit", "-qam", "second")
    resumed = {**config, "ckpt_path": str(folder / "checkpoints" / "last.ckpt")}
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "1.1", "numpy": "2.0"})
    write_provenance(folder, resumed)
    second = _written(folder)
    part = {
        "time": first["time"],
        "commit": first["git"]["commit"],  # type: ignore[index]
        "changed": True,
        "device": {"type": "cuda"},
        "versions": {"torch": "1.0"},
        "patch": "uncommitted.1.patch",
    }
    assert second["history"] == [part]
    assert "+one = 2" in (folder / "uncommitted.1.patch").read_text()
    assert not (folder / "uncommitted.patch").exists()
    write_provenance(folder, resumed)
    parts = _written(folder)["history"]
    assert isinstance(parts, list)
    assert parts[0] == part
    assert (len(parts), parts[1]["changed"], parts[1]["versions"]) == (2, False, {})
    # A new training is another run.
    write_provenance(folder, config)
    assert "history" not in _written(folder)


def test_a_clean_clone_leaves_no_patch_not_even_an_old_one(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "uncommitted.patch").touch()
    write_provenance(tmp_path / "run", {"seed": 1})
    assert _written(tmp_path / "run")["git"]["changed"] is False  # type: ignore[index]
    assert not (tmp_path / "run" / "uncommitted.patch").exists()


def test_a_huge_difference_is_truncated_and_says_so(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / "src" / "anydepth" / "code.py").write_text("x\n" * 1000)
    monkeypatch.setattr(provenance, "_LARGEST_PATCH", 500)
    write_provenance(tmp_path / "run", {})
    patch = (tmp_path / "run" / "uncommitted.patch").read_text()
    assert len(patch) < 600
    assert "[cut: these are 500 of " in patch


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules["anydepth.config.compose"], "PACKAGE_DIR", tmp_path / "lib" / "site-packages" / "anydepth"
    )
    write_provenance(tmp_path / "run", {})
    assert _written(tmp_path / "run")["git"] is None


def test_the_command_gives_the_same_settings_again(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    overrides = ("+extra.name='two words'", "recipe.multi_scale_sizes=[64,96]", "seed=3")
    config = resolve_config(compose_run(tmp_path, *overrides))
    write_provenance(tmp_path, config)
    written = _written(tmp_path)
    program, *arguments = shlex.split(str(written["command"]))
    assert (program, arguments) == ("anydepth-train", written["overrides"])
    assert resolve_config(compose("train", arguments, hydra_config=True)) == config
    assert (written["seed"], written["config_hash"]) == (3, result_hash(config))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config


def test_the_command_keeps_other_files_and_the_settings_of_hydra_that_matter(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    config = compose_run(tmp_path)
    hydra_config = config.hydra
    OmegaConf.set_readonly(hydra_config, False)
    hydra_config.job.config_name = "mine"
    own = ConfigSourceInfo(path="/my/conf", schema="file", provider="command-line")
    hydra_config.runtime.config_sources.append(own)
    kept = ["hydra.searchpath=[file://x]", "+hydra.job.env_set.A=1", "hydra/job_logging=none"]
    left_out = ["hydra.mode=MULTIRUN", "hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
    left_out += ["hydra/sweeper=search", "hydra.sweeper.n_trials=3", "hydra.run.dir=a", "hydra.sweep.dir=b"]
    hydra_config.overrides.hydra = [*kept, *left_out]
    HydraConfig.instance().set_config(config)
    write_provenance(tmp_path, {"seed": 1})
    program, *arguments = shlex.split(str(_written(tmp_path)["command"]))
    assert program == "anydepth-train"
    assert arguments[:2] == ["--config-dir=/my/conf", "--config-name=mine"]
    assert arguments[-3:] == kept
    assert arguments[2:-3] == _written(tmp_path)["overrides"]


def test_the_hash_of_a_result_ignores_only_its_location(
    compose_run: Callable[..., DictConfig], tmp_path: Path
) -> None:
    def hash_of(folder: str, *overrides: str) -> str:
        return result_hash(resolve_config(compose_run(tmp_path / folder, *overrides)))

    first = hash_of("a")
    assert first == hash_of("b") == hash_of("a", "logger=none") == hash_of("c", "ckpt_path=x")
    others = [
        hash_of("a", text) for text in ("seed=1", "recipe.lr=0.1", "callbacks.averaging=null", "weights=x")
    ]
    assert len({first, *others}) == 5


def test_later_entries_are_added(tmp_path: Path) -> None:
    write_provenance(tmp_path, {"seed": 1})
    provenance.complete(tmp_path, device={"name": "x"})
    assert {"device", "seed", "versions", "platform", "time"} <= _written(tmp_path).keys()
    assert {"torch", "hydra-core", "wandb", "plotly"} <= provenance.versions().keys()


def test_half_written_provenance_is_none(tmp_path: Path) -> None:
    assert provenance.read(tmp_path) is None
    (tmp_path / "provenance.json").write_text('{"config_hash": ')
    assert provenance.read(tmp_path) is None
