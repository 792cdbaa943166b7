"""Devices that speak OpenCL, driven through pyopencl."""
