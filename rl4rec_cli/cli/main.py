"""The entry point `rl4rec`.

Decides: exit codes (0, 1 failed, 2 usage or configuration, 130 interrupted, 143 terminated) and how errors are shown.
Hides: Typer's own ways of ending a program, closed pipes, tracebacks.

Nothing heavy is imported here or by the command modules: `--help` must be quick.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rl4rec_cli import __version__, signals
from rl4rec_cli.cli import (
    compare,
    data,
    doctor,
    embed,
    eval,
    export,
    plan,
    prompts,
    recipes,
    recommend,
    report,
    serve_retrieval,
    settings,
    train,
)
from rl4rec_cli.cli.options import epilog
from rl4rec_cli.errors import Rl4RecError

app = typer.Typer(
    name="rl4rec",
    help="Tune a language model to recommend, and measure whether it got better.",
    epilog=epilog("rl4rec train grpo --quick-test", "rl4rec train grpo -r beauty-cpu --dataset data/beauty"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
prompts.add_to(app)
embed.add_to(app)
serve_retrieval.add_to(app)
app.add_typer(train.app, name="train")
eval.add_to(app)
compare.add_to(app)
report.add_to(app)
recommend.add_to(app)
export.add_to(app)
app.add_typer(recipes.app, name="recipes")
settings.add_to(app)
plan.add_to(app)
doctor.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rl4rec {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")] = False,
) -> None:
    pass  # `main` takes --debug out before Typer sees it; it is declared here for the help


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    options = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in options
    args = [arg for arg in options if arg != "--debug"] + args[len(options) :]
    # Threads that wait in a long spin starve each other on a busy machine: a tiny policy trains 50 times slower then.
    # A short spin costs nothing on a quiet one (not spinning at all does: 28 s for what takes 20). GNU OpenMP, which
    # torch brings, reads this when it is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _survive_closed_output()
    with signals.handled():
        code = _run_to_the_end(args, debug=debug)
    if argv is None and code in (130, 143):  # another one while the interpreter ends has nobody to handle it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _run_to_the_end(args: list[str], *, debug: bool) -> int:
    try:
        code = _run(args, debug=debug)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        is_term = isinstance(stop, signals.Terminated)
        _say("error: terminated" if is_term else "error: interrupted")
        return 143 if is_term else 130
    except Rl4RecError as error:  # the flush: a full disk
        _say(f"error: {error.message}")
        return error.exit_code
    return code


_LESS_MEMORY = (
    "`rl4rec plan` with the same recipe and settings says what takes it; smaller eval.batch_size, "
    "generation.num_beams and retrieval.batch_size, policy.quantization=4bit or a smaller model take less"
)


def _run(args: list[str], *, debug: bool) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("rl4rec", args) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        return _usage_error(error)
    except Rl4RecError as error:
        if debug:
            _say_traceback()
        _say(f"error: {error.message}", f"hint: {error.hint}" if error.hint else "")
        return error.exit_code
    except Exception as error:
        if debug:
            _say_traceback()
        reason = " ".join(str(error).split())
        if _is_out_of_memory(error):
            _say(f"error: out of memory{': ' if reason else ''}{reason}", f"hint: {_LESS_MEMORY}")
            return 1
        _say(
            f"error: unexpected {type(error).__name__}{': ' if reason else ''}{reason}",
            "" if debug else "hint: `rl4rec --debug …` shows where; please report it",
        )
        return 1
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from rl4rec_cli.train.out_of_memory import is_out_of_memory

    return is_out_of_memory(error)


def _usage_error(error: typer.TyperException) -> int:
    """Prints Typer's own errors (unknown option, missing argument) in the wording of rl4rec's errors."""
    message = error.format_message().strip()
    context = getattr(error, "ctx", None)
    if message.startswith("Usage:"):  # no command given: the message is the help
        _say(message)
        return 2
    command = f"`{context.command_path} --help`" if context else "`rl4rec --help`"
    hint = f"{command} shows what there is"
    if (option := getattr(error, "option_name", "")) and context and (meaning := _meant(option, context)):
        message, hint = f"no such option: {option}", meaning
    _say(f"error: {message[:1].lower()}{message[1:].rstrip('.')}", f"hint: {hint}")
    return 2


def _meant(option: str, context: Any) -> str:
    """Explains an unknown option: another spelling, another project's name or a setting. Empty if it is none."""
    from rl4rec_cli.config.aliases import find_alias

    own = {name for parameter in context.command.params for name in parameter.opts}
    spelling = "--" + option.lstrip("-").replace("_", "-")
    if spelling in own:
        return f"it is written {spelling}"
    alias = find_alias(option)
    if alias is not None and alias.flag in own:
        return f"it is called {alias.flag} here" + (f": {alias.note}" if alias.note else "")
    if "--set" not in own:
        return ""
    if alias is None or not alias.key:
        from rl4rec_cli.config.schema import keys_named

        keys = keys_named(option.lstrip("-").replace("-", "_"))
        return f"it is a setting: {' or '.join('--set ' + key + '=…' for key in keys)}" if keys else ""
    sets = " and ".join(f"--set {key}=…" for key in alias.key.split(","))
    return f"it is the setting {sets}" + (f" ({alias.note})" if alias.note else "")


def _say(*lines: str) -> None:
    if sys.stderr is None:  # closed from the start; `print` would take standard output instead
        return
    try:
        for line in lines:
            if line:
                print(line, file=sys.stderr, flush=True)
    except (Rl4RecError, ValueError):  # a full disk: the exit code remains
        pass


def _say_traceback() -> None:
    import traceback

    _say(traceback.format_exc().rstrip())


class _Output(io.TextIOWrapper):
    """Standard output whose reader may leave (`rl4rec … | head -1`): later output is dropped.

    A run must not die after hours because somebody closed the pager.
    """

    def write(self, text: str) -> int:
        if text == "":  # Typer's test of what a stream takes; it would swallow what this raises
            return 0
        try:
            return super().write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        # The descriptor itself is replaced: child processes and the interpreter's own last flush use it too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # a full disk, not a reader who left
            name = "stdout" if self.fileno() == 1 else "stderr"
            raise Rl4RecError(f"cannot write to {name}: {(error.strerror or str(error)).lower()}") from None


def _survive_closed_output() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Not under a test's capture or a notebook, where the streams are something else.
        if type(stream) is io.TextIOWrapper and stream.fileno() == (1 if name == "stdout" else 2):
            stream.flush()
            # A terminal that cannot show a character gets its escape, not a crash. In the C locale Python's own way
            # passes on undecoded bytes, and still fails with every other character.
            errors = "backslashreplace" if stream.errors in ("strict", "surrogateescape") else stream.errors
            output = _Output(
                stream.buffer,
                encoding=stream.encoding,
                errors=errors,
                line_buffering=stream.line_buffering or name == "stderr",
                write_through=stream.write_through,
            )
            setattr(sys, name, output)


if __name__ == "__main__":
    sys.exit(main())
