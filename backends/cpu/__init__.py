"""Code for CPUs: the tile model and the schedule rules."""
