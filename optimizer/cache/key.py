"""The key of a result: a digest of all that it depends on.

The model with its weights; what it is called with, as far as that matters; every option of `optimize()`; the passes;
the processor; the versions of the packages and the source of this one. What cannot be digested has no key.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from optimizer.cache.digest import Digest, Undigestable
from optimizer.cache.objects import ObjectWalk
from optimizer.cache.onnx_digest import add_file, add_ir, add_proto
from optimizer.cache.origin import is_own, source_stamp
from optimizer.frontends.pytorch import is_torch_model
from optimizer.pass_manager import Fixpoint, Pass, format_pipeline
from optimizer.target import OWN_KINDS, Target, detect_cpu
from optimizer.versions import versions

__all__ = ["WITHOUT_EFFECT", "machine_facts", "make_key", "name_of"]

WITHOUT_EFFECT = ("cache", "progress", "passes", "target")
"""Parameters of `optimize()` that are not part of the key as they are given: the last two are, as they were read."""

_CPU_FACTS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")


def make_key(arguments: Mapping[str, object], pipeline: Sequence[Pass], target: Target) -> str:
    """The key of a call of `optimize()`.

    Args:
        arguments: Its parameters by name.
        pipeline: The passes.
        target: Where the model will run.

    Raises:
        Undigestable: No key can stand for all that the result depends on.
    """
    if target.kind not in OWN_KINDS:
        raise Undigestable(f"the target {target.kind} is not one of this package")
    digest = Digest()
    for package, version in sorted(versions().items()):
        digest.add(package, version)
    digest.add(source_stamp(), repr(target), repr(detect_cpu()), *machine_facts(), _pipeline_text(pipeline))
    model = arguments["model"]
    examples = arguments["example_inputs"]
    walk = ObjectWalk(digest)
    for name, value in sorted(arguments.items()):
        if name not in (*WITHOUT_EFFECT, "model", "example_inputs"):
            digest.add(name)
            walk.add(value, name)
    digest.add("example_inputs")
    if is_torch_model(model):
        from optimizer.cache.torch_digest import add_examples, add_torch

        add_torch(digest, walk, model)
        add_examples(digest, walk, examples)
    else:
        _add_onnx(digest, model)
        _add_sizes(digest, examples)
    return digest.hexdigest()


def name_of(model: object) -> str:
    """What to call a model in a list."""
    if isinstance(model, (str, os.PathLike)):
        return Path(model).name
    if isinstance(model, onnx.ModelProto):
        return model.graph.name or "ModelProto"
    if isinstance(model, ir.Model):
        return model.graph.name or "onnx_ir.Model"
    return type(model).__qualname__


def _pipeline_text(pipeline: Sequence[Pass]) -> str:
    for pass_ in _flat(pipeline):
        if not is_own(type(pass_)):
            raise Undigestable(f"the pass {pass_.name} is not one of this package")
    return format_pipeline(pipeline)


def _flat(pipeline: Sequence[Pass]) -> list[Pass]:
    return [inner for pass_ in pipeline for inner in (_flat(pass_.passes) if isinstance(pass_, Fixpoint) else [pass_])]


def machine_facts() -> list[str]:
    """The processor, as the system names it."""
    facts = [platform.machine(), platform.system(), platform.libc_ver()[1]]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").partition("\n\n")[0].splitlines()
    except OSError:
        return [*facts, platform.processor()]
    return facts + [line for line in lines if line.partition("\t")[0].strip() in _CPU_FACTS]


def _add_onnx(digest: Digest, model: object) -> None:
    if isinstance(model, (str, os.PathLike)):
        add_file(digest, Path(model))
    elif isinstance(model, onnx.ModelProto):
        add_proto(digest, model)
    elif isinstance(model, ir.Model):
        add_ir(digest, model)
    else:
        raise Undigestable(f"a {type(model).__name__} is no model")


def _add_sizes(digest: Digest, value: object) -> None:
    """Types and sizes of the inputs of an ONNX model, which are all that is asked of them."""
    if isinstance(value, Mapping):
        digest.add("mapping", len(value))
        for name, item in value.items():
            digest.add(str(name))
            _add_sizes(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.add("sequence", len(value))
        for item in value:
            _add_sizes(digest, item)
    else:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if value is not None and (shape is None or dtype is None):
            raise Undigestable(f"an example input is a {type(value).__name__}, no array")
        digest.add(str(dtype), repr(None if shape is None else tuple(shape)))
