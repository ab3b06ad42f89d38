"""Training, evaluating and recommending through the real command. One small run is shared by most tests."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forked import Ended, rl4rec

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.eval.openings import read_openings
from rl4rec_cli.runs.making import open_run

RL4REC = [sys.executable, "-m", "rl4rec_cli.cli.main"]
SMALL = [
    *("data.synthetic.users=60", "data.synthetic.items=30", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("generation.max_completion_length=8", "prompt.max_history=2", "trainer.batch_size=8", "logging.steps=1"),
]
GRPO = [
    *SMALL,
    *("trainer.num_generations=4", "trainer.max_steps=3", "trainer.warm_start.max_steps=12", "logging.save_steps=1"),
]
METHODS = (
    "popularity",
    "last item",
    "history mean",
    "decayed mean",
    "BM25",
    "transitions",
    "before RL",
    "tuned policy",
)
GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
REWARD = '''
def words(texts, targets, histories, **kwargs):
    """Share of different words."""
    return [len(set(t.split())) / max(1, len(t.split())) for t in texts]
'''
STEP = re.compile(r"Step +\d+ \| Epoch \d+ Batch +\d+ \| Reward: -?\d+\.\d{4} ± \d+\.\d{4} \| Loss: -?\d+\.\d{4}")


def sets(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def whole_process(*args: str | Path, cwd: Path) -> Ended:
    """The command as a shell starts it."""
    done = subprocess.run([*RL4REC, *map(str, args)], capture_output=True, text=True, cwd=cwd, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


@dataclass
class Done:
    folder: Path
    stdout: str
    stderr: str

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "a"

    def row(self, method: str) -> list[str]:
        """The numbers of the last table's row of a method, as printed."""
        [line] = [line for line in self.stdout.splitlines() if line.startswith(f"{method}  ") and "[" not in line][:1]
        return line.removeprefix(method).split()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A small GRPO run with a reward of the user's own."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "my.py").write_text(REWARD)
    args = ["train", "grpo", "--quick-test", "--reward", "ndcg=1", "--reward", "./my.py:words=0.1"]
    process = whole_process(*args, *sets(*GRPO, "run.name=a"), cwd=folder)
    assert process.returncode == 0, process.stderr
    return Done(folder, process.stdout, process.stderr)


def test_training_ends_with_tables_on_stdout_and_plain_lines_on_stderr(done: Done) -> None:
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("synthetic-60x30-s0, validation split, 60 users, seed 42")
    assert lines[1].split() == ["method", *(f"{m}@{k}" for m in ("ndcg", "hit", "mrr") for k in (5, 10, 20))]
    assert [re.split(r"  +", line)[0] for line in lines[2:10]] == list(METHODS)
    assert lines[10] == ""
    assert lines[11].startswith("tuned policy minus …, ndcg@10, 60 users")
    assert lines[12].split("  ")[0] == "method"
    assert [re.split(r"  +", line)[0] for line in lines[13:20]] == list(METHODS[:-1])
    assert lines[21] == "Checkpoint: checkpoint_final."
    assert lines[23].startswith("Audit: ")
    assert lines[25].startswith("Verdict: on 60 validation users tuned policy reaches ndcg@10 ")
    assert len(lines) == 26

    steps = [line for line in done.stderr.splitlines() if "Reward: " in line]
    assert len(steps) == 3
    assert all(STEP.fullmatch(line) for line in steps), steps
    summaries = [line for line in done.stderr.splitlines() if line.startswith("Epoch ")]
    assert [line.split()[2] for line in summaries] == ["(sft)", "(grpo)"]
    assert "Next: rl4rec eval runs/a" in done.stderr
    notice = f"Reward words: running your code in {done.folder / 'my.py'}, as --reward asks"
    assert done.stderr.count(notice) == done.stderr.count("running your code") == 1
    assert "reward/my.py:words" in (done.run / "training_log.jsonl").read_text()
    for word in ("Warning", "warn", "Traceback", "FutureWarning"):
        assert word not in done.stderr


