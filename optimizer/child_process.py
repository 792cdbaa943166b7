"""A child process that answers requests, for native code that may crash or hang: it takes nobody along.

Requests and answers are pickles with their length before them, on the child's standard input and output. Both ends
are ours; nothing is read from a file or a network.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

__all__ = ["LONGEST_SECONDS", "ChildDiedError", "ChildProcess", "serve"]

LONGEST_SECONDS = 600.0
"""A request that takes longer is given up, unless it brings a limit of its own as `"seconds"`."""

_LENGTH = struct.Struct("<Q")
_LAST_SECONDS = 2.0
_GIVEN_UP = "Timeout ("
"""How the report of `faulthandler` on a request that took too long begins."""


class ChildDiedError(Exception):
    """The child ended while it worked on a request; the message says how, and its last words."""


class ChildProcess:
    """One child process, started on demand and started again after a crash. Safe to use from several threads.

    Args:
        module: Its `main()` calls `serve`.
        environment: Variables beside those of this process.
    """

    def __init__(self, module: str, environment: dict[str, str] | None = None) -> None:
        self._module = module
        self._environment = environment or {}
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)

    def start(self) -> None:
        """Start the child if it is not running; returns at once."""
        with self._lock:
            self._start()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for the answer.

        Raises:
            ChildDiedError: The child died, or took longer than it may.
        """
        with self._lock:
            child = self._start()
            try:
                _write_message(cast(BinaryIO, child.stdin), request)
                answer = _read_message(cast(BinaryIO, child.stdout))
            except BrokenPipeError:
                answer = None
            except BaseException:  # an interrupt leaves half a message in the pipe
                self._stop()
                raise
            if answer is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_LAST_SECONDS)  # it tells how it died
                code = self._stop()
                raise ChildDiedError(f"{_how(code)}; its last words: {self._last_words()}")
            return cast("dict[str, Any]", answer)

    def release(self) -> None:
        """End the child, for its memory; the next call starts another."""
        with self._lock:
            self._stop()

    def close(self) -> None:
        """End the child for good."""
        with self._lock:
            self._stop()
            self._log.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            root = str(Path(__file__).resolve().parents[1])
            code = f"import sys; sys.path.insert(0, {root!r}); from {self._module} import main; main()"
            self._log.seek(0)
            self._log.truncate()
            self._child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **self._environment},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        return self._child

    def _stop(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()  # it holds nothing that must be put in order
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        return code

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if any(line.startswith(_GIVEN_UP) for line in lines):
            return "it took too long and was given up"
        return " | ".join(line.strip() for line in lines[-3:])[:400] or "none"


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]], prepare: Callable[[], None]) -> None:
    """Answer requests until the parent closes the pipe or ends.

    Args:
        handle: Gives the answer to a request. What it raises is told to the parent as `"error"` and `"traceback"`.
        prepare: Called once before the first request, for imports.
    """
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between messages
    prepare()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    while (request := _read_message(sys.stdin.buffer)) is not None:
        faulthandler.dump_traceback_later(request.get("seconds", LONGEST_SECONDS), exit=True)
        try:
            answer = handle(request)
        except Exception as error:  # noqa: BLE001  (every failure is told to the parent, which raises its own)
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        _write_message(channel, answer)


def _read_message(stream: BinaryIO) -> Any:
    """The next message; `None` at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    body = stream.read(size)
    return pickle.loads(body) if len(body) == size else None


def _write_message(stream: BinaryIO, message: Any) -> None:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def _end_with_parent(parent: int) -> None:
    """Work that nobody waits for any more must not go on."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _how(code: int | None) -> str:
    if code is None:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
