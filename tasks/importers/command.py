"""What all importers' commands share: options, messages, exit codes, and the summary at the end."""

import argparse
from collections.abc import Callable, Sequence

from tasks.importers.recording import Recording


def make_parser(module: str, *, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with --out, --language, --licence and --max-pixels; an importer adds its own.

    Args:
        module: the importer's name, as in `python -m tasks.importers.<module>`.
        description: what it reads, for --help.
        example: a whole command line, shown at the end of --help.
    """
    raise NotImplementedError


def run_importer(
    module: str,
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace, Recording], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, let `body` fill the recording, write it, print the summary; returns the exit code.

    An importer's module ends with:

        def main(argv: Sequence[str] | None = None) -> int:
            return run_importer("helm", parser(), import_runs, argv)

        if __name__ == "__main__":
            sys.exit(main())
    """
    raise NotImplementedError
