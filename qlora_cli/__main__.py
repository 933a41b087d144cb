"""`python -m qlora_cli`, which is how torchrun and accelerate launch start a program."""

from __future__ import annotations

from qlora_cli.cli.app import main

if __name__ == "__main__":
    main()
