"""Records of a run: its folder, its page (`report`), its figures (`plots`), and metrics for other tools (`loggers`).

Nothing here depends on a model.
"""

from flaxae.runs import loggers, plots, report
from flaxae.runs.folder import Follower, Run, SavedRun, open, start

__all__ = ["Follower", "Run", "SavedRun", "loggers", "open", "plots", "report", "start"]
