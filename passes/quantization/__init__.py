"""What the passes that quantize share: grids, calibration, and where in a graph they may act."""
