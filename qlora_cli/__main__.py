"""Entry point of the command: `qlora`, and `python -m qlora_cli`, which torchrun and accelerate launch.

Signals are heeded from here on, before the first of the imports that take time.
"""

from __future__ import annotations

import signal
import sys

from qlora_cli.garbage import expect_one_command
from qlora_cli.interruption import Interruption, interruptible


def main() -> None:
    """Run the command line; a stop signal while it is imported ends in one calm line too."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before and after the block Ctrl-C ends without a traceback
    try:
        with interruptible():
            expect_one_command()
            from qlora_cli.cli.app import main as run_command_line

            run_command_line()
    except Interruption as stop:
        sys.stderr.write(f"{stop.farewell}\n")
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
