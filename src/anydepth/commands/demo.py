"""``anydepth-demo``: a page that detects in pictures, videos and the webcam at two depths; needs no torch."""

import webbrowser
from collections.abc import Mapping, Sequence
from typing import Final

from anydepth.commands.plain_options import Option, one_path, parse_options, start_console, switch
from anydepth.commands.serve import OPTIONS, SETTINGS, server_options

HELP: Final = f"""\
anydepth-demo [BUNDLE] [KEY=VALUE ...]

Serves a page that detects in pictures, videos and the webcam, at two depths side by side. BUNDLE is a
folder, or a repository OWNER/NAME of the Hugging Face hub (extra hub). Without one, the page shows a small
detector of tree crowns that comes with this package.

{SETTINGS}
  measure=true        whether latency is measured at the start where the bundle does not know it
  browser=false       whether the page is opened in the browser of this machine

example:
  anydepth-demo
  anydepth-demo bundle engine=openvino port=8080"""

_OPTIONS: Final[Mapping[str, Option]] = {**OPTIONS, "measure": switch(True), "browser": switch(False)}


def run(argv: Sequence[str]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: A bundle or a setting that cannot be used.
    """
    folders, values = parse_options(argv, _OPTIONS)
    if folders:
        folder = one_path(folders)
    else:
        from anydepth.deploy.serve.demo_weights import demo_bundle

        folder = str(demo_bundle())
    options = server_options(folder, values)
    from anydepth.deploy.serve.server import build_server, run_server

    server = build_server(options, page=True, examples=not folders)
    run_server(server, options, webbrowser.open if values["browser"] else None)


def main() -> None:
    """Console script ``anydepth-demo``."""
    start_console("anydepth-demo", HELP, run, needs_words=False)


if __name__ == "__main__":
    main()
