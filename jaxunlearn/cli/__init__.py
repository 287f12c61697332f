"""The command line. Help and mistakes answer at once: a command's own imports happen when it is chosen."""

import errno
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "forget six people of a built-in fictitious corpus, five ways, and write a report (no files needed)",
    "finetune": "fine-tune a model on answers until it knows them",
    "unlearn": "make a model forget a set of records, keeping another",
    "curvature": "take the curvature of what is to be kept once, for later requests without a retain set",
    "evaluate": "compare a model with the one before and with one retrained without the forget set",
    "compare": "compare two result files, ours or published ones: Forget Quality, Model Utility, every metric",
    "attack": "stress-test forgetting: membership, relearning, rounding, probes; says what came back",
    "report": "write one page on an unlearned model: verdict, evidence, and what was not measured",
    "canary": "insert made-up secrets into training records, or score how exposed they are",
    "spectrum": "draw the curvature's eigenvalues, and what a Newton step does under every damping",
    "plan": "compile a step for TPUs you do not have: does it fit, what is sent, what bounds its time",
    "bench": "measure curvature products a second here, against a gradient and the device's best",
    "doctor": "report versions, devices and settings, and check that products come out right here",
    "methods": "list the unlearning methods, what they need, and their options",
}

USAGE = (
    "usage: jaxunlearn COMMAND [OPTIONS]\n\nMake a language model forget, in JAX, with exact curvature.\n\ncommands:\n"
)

EXIT_CODES = """exit codes:
  0    done
  1    a defect, with a traceback; from doctor, something it found wrong
  2    bad input, nothing was started: correct what the message names
  74   not written, the disk is full: make room, run again
  75   ended by SIGTERM, or by the end of another process, and all is saved: run again with --resume
  130  Ctrl-C: the message says how to go on"""
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_NOT_WRITTEN = 74  # EX_IOERR of sysexits.h
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 2 for bad input, 74 for a full disk, 75 to try again (after SIGTERM if all is
    saved, or when another process died), 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + "".join(f"  {name:<10} {line}\n" for name, line in COMMANDS.items()), end="")
        print("\njaxunlearn COMMAND --help lists a command's options.\n")
        print(EXIT_CODES)
        return 0
    if argv[0] in ("-V", "--version"):
        from jaxunlearn.version import __version__

        print(f"jaxunlearn {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"jaxunlearn: no command {argv[0]!r}; {hint}", file=sys.stderr)
        return EXIT_BAD_INPUT
    import importlib

    command = importlib.import_module(f"jaxunlearn.cli.{argv[0]}")
    try:
        command.main(argv[1:])
    except ValueError as error:
        if type(error) is not ValueError and not type(error).__module__.startswith("jaxunlearn."):
            raise
        print(f"jaxunlearn {argv[0]}: {_process()}{error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as error:
        # A run that saved itself says how to go on and which code that is (runs.preemption).
        print(f"jaxunlearn {argv[0]}: {error}" if str(error) else "interrupted; nothing was written", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `jaxunlearn methods | head`: whoever read has what they wanted. What is left unsaid goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in _NOT_WRITTEN:
            raise
        print(f"jaxunlearn {argv[0]}: {error}; nothing was left half-written", file=sys.stderr)
        return EXIT_NOT_WRITTEN
    except Exception as error:
        message = _lost(error)
        if message is None:
            raise
        print(f"jaxunlearn {argv[0]}: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # Any other way out waits for the process that is gone.
        os._exit(EXIT_TRY_AGAIN)
    return 0


def _lost(error: Exception) -> str | None:
    """What to say if another process is gone."""
    from jaxunlearn.sharding import hosts

    return hosts.lost(error)


def _process() -> str:
    """Which process of several speaks, where it is not the first: the error may be its own."""
    import jax

    if not jax.distributed.is_initialized() or jax.process_index() == 0:
        return ""
    return f"process {jax.process_index()} of {jax.process_count()}: "
