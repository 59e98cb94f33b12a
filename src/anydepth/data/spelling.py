"""Names that are spelled differently in a list, a json or a label file than on the disk."""

import unicodedata
from pathlib import Path
from urllib.parse import unquote


def match_key(name: str) -> str:
    r"""Return a key that is the same for the spellings of one name that tools write.

    Accented letters are one character or two (macOS decomposes them), spaces are ``%20`` (Label Studio),
    folders end with a backslash (Windows), and upper case is lost.

    Example:
        >>> match_key("Sub\\B%20b") == match_key("sub/b b")
        True
    """
    return unicodedata.normalize("NFC", unquote(name).replace("\\", "/")).casefold()


class SpelledNames:
    """The files of a folder by names that may be spelled differently than on the disk.

    Spellings are those of :func:`match_key`. Each subfolder is listed once.

    Args:
        root: Folder that the names are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> str | None:
        """Return the name of a file as it is on the disk, with slashes.

        Args:
            name: Name without "..".

        Returns:
            None if there is no such file, or several that differ in spelling only.
        """
        place = self._root
        for part in name.replace("\\", "/").split("/"):
            spellings = self._spellings_in(place).get(match_key(part), [])
            if part in spellings:
                place /= part
            elif len(spellings) == 1:
                place /= spellings[0]
            else:
                return None
        return place.relative_to(self._root).as_posix() if place.is_file() else None

    def _spellings_in(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            spellings: dict[str, list[str]] = {}
            for path in folder.iterdir() if folder.is_dir() else ():
                spellings.setdefault(match_key(path.name), []).append(path.name)
            self._listed[folder] = spellings
        return self._listed[folder]
