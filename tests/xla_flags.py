"""Which flags this version of XLA knows: it documents few, and an unknown one aborts the process."""

import os
import subprocess
import sys

ASK = [sys.executable, "-c", "from jaxlib import xla_client; xla_client.make_cpu_client()"]


def known(*flags: str) -> list[str]:
    """Those of the flags that it knows, which takes a process each to find out."""
    unheard = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    asked = [subprocess.Popen(ASK, env={**os.environ, "XLA_FLAGS": flag}, **unheard) for flag in flags]
    return [flag for flag, process in zip(flags, asked, strict=True) if process.wait() == 0]
