"""Control of the depth while frames run, at its short name; see :mod:`anydepth.deploy.runtime.control`."""

from anydepth.deploy.runtime.control import *  # noqa: F403
from anydepth.deploy.runtime.control import __all__ as __all__
