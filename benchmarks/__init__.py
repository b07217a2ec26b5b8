"""flaxae compared with its peers: every comparison is made in one run, in turns, on the machine at hand."""
