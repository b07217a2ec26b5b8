"""What is kept of a run: its folder, its page (`report`), its figures (`plots`), and metrics elsewhere (`loggers`).

Knows no model.
"""

from flaxae.runs import loggers, plots, report
from flaxae.runs.folder import Follower, Run, SavedRun, open, start

__all__ = ["Follower", "Run", "SavedRun", "loggers", "open", "plots", "report", "start"]
