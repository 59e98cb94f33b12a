"""Repositories of the Hugging Face hub: finding files in them, and publishing some.

The package ``huggingface_hub`` (extra ``hub``) does the work and is imported when a repository is asked for.
Its settings apply: ``HF_TOKEN``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_ENDPOINT``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from anydepth.utils.messages import short_repr
from anydepth.utils.version import package_version

WEIGHTS: Final = "weights.safetensors"
"""Name of the file of weights in a repository."""

BUNDLE: Final = "bundle.json"
"""Name of the description of a bundle, by which a repository that holds one is known."""

# What the hub allows as names of owners and repositories.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(FileNotFoundError):
    """A text is neither a local path nor a repository that can be used; the message says what to change."""


class MissingFileError(HubError):
    """A repository that exists lacks a file."""


def is_repository(path: str | Path) -> bool:
    """Return whether a path is the name of a repository: a text ``OWNER/NAME`` at which no local file lies.

    Example:
        >>> [is_repository(path) for path in ("ann/boats", "./boats", "boats", "runs/weights.safetensors")]
        [True, False, False, False]
    """
    return (
        isinstance(path, str)
        and _NAME.fullmatch(path) is not None
        and not path.endswith(".safetensors")
        and not Path(path).exists()
    )


def find_file(
    path: str | Path, name: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Return the local path of a file, which is downloaded if it lies in a repository.

    Args:
        path: A local file, or a folder that holds it, which win; or the name of a repository.
        name: Name of the file in the folder or repository.
        revision: Branch, tag or commit; None: the main branch.
        cache_dir: Folder for downloads; None: that of ``huggingface_hub``.

    Raises:
        ValueError: A revision or folder for downloads of a local path.
        HubError: The repository or the file cannot be read.
    """
    if not is_repository(path):
        check_local(path, revision, cache_dir)
        inside = Path(path) / name
        return inside if inside.is_file() else Path(path)
    hub = _import_hub(str(path))
    where = {"revision": revision, "cache_dir": cache_dir}
    with _explained(str(path), revision, name):
        try:
            return Path(hub.hf_hub_download(str(path), name, **where, **_library()))
        except hub.errors.LocalEntryNotFoundError:
            # Without a connection, the cache still knows of files that the repository lacked.
            if hub.try_to_load_from_cache(str(path), name, **where) is hub._CACHED_NO_EXIST:
                raise hub.errors.EntryNotFoundError(name) from None
            raise


def find_first(
    name: str,
    files: Sequence[str],
    *,
    beside: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return the local path of the first of some files that a repository holds, which is downloaded.

    Args:
        name: Name of the repository.
        files: Names of the files, best first.
        beside: Names of files that are downloaded with it, into the same folder, if there are any such.
        revision: Branch, tag or commit; None: the main branch.
        cache_dir: Folder for downloads; None: that of ``huggingface_hub``.

    Raises:
        HubError: The repository cannot be read, or holds none of the files.
    """
    for file in files:
        try:
            found = find_file(name, file, revision=revision, cache_dir=cache_dir)
        except MissingFileError:
            continue
        # Of the same commit: the branch may move between two requests.
        for other in beside:
            with suppress(MissingFileError):
                find_file(name, other, revision=found.parent.name, cache_dir=cache_dir)
        return found
    raise MissingFileError(
        f"{name}: no such local path, and the repository of the Hugging Face hub holds none of "
        f"{', '.join(files)}; download the file that you mean, and give its path"
    )


def check_local(path: str | Path, revision: str | None, cache_dir: str | Path | None) -> None:
    """Refuse options of repositories for a local path.

    Raises:
        ValueError: Names the option.
    """
    for name, value in (("revision", revision), ("cache_dir", cache_dir)):
        if value is not None:
            raise ValueError(
                f"got {name}={short_repr(str(value))} for {path}, which is read as a local path; give it "
                "with the name of a repository of the hub, such as `owner/name`"
            )


def download(name: str, files: Sequence[str], *, commit: str, cache_dir: str | Path | None = None) -> Path:
    """Download files of one commit, and return the folder of ``huggingface_hub`` that links to them.

    Args:
        name: Name of the repository.
        files: Names of the files.
        commit: Hash of the commit.
        cache_dir: Folder for downloads; None: that of ``huggingface_hub``.

    Raises:
        HubError: The repository cannot be read. A file that it lacks is no error.
    """
    hub = _import_hub(name)
    with _explained(name, commit, ", ".join(files)):
        return Path(
            hub.snapshot_download(
                name, revision=commit, allow_patterns=list(files), cache_dir=cache_dir, **_library()
            )
        )


def own_folder(name: str, commit: str, cache_dir: str | Path | None = None) -> Path:
    """Return the folder for what this package makes of a commit, beside the downloads.

    It lies below ``cache_dir``, or in the part of the cache that is reserved for other packages.
    """
    owner, _, title = name.partition("/")
    assets = _import_hub(name).cached_assets_path("anydepth", owner, title, assets_dir=cache_dir)
    return Path(assets) / commit


def check_publishing(name: str) -> None:
    """Check, ahead of work that takes long, that somebody is logged in and the name can be one.

    Raises:
        ValueError: Not the name of a repository.
        HubError: Nobody is logged in, or the hub cannot be reached.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"got hub={short_repr(name)}, expected the name of a repository, such as `owner/name`"
        )
    hub = _import_hub(name)
    with _explained(name, None, ""):
        hub.HfApi(**_library()).whoami()


