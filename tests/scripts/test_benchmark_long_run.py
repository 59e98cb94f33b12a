"""A long run stays as it began."""

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc of Linux")
@pytest.mark.parametrize("detector", ["detr_tiny", "yolo_tiny"])
def test_two_thousand_steps_use_no_more_than_five_hundred(
    script: ModuleType, detector: str, tmp_path: Path
) -> None:
    warm, second, third, last = script.measure(2000, tmp_path, [f"detector={detector}"])
    for quarter in (warm, second, third, last):
        print(
            f"measured: {quarter.steps} steps: {quarter.resident_mib:.0f} MiB, {quarter.open_files} files, "
            f"{quarter.threads} threads, {quarter.seconds_per_step:.3f} s, "
            f"{quarter.processor_seconds_per_step:.3f} s of the processor"
        )
    assert last.steps == 2000
    assert last.resident_mib <= 1.02 * second.resident_mib, (warm, second, third, last)
    assert last.open_files <= second.open_files
    assert last.threads <= second.threads