def test_the_run_folder(done: Done) -> None:
    names = sorted(p.name for p in done.run.iterdir())
    logs = ["rollouts.jsonl", "training_log.jsonl", "warm_start_log.jsonl"]
    assert names == ["checkpoints", "config.yaml", "datasets.json", "env.json", "eval", *logs]
    kept = sorted(p.name for p in (done.run / "checkpoints").iterdir())
    assert kept == ["checkpoint_final", "checkpoint_start", "checkpoint_step_2", "checkpoint_step_3"]
    config = load_config(algorithm=None, recipes=[str(done.run / "config.yaml")], allow_custom_rewards=True)
    assert config.trainer.max_steps == 3
    assert config.reward.functions == {"ndcg": 1.0, f"{done.folder}/my.py:words": 0.1}
    versions = json.loads((done.run / "env.json").read_text())["versions"]
    assert versions["trl"]
    log = [json.loads(line) for name in logs[:0:-1] for line in (done.run / name).read_text().splitlines()]
    assert [(r["phase"], r["step"]) for r in log] == [
        *(("sft", i + 1) for i in range(12)), *(("grpo", i + 1) for i in range(3))
    ]  # fmt: skip
    users = [json.loads(line) for line in (done.run / "eval" / "validation_users.jsonl").read_text().splitlines()]
    assert len(users) == 60
    assert set(users[0]) == {"user", "target", "ranks", "texts"}
    assert set(users[0]["texts"]) == {"before RL", "tuned policy"}


def test_the_documents_snippet_draws_the_runs_own_steps(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    [block] = [b for b in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S) if "read_json" in b]
    monkeypatch.chdir(done.run)
    plt.close("all")
    exec(block, {})
    log = [json.loads(line) for line in (done.run / "training_log.jsonl").read_text().splitlines()]
    loss, reward = plt.gca().lines
    assert loss.get_xdata().tolist() == reward.get_xdata().tolist() == [1, 2, 3]
    assert loss.get_ydata().tolist() == pytest.approx([record["loss"] for record in log])
    assert reward.get_ydata().tolist() == pytest.approx([record["avg_reward"] for record in log])


def test_a_runs_recipe_needs_its_own_reward_named_to_run_it(done: Done) -> None:
    again = rl4rec("train", "grpo", "-r", done.run / "config.yaml", "--dry-run", cwd=done.folder)
    assert again.returncode == 2
    assert f"add --reward {done.folder}/my.py:words=" in again.stderr
    named = rl4rec(
        *("train", "grpo", "-r", done.run / "config.yaml", "--reward", "./my.py:words=1", "--dry-run"), cwd=done.folder
    )
    assert named.returncode == 0


def test_eval_of_a_run_says_what_its_training_said(done: Done) -> None:
    """And needs neither the reward nor the file it was in."""
    (done.folder / "my.py").unlink()
    users, summary = done.run / "eval" / "validation_users.jsonl", done.run / "eval" / "validation.json"
    before, told = users.read_bytes(), json.loads(summary.read_text())
    process = whole_process("eval", "runs/a", "--json", cwd=done.folder)
    (done.folder / "my.py").write_text(REWARD)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    for method in METHODS:
        assert [f"{v:.4f}" for v in result["methods"][method].values()] == done.row(method)
    assert users.read_bytes() == before
    assert sorted(p.name for p in (done.run / "eval").glob("[!.]*")) == ["validation.json", "validation_users.jsonl"]
    # What training said, and the probes, which only `eval` makes.
    now = json.loads(summary.read_text())
    assert now == result
    assert {**now, "probes": [], "verdict": told["verdict"]} == told
    assert [p["name"] for p in result["probes"]] == [
        *("second embedder: BM25", "shuffled history", "another user's history")
    ]
    assert result["differences"].keys() == result["methods"].keys() - {"tuned policy"}
    assert result["behaviour"]["tuned policy"].keys() >= {"coverage", "novelty", "copy_rate", "distinct_texts"}
    assert result["audit"].startswith("Audit: ")
    assert sum(result["slices"][name]["users"] for name in ("hot", "cold")) == 60


