"""Parts of `lower-opset`: what fits an older opset, and how the rest is said in it."""
