"""Whether Weights & Biases can be reached, found out in seconds, before a run is started there.

The library itself asks for a missing API key on the console and tries an unreachable server for 90 seconds.
"""

import json
import netrc
import os
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "disabled"]

# With the older names that wandb still takes.
_MODES: dict[str, Mode] = {mode: mode for mode in get_args(Mode)} | {
    "run": "online",
    "shared": "online",
    "dryrun": "offline",
}
_QUESTION = json.dumps({"query": "query { viewer { id } }"}).encode()


@dataclass(frozen=True)
class Connection:
    """How a run is to be logged.

    Attributes:
        mode: Of ``wandb.init``.
        reason: Why it is offline although online was asked for, as a clause; None otherwise.
    """

    mode: Mode
    reason: str | None = None


def choose_connection(*, offline: bool, seconds: float) -> Connection:
    """Decide between online and offline by the settings of wandb, the API key and the server's answer.

    Settings are read where wandb reads them: environment variables, its settings files, ``.netrc``. Proxies
    are those of the environment.

    Args:
        offline: Whether the configuration asks for an offline run.
        seconds: To wait for the server's answer.

    Raises:
        ValueError: ``WANDB_MODE`` is none of the known modes.
    """
    if os.environ.get("WANDB_MODE") == "":
        # As if it were not set; wandb itself refuses it.
        del os.environ["WANDB_MODE"]
    asked = os.environ.get("WANDB_MODE", "online")
    if asked not in _MODES:
        raise ValueError(f"WANDB_MODE={asked!r}: allowed are {', '.join(get_args(Mode))}")
    import wandb

    settings = wandb.setup().settings
    mode = _MODES[os.environ.get("WANDB_MODE") or settings.mode]
    if mode != "online" or offline:
        return Connection("offline" if mode == "online" else mode)
    url = str(os.environ.get("WANDB_BASE_URL") or settings.base_url).rstrip("/")
    reason = why_unusable(
        url,
        api_key=os.environ.get("WANDB_API_KEY") or settings.api_key or _key_in_netrc(url),
        token_file=os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.identity_token_file,
        seconds=seconds,
    )
    return Connection("offline", reason) if reason else Connection("online")


def why_unusable(url: str, *, api_key: str | None, token_file: str | None, seconds: float) -> str | None:
    """Why a run cannot be logged to a server now, as a clause; None if it can.

    Args:
        url: The server's address without a path.
        api_key: None: there is none.
        token_file: Of an identity token, which serves instead of a key and is not tried here.
        seconds: To wait for an answer, the look-up of the name included.
    """
    if not api_key and not token_file:
        return "there is no API key (`wandb login` stores one)"
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(_ask(url, api_key, seconds)), daemon=True)
    thread.start()
    # The socket's own timeout begins anew with every byte, and does not cover the look-up of the name.
    thread.join(seconds + 0.5)
    return found[0] if found else f"{url} does not answer within {seconds:g} seconds"


def _ask(url: str, api_key: str | None, seconds: float) -> str | None:
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Basic {b64encode(f'api:{api_key}'.encode()).decode()}"
    request = urllib.request.Request(f"{url}/graphql", data=_QUESTION, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            answer = json.load(response)
        viewer = answer["data"]["viewer"]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return f"{url} refuses the API key"
        return f"{url} answers with error {error.code}"
    except TimeoutError:
        return f"{url} does not answer within {seconds:g} seconds"
    except OSError as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    except (ValueError, KeyError, TypeError):
        return f"{url} does not answer as a W&B server does"
    return f"{url} does not know the API key" if api_key and viewer is None else None


def _key_in_netrc(url: str) -> str | None:
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None
