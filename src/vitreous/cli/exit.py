"""Running the command line, and leaving it: exit codes, and one line for whatever ends a command early."""

import errno
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from cyclopts import CycloptsError

from vitreous.cli import (  # noqa: F401 - each adds its commands
    comparing,
    data_bench,
    data_check,
    data_pack,
    inspecting,
    machine,
    measuring,
    models,
    recipes,
    replaying,
    runs,
    sweeping,
    training,
    using,
)
from vitreous.cli.app import app
from vitreous.console import escaped
from vitreous.errors import InputError, SaidElsewhere
from vitreous.stopping import EXIT_TRY_AGAIN, Lost, Stopped

EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130
SPEAKER_S = 30.0
"""How long a process that has nothing to say stays, since the first that leaves has torchrun end all others: also the
one that is to say why."""


def _complain(line: str) -> None:
    text = escaped(" ".join(line.split()))
    with suppress(OSError):  # nobody listens
        print(f"vitreous: {text.encode('utf-8', 'replace').decode()}", file=sys.stderr, flush=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM while nothing was being trained."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    0 done; 1 our bug; 2 input, usage or data; 3 `data check --strict` has found something; 75 stopped by SIGTERM or out
    of time, can be gone on with; 130 Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the shell has closed it
            stream.reconfigure(errors="backslashreplace")  # odd file names
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to all when one has failed
        code = _explain(error)
        _leave_the_others(code)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_the_others(code: int) -> None:
    """End here if there are other processes.

    At Python's own end, threads of torch that still wait for the others would abort it, or hold it up.
    """
    talk = sys.modules.get("torch.distributed")
    if talk is not None and talk.is_available() and talk.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def _explain(error: BaseException) -> int:
    """Say in one line what ended the command; its exit code."""
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        if error.errno == errno.EPIPE:  # the reader of our output has left, as `head` does
            return 0
        _complain("cannot write the result: the disk behind the output is full")
        return EXIT_INPUT
    if isinstance(error, Stopped):
        from vitreous.distributed import launcher
        from vitreous.provenance import command_line

        if os.environ.get("RANK", "0") == "0":  # all stop together
            again = f"{launcher()} {command_line()}".strip()
            _complain(f"{error}; saved. To go on, type the same command again: {again}")
        return error.exit_code
    if isinstance(error, Lost):
        _complain(f"{error}; what was saved is whole, and the same command goes on from there")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        if os.environ.get("RANK", "0") == "0":
            _complain("stopped; no file is half written, and the same command can be typed again")
        return EXIT_TRY_AGAIN if isinstance(error, Terminated) else EXIT_INTERRUPTED
    if isinstance(error, SaidElsewhere) or (
        isinstance(error, CycloptsError) and os.environ.get("LOCAL_RANK", "0") != "0"
    ):
        if "TORCHELASTIC_RUN_ID" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(SPEAKER_S)
        return EXIT_INPUT
    if isinstance(error, CycloptsError):
        _complain(f"{error} (vitreous --help, or vitreous COMMAND --help)")
        return EXIT_INPUT
    if isinstance(error, InputError):
        _complain(str(error))
        return EXIT_INPUT
    if isinstance(error, OSError) and error.filename is not None:  # of the user's, or they would be InputErrors
        _complain(f"{error.filename}: {error.strerror}; check that path and its permissions")
        return EXIT_INPUT
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        _complain("the device has too little memory; take a smaller --model or --image-size, or --batch_size in train")
        return EXIT_INPUT
    log = Path(tempfile.gettempdir()) / f"vitreous-error-{os.getpid()}.log"
    log.write_text("".join(traceback.format_exception(error)))
    _complain(f"a bug of ours: {type(error).__name__}: {error}; please report it with {log}")
    return EXIT_BUG
