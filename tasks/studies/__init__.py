"""Studies outside the DVC graph: cross-fitting and other questions one asks of the data, not of a release."""
