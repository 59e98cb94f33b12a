"""The contracts of a detector and of its losses, whatever family or package they are from."""

from anydepth.detector.compilation import CompilationError, compile_depth
from anydepth.detector.contract import Detector, NonFiniteOutputError, evaluating, plain_config
from anydepth.detector.inputs import SIZE_DIVISOR, check_images, check_input_size
from anydepth.detector.objective import WHOLE_TEACHING, NonFiniteError, Objective, PassLosses, Teaching

__all__ = [
    "SIZE_DIVISOR",
    "WHOLE_TEACHING",
    "CompilationError",
    "Detector",
    "NonFiniteError",
    "NonFiniteOutputError",
    "Objective",
    "PassLosses",
    "Teaching",
    "check_images",
    "check_input_size",
    "compile_depth",
    "evaluating",
    "plain_config",
]
