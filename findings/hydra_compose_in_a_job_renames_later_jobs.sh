#!/usr/bin/env bash
# Hydra 1.3.8 (OmegaConf 2.3.1): composing inside a job of a multirun renames all later jobs of it.
#
# A function that composes a configuration of its own, as libraries do that keep their settings in yaml files, is
# called in a job: `GlobalHydra.instance().clear()`, then `initialize_config_dir(...)` and `compose(...)`. The context
# manager restores the global state of Hydra when it ends, but not the name of the job in `JobRuntime`, which
# `initialize_config_dir` sets to "app". The jobs that follow are composed with that name: whatever uses
# ${hydra.job.name} is another one from the second job on: their folder, if hydra.sweep.dir holds it, and the name of
# their log file, which holds it by default. No message, exit code 0; half of a sweep lies elsewhere.
#
# A good guess would have been that the block leaves a running job as it was, as it does with its configuration.
# Remedy: give `job_name=HydraConfig.get().job.name`, or put JobRuntime's name back.
#
# Output seen: job 0 lies in out/trainer, jobs 1 and 2 in out/app. Needs Python 3.10 or newer and a package index;
# installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
  hydra-core==1.3.8 omegaconf==2.3.1
mkdir "$folder/conf"
cat > "$folder/trainer.py" <<'PY'
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=None)
def main(cfg: DictConfig) -> None:
    job = HydraConfig.get().job
    print(f"job {job.num} is named {job.name}")
    GlobalHydra.instance().clear()
    folder = Path(__file__).resolve().parent / "conf"
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        hydra.compose(overrides=["+size=3"])
    assert HydraConfig.get().job.name == job.name  # the configuration of the running job stays


if __name__ == "__main__":
    main()
PY
cd "$folder"
PYTHONPATH="$folder/packages" python3 -c \
  'import hydra, omegaconf; print("hydra-core", hydra.__version__, "omegaconf", omegaconf.__version__)'
PYTHONPATH="$folder/packages" python3 trainer.py -m '+x=1,2,3' 'hydra.sweep.dir=out/${hydra.job.name}' | grep -v HYDRA
found=$(find out -mindepth 2 -maxdepth 2 -type d | sort | tr '\n' ' ')
echo "folders of the jobs: $found"
[ "$found" = "out/app/1 out/app/2 out/trainer/0 " ]
echo "as described: jobs 1 and 2 are named after the composition in job 0"
