"""flaxae beside its peers: every comparison is made in one run, alternately, on the machine at hand."""
