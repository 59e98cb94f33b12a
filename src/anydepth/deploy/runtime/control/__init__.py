"""Control of the depth while frames run: which depth the next frame gets, by budget and last frame."""

from anydepth.deploy.runtime.control.deadline import DeadlinePolicy
from anydepth.deploy.runtime.control.latency import Gains, LatencyController
from anydepth.deploy.runtime.control.loop import ControlledDetector, Schedule, VideoFrame, run_video
from anydepth.deploy.runtime.control.policy import (
    ControlError,
    ControlWarning,
    DepthPolicy,
    FixedDepth,
    FrameResult,
    Rung,
    Target,
    measured_rungs,
    rungs_of,
)
from anydepth.deploy.runtime.control.routed import RoutedDepth
from anydepth.deploy.runtime.control.router import Router, read_router

__all__ = [
    "ControlError",
    "ControlWarning",
    "ControlledDetector",
    "DeadlinePolicy",
    "DepthPolicy",
    "FixedDepth",
    "FrameResult",
    "Gains",
    "LatencyController",
    "RoutedDepth",
    "Router",
    "Rung",
    "Schedule",
    "Target",
    "VideoFrame",
    "measured_rungs",
    "read_router",
    "run_video",
    "rungs_of",
]
