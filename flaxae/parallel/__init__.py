"""Several devices (`distributed`), several processes (`processes`), and how programs are compiled (`compilation`).

Each is imported when it is first used: the command line asks about processes before JAX is there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["compilation", "distributed", "processes"])