def publish(name: str, files: Mapping[str, Path], *, private: bool) -> str:
    """Write the files of a bundle into a repository, in one commit; it is created if it does not exist.

    Graphs of the bundle that was there are removed unless they are replaced; other files stay.

    Args:
        name: Name of the repository.
        files: Local files by their names in the repository.
        private: Whether a new repository is private; an existing one stays as it is.

    Returns:
        Address of the commit.

    Raises:
        HubError: The hub refuses, or cannot be reached. The repository is unchanged, or was created empty.
    """
    hub = _import_hub(name)
    api = hub.HfApi(**_library())
    with _explained(name, None, ""):
        api.create_repo(name, private=private, exist_ok=True)
        present = api.list_repo_files(name)
        graphs = [path for path in present if path.endswith((".onnx", ".xml", ".pt2")) and "/" not in path]
        stale = set(graphs) - set(files) if BUNDLE in present else set()
        commit = api.create_commit(
            name,
            [
                *(hub.CommitOperationAdd(path, local) for path, local in files.items()),
                *map(hub.CommitOperationDelete, sorted(stale)),
            ],
            commit_message=f"Bundle and weights by anydepth {package_version()}",
        )
    return str(commit.commit_url)


def _library() -> dict[str, str]:
    """Return what requests say of this package."""
    return {"library_name": "anydepth", "library_version": package_version()}


def _import_hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"{name}: no such local path, and reading it as a repository of the Hugging Face hub needs the "
            f"package huggingface_hub, which cannot be imported ({error}); correct the path, or install the "
            "extra `hub` of this package"
        ) from error
    return huggingface_hub


@contextmanager
def _explained(name: str, revision: str | None, files: str) -> Iterator[None]:
    """Turn errors of ``huggingface_hub`` into those of this package, with both readings of a name."""
    from huggingface_hub import errors

    both = f"{name}: no such local path, and as a repository of the Hugging Face hub"
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{both} it has no revision {revision!r}; give a branch, tag or commit") from error
    # It does not exist, or is not for everybody; the hub does not say which.
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{both} it does not exist, or needs access: correct the path or name; for access, {_LOG_IN}"
        ) from error
    # Also raised where the hub cannot be reached.
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{both} it is not in the cache, and the hub cannot be reached or HF_HUB_OFFLINE is set: correct "
            "the path, or download it once with a connection"
        ) from error
    except errors.EntryNotFoundError as error:
        raise MissingFileError(
            f"{both} it holds no {files}, so that anydepth-export did not write it; give another one"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError(f"{name}: publishing needs a login: {_LOG_IN}") from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"{name}: the Hugging Face hub refused the request: {error}") from error
