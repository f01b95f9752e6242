"""Loads the module of one of the gateway's processes and runs its `main`.

`python -m gateway.launch gateway.control --workers 2 ...`

The collector rests meanwhile: what libraries make of themselves stays, and going through it again and again while it
grows is a seventh of the CPU that a start takes.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module


def main() -> None:
    name = sys.argv.pop(1)
    gc.disable()
    module = import_module(name)
    gc.freeze()
    gc.enable()
    module.main()


if __name__ == "__main__":
    main()
