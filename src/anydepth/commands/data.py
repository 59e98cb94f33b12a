"""``anydepth-data import | download | check | shards | look``: prepare and check data sets.

The work of a sub-command is in a module of its own, imported once the options are parsed: help and usage
errors must not wait for torch.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from anydepth.commands import data_options
from anydepth.data.errors import DataError
from anydepth.utils.interrupt import readable_interrupt
from anydepth.utils.version import package_version


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        summary: Its line in the list of sub-commands.
        parse: Parser of its options.
        module: Module in :mod:`anydepth.commands` that does the work; its ``run`` returns the exit status.
    """

    summary: str
    parse: Callable[[Sequence[str]], argparse.Namespace]
    module: str

    def run(self, argv: Sequence[str]) -> int:
        """Parse the options and do the work.

        Returns:
            The exit status.

        Raises:
            DataError: The data set cannot be used.
            SystemExit: Wrong options, or ``--help``.
        """
        options = self.parse(argv)
        run: Callable[[argparse.Namespace], int] = import_module(f"anydepth.commands.{self.module}").run
        return run(options)


COMMANDS: Mapping[str, Command] = {
    "import": Command(
        "convert a data set of Pascal VOC xmls or YOLO text files to COCO format",
        data_options.parse_import,
        "import_dataset",
    ),
    "download": Command("download COCO 2017", data_options.parse_download, "download_coco"),
    "check": Command(
        "read every picture and annotation of a data set, and write a page about it",
        data_options.parse_check,
        "check_data",
    ),
    "shards": Command(
        "pack a data set in COCO format into shards for streaming",
        data_options.parse_shards,
        "prepare_shards",
    ),
    "look": Command(
        "draw training batches with their boxes, as the network gets them",
        data_options.parse_look,
        "look_at_data",
    ),
}


@readable_interrupt()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: The command line without the program; None: the command line of the process.

    Returns:
        The exit status: 0, 1 after an error, which is printed, or 2 without a sub-command.
    """
    given = sys.argv[1:] if argv is None else argv
    parser = _parser()
    if not given:
        parser.print_help()
        return 2
    name = parser.parse_args(given[:1]).command
    try:
        return COMMANDS[name].run(given[1:])
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    summaries = "\n".join(f"  {name:10}{command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="anydepth-data",
        usage="%(prog)s [-h] COMMAND ...",
        description=f"Prepare data sets for training, and look at them.\n\ncommands:\n{summaries}",
        epilog=(
            "example:\n"
            "  anydepth-data import bees/ datasets/bees\n\n"
            "`anydepth-data COMMAND --help` describes a command and its options."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {package_version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
