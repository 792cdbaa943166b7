"""The compile process: `python -m backends.relax.worker`.

Reads requests from its standard input and answers on its standard output, each a pickle with its length before it. It
is started by
`backends.relax.client`, lives as long as its parent, and can crash without taking the parent along.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import struct
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from backends.relax.without_torch import torch_kept_out

LONGEST_SECONDS = 600
"""A compilation that takes longer is given up."""

LENGTH = struct.Struct("<Q")


def read_message(stream: BinaryIO) -> Any:
    """The next message; `None` at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    body = stream.read(size)
    return pickle.loads(body) if len(body) == size else None


def write_message(stream: BinaryIO, message: Any) -> None:
    """Send one message."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one graph; see `backends.relax.client.compile_graph` for the fields."""
    import onnx
    import onnx_ir as ir

    from backends.cpu.schedule import llvm_target, scheduler
    from backends.cpu.tiles import Tiles
    from backends.relax.build import Builder, RefusedNodes

    model = ir.from_proto(onnx.ModelProto.FromString(request["model"]))
    cpu = request["cpu"]
    builder = Builder(model, request["constants"], set(request["weights"]), scheduler(cpu), Tiles(cpu))
    try:
        plan = builder.build(llvm_target(cpu), Path(request["library"]), allow_fallback=request["allow_fallback"])
    except RefusedNodes as refused:
        return {"refused": refused.reasons}
    return {"plan": plan}


def main() -> None:
    """Serve until the parent closes the pipe."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between messages
    with torch_kept_out():
        import tvm  # noqa: F401
        from tvm import relax  # noqa: F401
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    while (request := read_message(sys.stdin.buffer)) is not None:
        faulthandler.dump_traceback_later(LONGEST_SECONDS, exit=True)
        try:
            answer = handle(request)
        except Exception as error:  # noqa: BLE001  (every failure is told to the parent, which raises CompileError)
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        write_message(channel, answer)


def _end_with_parent(parent: int) -> None:
    """A compilation that nobody waits for any more must not go on."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
