"""The real command in subprocesses: exit codes, messages, streams, recipes, dry runs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from rl4rec_cli.config.layering import dump_config, load_config, packaged_recipes

RL4REC = [sys.executable, "-m", "rl4rec_cli.cli.main"]


def run(
    *args: str,
    cwd: Path | None = None,
    stdin: str = "",
    env: dict[str, str] | None = None,
    python: tuple[str, ...] = (),
):  # type: ignore[no-untyped-def]
    return subprocess.run(
        [RL4REC[0], *python, *RL4REC[1:], *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        check=False,
    )


def in_process(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """`main(args)` after `code`, which may replace what a command calls."""
    script = f"import sys, types\n{code}\nfrom rl4rec_cli.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)


STUB = """
session = types.ModuleType("rl4rec_cli.commands.train")
def train(config, seeds, resume=None, allow_partial=False, show=None):
    {body}
session.train = train
sys.modules["rl4rec_cli.commands.train"] = session
"""


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "rl4rec 0.1.0\n", "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["trian"],
            "error: no such command 'trian'. Did you mean 'train'?\nhint: `rl4rec --help` shows what there is\n",
        ),
        (
            ["train", "grpo", "--foo"],
            "error: no such option: --foo\nhint: `rl4rec train grpo --help` shows what there is\n",
        ),
        (["recipes", "show"], "error: missing argument 'NAME'\n"),
        (["data", "synth", "x", "--users", "0"], "error: invalid value for '--users'"),
        (
            ["recipes", "show", "quick"],
            "error: unknown recipe `quick`; did you mean `quick-test`?\nhint: `rl4rec recipes list`",
        ),
        (["train", "grpo", "--seeds", "0,x"], "error: --seeds '0,x': must be whole numbers with commas"),
        (["train", "grpo", "--seeds", "1,1"], "a seed is given twice"),
        (["train", "grpo", "--seeds", "-1"], "must lie between 0 and"),
        (["train", "grpo", "--reward", "ndcg=much"], "error: --reward ndcg=much: must be NAME or NAME=WEIGHT"),
        (["train", "grpo", "--reward", "ndgc"], "unknown reward `ndgc`; did you mean ndcg? (--reward)"),
        (
            ["train", "grpo", "--set", "trainer.bta=1"],
            "error: trainer.bta: unknown key; did you mean `trainer.beta`? (--set)\n",
        ),
        (["train", "grpo", "--set", "reward.functions.m:a=1"], "hint: if you trust that code, add --reward m:a=1\n"),
        (["train", "grpo", "-r", "none.yaml"], "error: cannot read recipe none.yaml: no such file or directory\n"),
        (["train", "grpo"], "error: no dataset"),
        (["train", "grpo", "--dataset", "nowhere"], "error: nowhere"),
        (
            ["embed", "d", "--embedder", "lsi"],
            "not 'lsi'; did you mean lsa?",
        ),
        (["recommend", "run"], "error: nothing to recommend for: give --user or --titles\n"),
        (["recommend", "run", "--user", "1", "--titles", "a"], "error: give --user or --titles, not both\n"),
        (["recommend", "run", "--titles", " ; "], "error: --titles is empty\n"),
        (["eval", "run", "--split", "tset", "--set", "eval.ks=x"], "error: "),
    ],
)
def test_usage_and_configuration_errors_exit_2(args: list[str], said: str) -> None:
    done = run(*args)
    assert said in done.stderr
    first, *rest = done.stderr.splitlines()
    assert (rest[0] if first.startswith("No recipe given: ") else first).startswith("error: ")
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


def test_no_command_shows_the_help_and_exits_2() -> None:
    for args in ([], ["train"]):
        done = run(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: rl4rec")


def test_the_same_without_asserts() -> None:
    done = run("train", "grpo", "--set", "trainer.bta=1", python=("-O",))
    assert done.returncode == 2
    assert "did you mean" in done.stderr


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise KeyboardInterrupt", 130, "error: interrupted\n"),
        (
            "from rl4rec_cli.errors import RunError; raise RunError('it broke', hint='mend it')",
            1,
            "error: it broke\nhint: mend it\n",
        ),
        ("from rl4rec_cli.errors import DataError; raise DataError('bad data')", 2, "error: bad data\n"),
        (
            "raise KeyError('x\\ny')",
            1,
            "error: unexpected KeyError: 'x\\ny'\nhint: `rl4rec --debug …` shows where; please report it\n",
        ),
    ],
)
def test_errors_of_a_command(body: str, code: int, said: str) -> None:
    done = in_process(STUB.format(body=body), "train", "grpo", "--quick-test")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


@pytest.mark.parametrize("args", [["--debug", "train", "grpo"], ["train", "grpo", "--debug"]])
def test_traceback_with_debug_only(args: list[str]) -> None:
    done = in_process(STUB.format(body="raise KeyError('x')"), *args, "--quick-test")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: unexpected KeyError: 'x'\n")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("raise MemoryError", "error: out of memory\nhint: `rl4rec plan` "),
        (
            "import torch; raise torch.OutOfMemoryError('tried 2 GiB')",
            "error: out of memory: tried 2 GiB\nhint: `rl4rec",
        ),
    ],
)
def test_memory_that_runs_out_where_there_is_nothing_to_go_on_with(raised: str, said: str) -> None:
    done = in_process(STUB.format(body=raised), "train", "grpo", "--quick-test")
    assert done.returncode == 1
    assert done.stderr.startswith(said)


def test_what_train_is_called_with() -> None:
    stub = STUB.format(
        body="print(config.trainer.algorithm, seeds, config.reward.functions, config.data.synthetic is not None)"
    )
    done = in_process(
        stub, "train", "sft", "--quick-test", "--seeds", "3, 1", "--reward", "ndcg=1", "--reward", "hit=0"
    )
    assert (done.returncode, done.stdout) == (0, "sft (3, 1) {'ndcg': 1.0, 'hit': 0.0} True\n")
    done = in_process(
        stub, "train", "grpo", "--quick-test", "--set", "run.seed=9", "--reward", "a/b.py:f=0.5", "--reward", "mrr"
    )
    assert (done.returncode, done.stdout) == (0, "grpo (9,) {'a/b.py:f': 0.5, 'mrr': 1.0} True\n")


# Dry runs


def test_dry_run_prints_a_recipe_that_gives_the_same(tmp_path: Path) -> None:
    args = [
        "train",
        "grpo",
        "-r",
        "beauty-grpo",
        "--dataset",
        "d",
        "--output",
        "o",
        "--model",
        "m",
        "--set",
        "trainer.max_steps=7",
    ]
    assert run("data", "synth", "d", "--users", "200", "--items", "30", cwd=tmp_path).returncode == 0
    done = run(*args, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = load_config(
        algorithm="grpo",
        recipes=["beauty-grpo"],
        flags={"data.path": "d", "run.output_dir": "o", "policy.model": "m"},
        sets=["trainer.max_steps=7"],
    )
    assert done.stdout == dump_config(expected)
    assert "placement: not known: m: no preset" in done.stderr
    (tmp_path / "own.yaml").write_text(done.stdout)
    assert run("train", "grpo", "-r", "own.yaml", "--dry-run", cwd=tmp_path).stdout == done.stdout


def test_quick_test_is_a_recipe_on_top_below_the_flags() -> None:
    flag = run("train", "grpo", "-r", "beauty-cpu", "--quick-test", "--dry-run")
    recipes = run("train", "grpo", "-r", "beauty-cpu", "-r", "quick-test", "--dry-run")
    assert flag.stdout == recipes.stdout
    assert "embedder: lsa" in flag.stdout
    assert "path: mine" in run("train", "sft", "--quick-test", "--dataset", "mine", "--dry-run").stdout


def test_dry_run_imports_nothing_heavy() -> None:
    code = "import atexit; atexit.register(lambda: print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules]))"
    done = in_process(code, "train", "grpo", "--quick-test", "--dry-run")
    assert done.stdout.endswith("\n[]\n")


# Recipes


def test_recipes_list_and_show(tmp_path: Path) -> None:
    done = run("recipes", "list", cwd=tmp_path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["recipe", "purpose", "hardware"]
    assert [line.split()[0] for line in lines[1:]] == sorted(packaged_recipes())
    shown = run("recipes", "show", "quick-test", cwd=tmp_path)
    assert shown.stdout == packaged_recipes()["quick-test"].text


def test_recipes_copy_never_overwrites_unless_forced(tmp_path: Path) -> None:
    done = run("recipes", "copy", "quick-test", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "quick-test.yaml\n")
    own = tmp_path / "quick-test.yaml"
    own.write_text("# mine\n")
    again = run("recipes", "copy", "quick-test", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith("error: quick-test.yaml is there already\nhint: ")
    assert own.read_text() == "# mine\n"
    assert run("recipes", "copy", "quick-test", "--force", cwd=tmp_path).returncode == 0
    assert own.read_text() == packaged_recipes()["quick-test"].text
    (tmp_path / "folder").mkdir()
    assert run("recipes", "copy", "quick-test", "folder", cwd=tmp_path).stdout == "folder/quick-test.yaml\n"
    lost = run("recipes", "copy", "quick-test", "no/where.yaml", cwd=tmp_path)
    assert (lost.returncode, lost.stderr) == (2, "error: cannot write no/where.yaml: no such file or directory\n")


# Streams


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", ["recipes list", "--help", "train grpo --quick-test --dry-run"])
def test_a_reader_who_leaves_is_no_crash(args: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [*RL4REC, *args.split()], stdout=writer, stderr=subprocess.PIPE, text=True, env=env, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert "rror" not in done.stderr


def test_closed_and_full_outputs() -> None:
    command = " ".join(RL4REC)
    closed = subprocess.run(f"{command} recipes list >&-", shell=True, capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")
    silent = subprocess.run(f"{command} trian 2>&-", shell=True, capture_output=True, text=True, check=False)
    assert (silent.returncode, silent.stdout) == (2, "")
    if Path("/dev/full").exists():
        full = subprocess.run(
            f"{command} recipes list >/dev/full", shell=True, capture_output=True, text=True, check=False
        )
        assert (full.returncode, full.stderr) == (1, "error: cannot write to stdout: no space left on device\n")


def test_an_output_that_cannot_show_a_character() -> None:
    done = run("train", "grpo", "--dataset", "é…", "--dry-run", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2  # there is no such dataset
    assert "path: \\xe9\\u2026\n" in done.stdout


def draw(code: str, env: dict[str, str] | None = None) -> str:
    """What `code` writes to a terminal."""
    terminal, end = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=end,
        stdout=end,
        stderr=end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **(env or {})},
    )
    os.close(end)
    written = b""
    try:
        while chunk := os.read(terminal, 4096):
            written += chunk
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert done.wait() == 0
    return written.decode()


TABLE = """
from rl4rec_cli import console
console.table("T[b]", ["method", "ndcg@10"], [["last [red]item[/red]", 0.04],
    ["\\x1b[2Jevil\\u202e", -12.5], ["日本", None]])
