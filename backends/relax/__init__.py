"""What every target that TVM compiles for shares: emitters, packing, build and runtime."""
