"""CUDA: the source text of kernels, and NVIDIA's compilers."""
