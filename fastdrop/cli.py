"""The command line: ``fastdrop demo``, ``fastdrop bench``, ``fastdrop info``; also ``python -m fastdrop``.

A command is a module with ``add_parser(commands)``, which adds its subparser and sets ``run``, a function of the parsed
arguments that returns the exit status.  It imports what it needs when it runs, so that ``--help`` needs NumPy alone.
"""

import argparse
import json

from . import __version__, show_config
from .bench import command as bench
from .config import config
from .demo import command as demo


def add_info(commands):
    about = "print version, instruction set, threads and backends"
    parser = commands.add_parser("info", help=about, description=f"{about.capitalize()}.")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=info)


def info(args):
    if args.json:
        print(json.dumps(config(), indent=1))
    else:
        show_config()
    return 0


COMMANDS = [demo.add_parser, bench.add_parser, add_info]


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        The arguments; default: the process's own.

    Returns
    -------
    int
        Exit status: 0 if all went well, 1 if not, 130 if stopped by Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="fastdrop", description="Dropout kernels whose masks are values.")
    parser.add_argument("--version", action="version", version=f"fastdrop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("stopped")
        return 130
