"""Version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the version, or ``0+unknown`` for sources that are on the path without being installed."""
    try:
        return version("anydepth")
    except PackageNotFoundError:
        return "0+unknown"
