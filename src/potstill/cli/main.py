"""`potstill VERB ...`: find the verb, run it, and turn whatever goes wrong into one line and an exit code.

Results go to stdout, progress and logs to stderr. Torch is imported only once a verb runs, so that help and usage
errors answer at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .. import _version
from ..errors import Interrupted, PotstillError, UsageError
from . import compare, distill, evaluate, export, list, pretrain, report
from .options import EXIT_CODES

VERBS = (distill, evaluate, compare, pretrain, export, report, list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options, rest = build_parser().parse_known_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("potstill").setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        if rest and not options.takes_keys:
            raise UsageError(f"unexpected argument {rest[0]!r}: see potstill {options.verb} --help")
        options.keys = rest
        options.run(options)
    except PotstillError as error:
        print(f"potstill: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("potstill: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="potstill",
        description="Distil a labelled data set into a tiny synthetic one that trains networks almost as well.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"potstill {_version.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser
