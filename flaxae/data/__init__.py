"""Loading data, what is known of them, and how they are encoded, cut and scaled.

The public names are in `__init__.pyi`. Each is imported when it is first used, so that the flags can list the file
formats without importing the code that reads them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
