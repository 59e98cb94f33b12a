"""Check within seconds whether Weights & Biases can be used, before a run is started there.

The library itself prompts for a missing API key on the console and retries an unreachable server for 90 s.
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

# Including the older names that wandb still accepts.
_MODES: dict[str, Mode] = {mode: mode for mode in get_args(Mode)} | {
    "run": "online",
    "shared": "online",
    "dryrun": "offline",
}
# The smallest query that needs a valid API key.
_QUERY = json.dumps({"query": "query { viewer { id } }"}).encode()


@dataclass(frozen=True)
class Connection:
    """Mode in which a run is logged.

    Attributes:
        mode: Mode of ``wandb.init``.
        reason: Reason for being offline although online was requested, as a clause; None otherwise.
    """

    mode: Mode
    reason: str | None = None


def choose_connection(*, offline: bool, seconds: float) -> Connection:
    """Choose between online and offline by wandb's settings, the API key and the server's answer.

    Settings are read where wandb reads them: environment variables, its settings files, ``.netrc``. Proxies
    are those of the environment.

    Args:
        offline: Whether the configuration asks for an offline run.
        seconds: Seconds to wait for the server's answer.

    Raises:
        ValueError: ``WANDB_MODE`` is not one of the known modes.
    """
    if os.environ.get("WANDB_MODE") == "":
        # Treated as unset; wandb itself rejects it.
        del os.environ["WANDB_MODE"]
    requested = os.environ.get("WANDB_MODE", "online")
    if requested not in _MODES:
        raise ValueError(f"WANDB_MODE={requested!r}: allowed are {', '.join(get_args(Mode))}")
    import wandb

    settings = wandb.setup().settings
    mode = _MODES[os.environ.get("WANDB_MODE") or settings.mode]
    if mode != "online" or offline:
        return Connection("offline" if mode == "online" else mode)
    url = str(os.environ.get("WANDB_BASE_URL") or settings.base_url).rstrip("/")
    reason = find_connection_problem(
        url,
        api_key=os.environ.get("WANDB_API_KEY") or settings.api_key or _key_in_netrc(url),
        token_file=os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.identity_token_file,
        seconds=seconds,
    )
    return Connection("offline", reason) if reason else Connection("online")


def find_connection_problem(
    url: str, *, api_key: str | None, token_file: str | None, seconds: float
) -> str | None:
    """Return why a run cannot be logged to a server now, as a clause, or None if it can.

    Args:
        url: Address of the server, without a path.
        api_key: API key; None: there is none.
        token_file: File of an identity token, which replaces the key and is not checked here.
        seconds: Seconds to wait for an answer, including the look-up of the name.
    """
    if not api_key and not token_file:
        return "there is no API key (`wandb login` stores one)"
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(_query_server(url, api_key, seconds)), daemon=True)
    thread.start()
    # The socket's own timeout restarts with every byte, and does not cover the look-up of the name. Half a
    # second more lets that timeout report the error first.
    thread.join(seconds + 0.5)
    return found[0] if found else f"{url} does not answer within {seconds:g} seconds"


def _query_server(url: str, api_key: str | None, seconds: float) -> str | None:
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Basic {b64encode(f'api:{api_key}'.encode()).decode()}"
    request = urllib.request.Request(f"{url}/graphql", data=_QUERY, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            answer = json.load(response)
        viewer = answer["data"]["viewer"]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return f"{url} rejects the API key"
        return f"{url} answers with error {error.code}"
    except TimeoutError:
        return f"{url} does not answer within {seconds:g} seconds"
    except OSError as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    except (ValueError, KeyError, TypeError):
        return f"{url} does not answer like a W&B server"
    return f"{url} does not know the API key" if api_key and viewer is None else None


def _key_in_netrc(url: str) -> str | None:
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None