def test_eval_on_the_test_split_and_of_a_checkpoint(done: Done) -> None:
    process = rl4rec("eval", "runs/a", "--split", "test", "--baselines", "popularity,untrained", cwd=done.folder)
    assert process.returncode == 0, process.stderr
    assert "test split, 60 users" in process.stdout
    assert "last item" not in process.stdout
    assert "before RL" in process.stdout
    assert "Test split opened 1 time (20" in process.stdout
    again = rl4rec("eval", "runs/a", "--split", "test", "--json", "--set", "eval.probes=false", cwd=done.folder)
    assert json.loads(again.stdout)["test_openings"]["count"] == 2
    assert "opened 2 times" in json.loads(again.stdout)["test_openings_line"]
    assert len((done.run / "test_openings.jsonl").read_text().splitlines()) == 2
    later = rl4rec(
        "eval", "runs/a", "--baselines", "none", "--users", "5", "--set", "eval.probes=false", cwd=done.folder
    )
    assert "Test split opened 2 times" in later.stdout
    kept = next((done.run / "eval").glob("variant-*/test_users.jsonl"))  # other baselines than the run's
    assert "untrained" in (kept.parent / "config.yaml").read_text()
    users = [json.loads(line) for line in kept.read_text().splitlines()]
    other = [json.loads(line) for line in (done.run / "eval" / "validation_users.jsonl").read_text().splitlines()]
    assert [u["user"] for u in users] == [u["user"] for u in other]
    assert [u["target"] for u in users] != [u["target"] for u in other]

    before = (done.run / "eval" / "validation.json").read_bytes()
    process = rl4rec("eval", "checkpoint_step_2/", "--baselines", "none", "--users", "7",
                     "--set", "eval.ks=[3]", cwd=done.run / "checkpoints")  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "validation split, 7 users" in process.stdout
    assert process.stdout.splitlines()[1].split() == ["method", "ndcg@3", "hit@3", "mrr@3"]
    assert (done.run / "eval" / "validation.json").read_bytes() == before  # the run's result is not this one
    assert list((done.run / "eval").glob("checkpoint_step_2-*/validation.json"))


