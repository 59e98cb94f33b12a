"""Settings as they are typed on a command line, quoted for Hydra and the shell."""

import re
import shlex

# What Hydra reads as a plain text without quotes, and no shell changes.
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+-]+")
# What it reads as another value than a text.
_VALUE = re.compile(r"[0-9_.+-]*(e[0-9_+-]*)?|null|true|false|[+-]?(inf|nan)", re.IGNORECASE)


def setting(key: str, value: object) -> str:
    """Return ``key=value`` for messages that name a command to copy.

    Example:
        >>> print(setting("output", "runs/a"), setting("output", "runs [1]"))
        output=runs/a 'output="runs [1]"'
    """
    text = str(value)
    if _PLAIN.fullmatch(text) and not _VALUE.fullmatch(text):
        return f"{key}={text}"
    # In Hydra's quoted texts, a backslash counts only before a quote or an interpolation.
    escaped = re.sub(r'(\\*)("|\$\{)', r"\1\1\\\2", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return shlex.quote(f'{key}="{escaped}"')