"""


def test_tables_on_a_terminal_and_off_it() -> None:
    plain = subprocess.run([sys.executable, "-c", TABLE], capture_output=True, text=True, check=True).stdout
    assert plain.splitlines() == [
        "T[b]",
        "method                 ndcg@10",
        "last [red]item[/red]    0.0400",
        "[2Jevil               -12.5000",
        "日本",
    ]
    drawn = draw(TABLE)
    assert "last [red]item[/red]" in drawn
    assert "\x1b[2J" not in drawn
    assert "\x1b" in drawn
    # Too narrow to draw: plain lines, in which no number is cut.
    assert "\x1b" not in draw(TABLE, {"COLUMNS": "30"})
    assert "-12.5000" in draw(TABLE, {"COLUMNS": "30"})
    # NO_COLOR leaves bold and italics, no colours.
    assert "\x1b[3" not in draw(TABLE, {"NO_COLOR": "1"}).replace("\x1b[3m", "")


PROGRESS = """
from rl4rec_cli import console
with console.progress(4, "work [x]", every={every}) as advance:
    for _ in range(2):
        advance(2)
        console.log("line [y]")
"""


def test_progress_on_a_terminal_and_off_it() -> None:
    for every, expected in ((0, ["work [x]: 2/4 (50%), 0 s", "line [y]"]), (1000, ["line [y]", "line [y]"])):
        code = PROGRESS.format(every=every)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == ""
        assert done.stderr.splitlines()[:2] == expected
    drawn = draw(PROGRESS.format(every=0))
    assert "line [y]" in drawn
    assert "4/4" in drawn


def test_a_locale_that_knows_only_ascii_ends_nothing() -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    code = "from rl4rec_cli.cli import main; from rl4rec_cli import console; main._survive_closed_output(); "
    code += r"console.log('R\xe9glage \xb1'); console.result('\u4e16\u754c')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\\u4e16\\u754c\n"
    assert done.stderr == "R\\xe9glage \\xb1\n"


def test_an_unknown_key_of_the_warm_start_is_not_said_to_be_another_algorithm_s() -> None:
    done = run("train", "grpo", "--set", "trainer.warm_start.learning_rat=1", "--dry-run")
    assert done.returncode == 2
    assert "did you mean `trainer.warm_start.learning_rate`?" in done.stderr
    assert "belongs to" not in done.stderr


def test_a_table_wider_than_the_terminal_breaks_no_number() -> None:
    columns = ["method", *(f"ndcg@{k}" for k in (5, 10, 20, 50)), "95 % interval"]
    rows = [[name, 0.1234, 0.2345, 0.3456, 0.4567, "[+0.0197, +0.0558]"] for name in ("last item", "tuned policy")]
    lines = draw(
        f"from rl4rec_cli import console; console.table('means', {columns!r}, {rows!r})", {"COLUMNS": "40"}
    ).splitlines()
    assert max(map(len, lines)) <= 40
    shown = [number for line in lines if line.startswith("tuned policy") for number in line.split()[2:]]
    assert shown == ["0.1234", "0.2345", "0.3456", "0.4567", "[+0.0197,", "+0.0558]"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dataset", "nowhere"], "nowhere: no such dataset folder"),
        (["--dataset", "nowhere", "--dataset", "neither"], "no such dataset folder"),
        (["--quick-test", "--set", "policy.device=cuda:7"], "policy.device=cuda:7, but this machine has"),
        (["--quick-test", "--set", "retrieval.device=cuda:7"], "retrieval.device=cuda:7, but this machine has"),
    ],
)
def test_a_dry_run_refuses_data_and_devices_that_are_not_there(args: list[str], said: str, tmp_path: Path) -> None:
    done = run("train", "grpo", *args, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_dry_run_refuses_what_training_would(tmp_path: Path) -> None:
    assert run("data", "synth", "d", "--users", "100", "--items", "30", cwd=tmp_path).returncode == 0
    train = ("train", "grpo", "-r", "cpu", "--dataset", "d")
    for flags, code, said in (
        (["--set", "run.name=there"], 1, "there: this run is there already"),
        (["--reward", "./none.py:r"], 2, "reward file ./none.py: no such file"),
        (["--set", "data.train_users=1"], 2, "one step takes"),
        (["--set", "run.name=new"], 0, "100 users, 30 items"),
    ):
        (tmp_path / "runs" / "there").mkdir(parents=True, exist_ok=True)
        done = run(*train, *flags, "--dry-run", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