def test_two_evaluations_at_once_lose_nothing(done: Done) -> None:
    twice = done.folder / "runs" / "twice"
    shutil.copytree(done.run, twice, ignore=shutil.ignore_patterns("test*"))
    command = [*RL4REC, "eval", "runs/twice", "--split", "test", "--baselines", "none", "--json"]
    both = [subprocess.Popen(command, cwd=done.folder, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    assert sorted(result["test_openings"]["count"] for result in results) == [1, 2]
    assert all(result["test_openings"]["problem"] is None for result in results)
    found = read_openings(open_run(twice))
    assert (found.count, found.problem) == (2, None)
    [file] = (twice / "eval").glob("*/test.json")  # without baselines: not the run's own result
    [kept] = [result for result in results if result == json.loads(file.read_text())]
    users = file.with_name("test_users.jsonl").read_text().splitlines()
    assert len(users) == kept["users"]


def test_eval_without_a_run(done: Done) -> None:
    toy = done.folder / "toy"
    assert rl4rec("data", "synth", toy, "--users", "50", "--items", "25", cwd=done.folder).returncode == 0
    alone = rl4rec("eval", "--dataset", "toy", "-r", "quick-test", cwd=done.folder)
    assert alone.returncode == 0, alone.stderr
    assert [re.split(r"  +", line)[0] for line in alone.stdout.splitlines()[2:8]] == list(METHODS[:-2])
    assert "no policy was measured" in alone.stdout.splitlines()[-1]
    copy = done.folder / "plain-model"
    (done.run / "checkpoints" / "checkpoint_final").rename(copy)
    try:
        plain = rl4rec(
            *("eval", "plain-model", "--dataset", "toy", "-r", "quick-test", "--json", "--baselines", "popularity"),
            cwd=done.folder,
        )
    finally:
        copy.rename(done.run / "checkpoints" / "checkpoint_final")
    assert plain.returncode == 0, plain.stderr
    assert list(json.loads(plain.stdout)["methods"]) == ["popularity", "plain-model"]
    nothing = rl4rec("eval", "--dataset", "toy", "-r", "quick-test", "--baselines", "none", cwd=done.folder)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "nothing to measure" in nothing.stderr


def test_eval_with_everything_there_is(done: Done) -> None:
    """SASRec is trained, joined to the policy and to the last item; prompts are swept; the second time all is read."""
    command = ["eval", "runs/a", "--baselines", "all", "--split", "test", "--users", "40"]
    first = rl4rec(*command, cwd=done.folder)
    assert first.returncode == 0, first.stderr
    shown = [re.split(r"  +", line)[0] for line in first.stdout.splitlines()]
    for name in (
        *("SASRec", "last item + SASRec", "tuned policy + SASRec", "zero-shot, best prompt"),
        *("second embedder: BM25", "nearest history item (ceiling)", "target text (ceiling)"),
    ):
        assert name in shown, name
    assert "SASRec round" in first.stderr
    again = rl4rec(*command, "--json", cwd=done.folder)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert "SASRec round" not in again.stderr
    assert "Writing completions" not in again.stderr
    assert result["notes"]["zero-shot, best prompt"]["prompt"] in result["notes"]["zero-shot, best prompt"]["tried"]
    assert all(0 <= w <= 1 for w in result["notes"]["last item + SASRec"]["weights"])
    assert result["notes"]["last item + SASRec"]["sasrec"] == result["notes"]["SASRec"]
    assert result["notes"]["SASRec"]["rounds"] > 0
    assert "nearest history item" not in result["differences"]
    # --fuse sasrec measures what the baseline `fusion` does; both read what is kept.
    fused = rl4rec(
        *("eval", "runs/a", "--fuse", "sasrec", "--baselines", "none", "--split", "test", "--users", "40", "--json"),
        cwd=done.folder,
    )
    assert fused.returncode == 0, fused.stderr
    assert "SASRec round" not in fused.stderr
    methods = json.loads(fused.stdout)["methods"]
    assert list(methods) == ["last item + SASRec", "tuned policy", "tuned policy + SASRec"]
    assert methods == {name: result["methods"][name] for name in methods}
    for line in first.stdout.splitlines():
        if line.startswith("SASRec  "):
            assert f"{result['methods']['SASRec']['ndcg@10']:.4f}" in line
            break


def test_eval_says_which_baselines_there_are(done: Done) -> None:
    wrong = rl4rec("eval", "runs/a", "--baselines", "popularity,last", cwd=done.folder)
    assert wrong.returncode == 2
    assert "eval.baselines" in wrong.stderr
    assert "last_item" in wrong.stderr


def test_recommend_for_a_user_and_for_titles(done: Done) -> None:
    shown = whole_process("recommend", "runs/a", "--user", "u3", "--json", cwd=done.folder)
    assert shown.returncode == 0, shown.stderr
    answer = json.loads(shown.stdout)
    history = [item["item_id"] for item in answer["history"]]
    assert len(history) >= 5
    assert [item["rank"] for item in answer["items"]] == list(range(1, 11))
    assert not set(history) & {item["item_id"] for item in answer["items"]}
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)

    known = answer["history"][0]["title"]
    typed = rl4rec("recommend", "runs/a/checkpoints/checkpoint_step_2", "--titles", f"{known}; zzzz", cwd=done.folder)
    assert (typed.returncode, typed.stdout) == (2, "")
    assert "\nerror: no item of synthetic-60x30-s0 is like 'zzzz'" in typed.stderr  # after its checkpoint


def test_titles_and_users_come_from_a_pipe(done: Done) -> None:
    known = [item["title"] for item in synthesize(60, 30, 0).items]
    lines = f"{known[4].upper()}\r\n\n{known[2]}; {known[7]}\n"
    for args in ([], ["--titles", "-"]):
        piped = rl4rec("recommend", "runs/a", *args, "-k", "3", "--json", cwd=done.folder, stdin=lines)
        assert piped.returncode == 0, piped.stderr
        assert [item["item_id"] for item in json.loads(piped.stdout)["history"]] == [4, 2, 7]
    listed = rl4rec("recommend", "runs/a", "--user", "-", "-k", "2", "--json", cwd=done.folder, stdin="u3\nu1\n")
    assert listed.returncode == 0, listed.stderr
    answers = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [answer["user"] for answer in answers] == ["u3", "u1"]
    assert all(len(answer["items"]) == 2 for answer in answers)
    wrong = rl4rec("recommend", "runs/a", "--user", "-", cwd=done.folder, stdin="u3\nnobody\n")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "nobody" in wrong.stderr


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What a terminal shows until `wanted` or its end; five minutes without a word are a failure."""
    seen = b""
    while wanted not in seen:
        assert select.select([terminal], [], [], 300)[0], seen
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            return seen
        if not chunk:
            return seen
        seen += chunk
    return seen


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_recommend_asks_on_a_terminal(done: Done, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*RL4REC, "recommend", "runs/a", "-k", "3"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=done.folder,
        env=env,
    )
    os.close(theirs)
    assert b"semicolons" in read_until(ours, b"> ")
    os.write(ours, b"zzzz\n")
    assert b"error: no item of" in read_until(ours, b"> ")
    os.write(ours, b"Veltra; navy wool\n")
    seen = read_until(ours, b"> ")
    assert seen.index(b"History") < seen.index(b"Completion: ") < seen.index(b"Recommended")
    os.write(ours, b"\n")
    read_until(ours, b"never said")
    assert process.wait() == 0


def test_recommend_answers_only_on_stdout_when_it_asks(done: Done, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    process = subprocess.Popen(
        [*RL4REC, "recommend", "runs/a", "-k", "3", "--json"],
        **{"stdin": theirs, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": done.folder},
    )
    os.close(theirs)
    known = [item["title"] for item in synthesize(60, 30, 0).items]
    os.write(ours, f"{known[4].upper()} ;{known[2]}\n\n".encode())
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    answer = json.loads(stdout)
    assert [item["item_id"] for item in answer["history"]] == [4, 2]
    assert len(answer["items"]) == 3
    assert stderr.endswith(b"> > ")


def test_sft_over_two_seeds_with_a_reader_who_leaves(done: Done) -> None:
    args = ["train", "sft", "--quick-test", "--seeds", "0,1", *sets(*SMALL, "trainer.max_steps=2", "run.name=s")]
    process = subprocess.run(
        f"{' '.join([*RL4REC, *args])} | head -1",
        **{"shell": True, "capture_output": True, "text": True, "cwd": done.folder, "check": False},
    )
    assert process.stdout.count("\n") == 1
    assert "rror" not in process.stderr
    for name, seed in (("s-s0", 0), ("s-s1", 1)):
        run = done.folder / "runs" / name
        assert (run / "checkpoints" / "checkpoint_final" / "model.safetensors").is_file()
        assert load_config(algorithm=None, recipes=[str(run / "config.yaml")]).run.seed == seed
    assert "runs/s-s1" in process.stderr.splitlines()[-1]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_last_whole_step(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    args = ["train", "grpo", "--quick-test", *sets(*GRPO, "trainer.warm_start=null", "trainer.max_steps=100000")]
    args += sets("trainer.num_train_epochs=100000", "logging.save_steps=100000", "run.name=r", "eval.baselines=[]")
    process = subprocess.Popen(
        [*RL4REC, *args],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path},
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Step      3 "):
            break
    process.send_signal(sent)
    try:
        _, rest = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == code, rest
    assert rest.endswith("error: interrupted\n" if sent == signal.SIGINT else "error: terminated\n")
    [kept] = [p.name for p in (tmp_path / "runs" / "r" / "checkpoints").iterdir() if p.name != "checkpoint_start"]
    last = json.loads((tmp_path / "runs" / "r" / "training_log.jsonl").read_text().splitlines()[-1])["step"]
    assert kept == f"checkpoint_step_{last}"
    assert f"the policy of step {last} is in runs/r/checkpoints/{kept}" in rest
    with pytest.raises(ProcessLookupError):  # nobody is left of its session
        os.killpg(process.pid, 0)
