"""What the targets with a GPU share: schedule rules, the memory hierarchy, and how scheduled kernels become code."""
