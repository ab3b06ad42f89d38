"""The retrieval service when things go wrong: real Ray, on the CPU."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command_lines import ends

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import ConfigError, DataError, EmbeddingError, ServiceBusy, ServiceError
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.rewards import create_reward_function

pytestmark = pytest.mark.ray
COMMAND = [sys.executable, "-m", "rl4rec_cli.cli.main"]
Cluster = tuple[Any, str, Path]


@pytest.fixture(scope="module")
def service(start: Callable[..., Any], catalogue: tuple[Path, Dataset]) -> tuple[RetrievalSection, Any]:
    """A service of one actor that takes two requests while it is busy."""
    section, actors = start("Service", [catalogue[0]], service={"queue": 8})
    return section, actors[0]


@pytest.fixture(scope="module")
def expected(catalogue: tuple[Path, Dataset]) -> Any:
    return open_retriever(
        RetrievalSection(backend="in-process", embedder="lsa", lsa_dim=24, device="cpu"), catalogue[1]
    )


def many(dataset: Dataset, count: int) -> tuple[list[str], list[int], list[list[int]]]:
    """Distinct texts, long enough to keep the service busy for seconds."""
    titles = [str(item["title"]) for item in dataset.items]
    texts = [f"{' '.join([titles[i % len(titles)]] * 12)} {titles[i * 7 % len(titles)]} {i}" for i in range(count)]
    return texts, [i % len(titles) for i in range(count)], [[]] * count


def together(*commands: tuple[list[str], dict[str, str]]) -> list[subprocess.CompletedProcess[str]]:
    """Runs commands at the same time, each in its environment: most of the time they wait for Ray."""

    def run(command: tuple[list[str], dict[str, str]]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command[0], env=command[1], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(run, commands))


def until_busy(ray: Any, actor: Any) -> None:
    for _ in range(5_000):
        if ray.get(actor.health.remote())["busy"]:
            return
    pytest.fail("the service was never busy")


def test_killed_in_a_request_it_is_started_again_and_answers(
    cluster: Cluster, service: Any, catalogue: Any, expected: Any
) -> None:
    ray, (section, actor) = cluster[0], service
    retriever = open_retriever(section, catalogue[1])
    before = ray.get(actor.health.remote())["pid"]
    batch = many(catalogue[1], 20_000)
    pending = retriever.submit_ranks(*batch)
    until_busy(ray, actor)
    ray.kill(actor, no_restart=False)
    assert pending.result().ranks.tolist() == expected.target_ranks(*batch).ranks.tolist()
    assert ray.get(actor.health.remote())["pid"] != before


def test_a_full_queue_refuses_and_what_waits_is_ranked_together(
    cluster: Cluster, service: Any, catalogue: Any, expected: Any
) -> None:
    ray, (section, actor) = cluster[0], service
    small = (["rose", "worda wordb", catalogue[1].items[0]["title"]], [0, 1, 2], [[], [3], []])
    before = ray.get(actor.health.remote())
    big = actor.target_ranks.remote(*many(catalogue[1], 40_000), "shop")
    until_busy(ray, actor)
    waiting = [actor.target_ranks.remote(*small, "shop") for _ in range(12)]
    answers, refused = [], 0
    for reference in waiting:
        try:
            answers.append(ray.get(reference))
        except ServiceBusy:
            refused += 1
    ray.get(big)
    health = ray.get(actor.health.remote())
    assert refused == health["refused"] - before["refused"] == 4
    assert [a.ranks.tolist() for a in answers] == [expected.target_ranks(*small).ranks.tolist()] * 8
    assert health["answered"] - before["answered"] == 9
    assert health["batches"] - before["batches"] <= 3
    without_retries = section.model_copy(update={"service": section.service.model_copy(update={"retries": 0})})
    client = open_retriever(without_retries, catalogue[1])
    big = actor.target_ranks.remote(*many(catalogue[1], 40_000), "shop")
    until_busy(ray, actor)
    pending = [client.submit_ranks(*small) for _ in range(9)]
    with pytest.raises(ServiceBusy, match="8 requests waiting and takes no more"):
        [one.result() for one in pending]
    ray.get(big)


def test_wrong_requests_are_refused_and_change_nothing(cluster: Cluster, service: Any, expected: Any) -> None:
    ray, (_, actor) = cluster[0], service
    before = ray.get(actor.health.remote())
    garbage = [
        (actor.target_ranks, (["a"], [0], [[]], "no such"), "has no dataset 'no such'; it serves shop"),
        (actor.target_ranks, (["a"], [0], [[]], ["shop"]), "has no dataset"),
        (actor.target_ranks, ("a", [0], [[]], "shop"), "texts must be a list, not str"),
        (actor.target_ranks, ([b"a"], [0], [[]], "shop"), "text 0 is a bytes"),
        (actor.target_ranks, (["a"], [0.5], [[]], "shop"), "whole numbers"),
        (actor.target_ranks, (["a"], [0], [["x"]], "shop"), "whole numbers"),
        (actor.target_ranks, (["a"], [10**6], [[]], "shop"), "outside the catalogue"),
        (actor.target_ranks, (["a"] * 65_537, [], [], "shop"), "65,537 texts in one request, at most 65,536"),
        (actor.target_ranks, (["a" * 20_001], [0], [[]], "shop"), "text 0 has 20,001 characters, at most 20,000"),
        (actor.calculate_reward, (["a"] * 65_536 * 2, "shop"), "131,072 texts"),
        (actor.search, (["a"], 0, None, "shop"), "k must be at least 1"),
        (actor.search, (["a"], "3", None, "shop"), "k must be at least 1"),
        (actor.item_vectors, ([301], "shop"), "outside the catalogue"),
    ]
    for method, arguments, message in garbage:
        with pytest.raises(DataError, match=message):
            ray.get(method.remote(*arguments))
    after = ray.get(actor.health.remote())
    assert (after["pid"], after["waiting"]) == (before["pid"], 0)


GROWTH_MB = 16
"""What a service may grow by over 10,000 requests that it refuses."""


def test_ten_thousand_wrong_requests_are_refused_and_leave_nothing(
    cluster: Cluster, service: Any, catalogue: Any, expected: Any
) -> None:
    """Drawn from what can be wrong with each part of a request; the service is alive, and no larger, afterwards."""
    ray, (_, actor) = cluster[0], service
    draw = random.Random(7)
    names = [None, 5, 1.5, b"shop", ["shop"], {"shop": 1}, "", "Shop", "shop ", "../shop", "s" * 5_000, "\0", math.nan]
    texts = [
        None,
        5,
        "one text",
        b"bytes",
        {"a": 1},
        [None],
        [5],
        [b"a"],
        [["a"]],
        [math.nan],
        ["a" * 20_001],
        ["\ud800"],
    ]
    ids = [-1, 301, 10**30, -(10**30), 0.5, math.nan, math.inf, "1", None, [[1]], {"1": 1}, b"1", 1.5]
    lists = [None, 7, "x", {}, [[math.nan]], [["x"]], [[-1]], [[10**25]], [[[1]]], [5], [None], [[], []], [[0.5]]]
    good = (["rose"], [0], [[]], "shop")
    ks = [0, -1, 1.5, math.nan, None, "3", True, [3], 2.0]

    def wrong() -> Any:
        kind = draw.randrange(9)
        if kind == 0:
            return actor.target_ranks.remote(*good[:3], draw.choice(names))
        if kind == 1:
            return actor.target_ranks.remote(draw.choice(texts), *good[1:])
        if kind == 2:
            return actor.target_ranks.remote(["rose"], draw.choice([[draw.choice(ids)], draw.choice(ids)]), *good[2:])
        if kind == 3:
            return actor.target_ranks.remote(*good[:2], draw.choice(lists), "shop")
        if kind == 4:
            return actor.search.remote(["rose"], draw.choice(ks), None, "shop")
        if kind == 5:
            return actor.search.remote(["rose"], 3, draw.choice(lists[1:]), "shop")  # None excludes nothing
        if kind == 6:
            return actor.calculate_reward.remote(draw.choice(texts), "shop")
        if kind == 7:
            return actor.text_vectors.remote(["rose"], draw.choice(names))
        return actor.item_vectors.remote(draw.choice([[draw.choice(ids)], None, 5, "x", {}, [[1]], [None]]), "shop")

    async def send(count: int) -> list[Any]:
        return await asyncio.gather(*(wrong() for _ in range(count)), return_exceptions=True)

    asyncio.run(send(500))  # what is imported and made at the first error of a kind
    before = ray.get(actor.health.remote())
    kinds: Counter[str] = Counter()
    for _ in range(40):
        kinds.update("DataError" if isinstance(a, DataError) else repr(a)[:200] for a in asyncio.run(send(250)))
    after = ray.get(actor.health.remote())
    assert kinds == {"DataError": 10_000}
    assert (after["pid"], after["waiting"], after["answered"]) == (before["pid"], 0, before["answered"])
    assert after["memory_mb"] - before["memory_mb"] <= GROWTH_MB
    batch = many(catalogue[1], 20)
    answer = ray.get(actor.target_ranks.remote(*batch, "shop"))
    assert answer.ranks.tolist() == expected.target_ranks(*batch).ranks.tolist()


def test_what_the_service_serves_must_be_what_is_asked_for(
    service: Any, catalogue: Any, make_dataset: Callable[..., Dataset]
) -> None:
    section = service[0]
    other = make_dataset(name="other")
    with pytest.raises(DataError, match="no dataset 'other'; it serves shop"):
        open_retriever(section, other)
    with pytest.raises(DataError, match="serves another shop: 301 items"):
        open_retriever(section, make_dataset(name="shop"))
    with pytest.raises(ConfigError, match="with embedder 'lsa-24-words-2', this run asks for 'lsa-16-words-2'"):
        open_retriever(section.model_copy(update={"lsa_dim": 16}), catalogue[1])


@pytest.mark.slow
def test_embeddings_of_another_dimension(
    start: Callable[..., Any], catalogue: Any, minilm: str, tmp_path: Path
) -> None:
    import torch

    torch.save(torch.rand(301, 5), tmp_path / "five.pt")
    with pytest.raises(EmbeddingError, match=r"5 dimensions, but .* embeds texts in 384"):
        start(
            "Wrong",
            [catalogue[0]],
            embedder="sentence-transformers",
            model=minilm,
            file=str(tmp_path / "five.pt"),
        )


def test_a_service_that_is_started_after_the_trainer_and_gone_for_good(
    cluster: Cluster, start: Callable[..., Any], catalogue: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl4rec_cli.retrieval.service import requests

    ray, waits, opened, lines = cluster[0], threading.Event(), [], []

    def log(line: str) -> None:
        lines.append(line)
        if "waiting 120 s" in line:
            waits.set()

    monkeypatch.setattr(requests.console, "log", log)
    section = RetrievalSection.model_validate(
        {
            "backend": "ray",
            "embedder": "lsa",
            "lsa_dim": 24,
            "service": {"name": "Late", "wait": 120.0, "timeout": 60.0, "retries": 2},
        }
    )
    trainer = threading.Thread(target=lambda: opened.append(open_retriever(section, catalogue[1])))
    trainer.start()
    assert waits.wait(60)
    _, (actor,) = start("Late", [catalogue[0]])
    trainer.join(120)
    (retriever,) = opened
    batch = many(catalogue[1], 20)
    assert retriever.target_ranks(*batch).ranks.tolist() == expected.target_ranks(*batch).ranks.tolist()

    reward = create_reward_function(
        "shop",
        retrieval_service_name="Late",
        namespace="rl4rec",
        retrieval=RetrievalSection.model_validate({"service": {"wait": 0.0}}),
    )
    wanted = create_reward_function("shop", retriever=expected)
    assert reward(*batch) == wanted(*batch)

    retriever._client.service = section.service.model_copy(update={"wait": 0.0})
    ray.kill(actor, no_restart=True)
    with pytest.raises(ServiceError, match="Late not found in namespace rl4rec") as caught:
        retriever.target_ranks(*batch)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("start it: rl4rec serve-retrieval --datasets")
    assert any("sending the request again (1 of 2)" in line for line in lines)


@pytest.mark.slow
def test_without_the_token_nobody_is_let_in(cluster: Cluster, service: Any, tmp_path: Path) -> None:
    _, address, cache = cluster
    token = cache / "rl4rec" / "ray" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    plain |= {"RAY_NUM_REDIS_GET_RETRIES": "1", "XDG_CACHE_HOME": str(tmp_path), "RAY_LOG_TO_STDERR": "0"}
    ask = [*COMMAND, "serve-retrieval", "--status", "--address", address, "--actor-name", "Service"]

    tokens = (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
    )
    right, *others = together(*((ask, {**plain, **more}) for more in tokens))
    assert right.returncode == 0, right.stderr
    assert "shop 301 × 24" in right.stdout
    for refused in others:
        assert refused.returncode == 1
        assert "cannot be joined" in refused.stderr
        assert "shop" not in refused.stdout


def test_all_sockets_are_on_loopback_and_no_command_line_has_the_token(cluster: Cluster, service: Any) -> None:
    import psutil

    token = (cluster[2] / "rl4rec" / "ray" / "token").read_text()
    own = psutil.Process()
    listening = []
    for process in [own, *own.children(recursive=True)]:
        assert token not in " ".join(process.cmdline())
        listening += [c.laddr.ip for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 4
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


# Training

REWARD = """
import os
import ray

calls = 0


def kill(texts, targets, histories, **_):
    global calls
    calls += 1
    if calls == 3 and os.environ.get("KILLED"):
        actor = ray.get_actor(os.environ["KILLED"], namespace="rl4rec")
        ray.kill(actor, no_restart=os.environ["FOR_GOOD"] == "yes")
    return [0.0] * len(texts)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, `made`, a reward file that kills the service in the third step, if it is told to, and
    the runs that are trained with them."""
    from rl4rec_cli.data.saving import save_dataset
    from rl4rec_cli.data.synthetic import synthesize

    place = tmp_path_factory.mktemp("trained")
    save_dataset(synthesize(40, 60, 1), place / "made")
    (place / "reward.py").write_text(REWARD)
    return place


@pytest.fixture(scope="module")
def train(place: Path) -> Callable[..., Path]:
    """A small GRPO run; one of the same name is made once."""
    from rl4rec_cli.commands.train import train as run

    @cache
    def train(name: str, *sets: str, killed: str = "", for_good: bool = False) -> Path:
        small = (
            *("data.synthetic=null", f"data.path={place / 'made'}"),
            *(f"run.output_dir={place / 'runs'}", f"run.name={name}"),
            *("trainer.max_steps=5", "trainer.batch_size=4", "trainer.num_generations=4", "trainer.warm_start=null"),
            *("eval.steps=null", "eval.baselines=[]", "eval.cache_dir=null", "logging.steps=1", "retrieval.lsa_dim=24"),
        )
        config = load_config(
            algorithm="grpo",
            recipes=["quick-test"],
            flags={"reward.functions": {"ndcg": 1.0, f"{place / 'reward.py'}:kill": 0.0}},
            sets=[*small, *sets],
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KILLED", killed)
            patch.setenv("FOR_GOOD", "yes" if for_good else "no")
            run(config, (7,))
        return place / "runs" / name

    return train


def curve(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    measured = ("second", "memory")  # time and memory: no part of the curve
    steps = [line for line in lines if "health" not in line]
    return [{key: v for key, v in line.items() if not any(word in key for word in measured)} for line in steps]


@pytest.mark.slow
def test_training_goes_on_to_the_same_rewards_when_the_service_is_killed(
    train: Callable[..., Path], start: Callable[..., Any], place: Path
) -> None:
    start("Trained", [place / "made"])
    here = train("here", "retrieval.backend=in-process")
    ray_settings = ("retrieval.backend=ray", "retrieval.service.name=Trained", "retrieval.service.wait=0")
    there = train("there", *ray_settings, killed="Trained")
    assert curve(here) == curve(there)
    assert len(curve(here)) == 5
    assert (here / "rollouts.jsonl").read_text() == (there / "rollouts.jsonl").read_text()
    result = json.loads((here / "eval" / "validation.json").read_text())["methods"]
    assert result == json.loads((there / "eval" / "validation.json").read_text())["methods"]


@pytest.mark.slow
def test_several_datasets_by_one_service_give_the_same_curve(
    train: Callable[..., Path], start: Callable[..., Any], place: Path
) -> None:
    from rl4rec_cli.data.saving import save_dataset
    from rl4rec_cli.data.synthetic import synthesize

    save_dataset(synthesize(30, 26, 2), place / "other")
    start("Both", [place / "made", place / "other"])
    both = (f"data.path=[{place / 'made'}, {place / 'other'}]", "trainer.max_steps=4")
    here = train("both-here", *both, "retrieval.backend=in-process")
    there = train("both-there", *both, "retrieval.backend=ray", "retrieval.service.name=Both")
    assert curve(here) == curve(there)
    assert {key for line in curve(here) for key in line if key.startswith("avg_reward/")} == {
        "avg_reward/synthetic-40x60-s1",
        "avg_reward/synthetic-30x26-s2",
    }
    assert (here / "rollouts.jsonl").read_text() == (there / "rollouts.jsonl").read_text()
    for name in ("synthetic-40x60-s1", "synthetic-30x26-s2"):
        results = [
            json.loads((run / "eval" / name / "validation.json").read_text())["methods"] for run in (here, there)
        ]
        assert results[0] == results[1]


@pytest.mark.slow
def test_training_is_saved_when_the_service_stays_away(
    train: Callable[..., Path], start: Callable[..., Any], place: Path
) -> None:
    start("Trained", [place / "made"])
    here = train("here", "retrieval.backend=in-process")
    ray_settings = ("retrieval.backend=ray", "retrieval.service.name=Trained", "retrieval.service.wait=0")
    with pytest.raises(ServiceError, match="Trained not found") as caught:
        train("gone", *ray_settings, "retrieval.service.retries=1", killed="Trained", for_good=True)
    assert (caught.value.exit_code, "rl4rec serve-retrieval" in (caught.value.hint or "")) == (1, True)
    gone = place / "runs" / "gone"
    assert [folder.name for folder in (gone / "checkpoints").glob("checkpoint_step_*")] == ["checkpoint_step_3"]
    assert curve(gone) == curve(here)[:3]


# The command


def serving(folder: Path, cache: Path) -> tuple[subprocess.Popen[str], list[str], dict[str, str]]:
    """The command over a dataset folder, what it printed when it was ready, and the environment that finds it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"XDG_CACHE_HOME": str(cache)}
    flags = ["--datasets", str(folder), "--embedder", "lsa", "--set", "retrieval.service.store_mb=100"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    serve = subprocess.Popen([*COMMAND, "serve-retrieval", *flags], env=env, **pipes)
    assert serve.stdout is not None
    lines = []
    for line in serve.stdout:
        lines.append(line.rstrip())
        if line.startswith("Train with it"):
            break
    return serve, lines, env


@pytest.mark.slow
def test_a_cluster_that_dies_under_a_run_ends_it_with_its_steps_saved(tmp_path: Path) -> None:
    import psutil

    from rl4rec_cli.data.saving import save_dataset
    from rl4rec_cli.data.synthetic import synthesize

    shop = tmp_path / "shop"
    save_dataset(synthesize(30, 40, 3), shop)
    serve, _, env = serving(shop, tmp_path)
    everybody = [psutil.Process(serve.pid), *psutil.Process(serve.pid).children(recursive=True)]
    assert {"raylet", "gcs_server"} <= {process.name() for process in everybody}
    sets = (
        *("retrieval.backend=ray", "retrieval.service.wait=1", "retrieval.service.retries=1", "eval.steps=null"),
        *("trainer.max_steps=100000", "trainer.num_train_epochs=99999", "trainer.warm_start=null", "logging.steps=1"),
        *("trainer.batch_size=4", "trainer.num_generations=4", "eval.baselines=[]", "run.name=run"),
    )
    given = [part for one in sets for part in ("--set", one)]
    train = ["train", "grpo", "--quick-test", "--dataset", str(shop), "--output", str(tmp_path / "runs"), *given]
    with subprocess.Popen(
        [*COMMAND, *train], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("Step      3 "):
                break
        for process in everybody:
            process.kill()
        said, _ = run.communicate(timeout=180)  # it hangs if it is not over by then
    serve.communicate()
    assert run.returncode == 1, said
    assert "error: RetrievalService not found in namespace rl4rec" in said
    assert f"hint: start it: rl4rec serve-retrieval --datasets {shop} --embedder lsa" in said
    saved = [folder.name for folder in (tmp_path / "runs" / "run" / "checkpoints").glob("checkpoint_step_*")]
    assert len(saved) == 1
    assert f"Stopped: the policy of step {saved[0].rpartition('_')[2]} is in" in said


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(catalogue: Any, tmp_path: Path) -> None:
    import psutil

    serve, lines, env = serving(catalogue[0], tmp_path)
    assert lines[0] == "✓ Loaded 1 dataset(s)", serve.stderr.read() if serve.stderr else ""
    assert "shop" in lines[2]
    assert "301" in lines[2]
    assert "--set retrieval.backend=ray" in lines[-1]
    family = psutil.Process(serve.pid).children(recursive=True)
    (second,) = together(([*COMMAND, "serve-retrieval", "--datasets", str(catalogue[0]), "--embedder", "lsa"], env))
    assert second.returncode == 1
    assert "RetrievalService in namespace rl4rec runs on this machine already at 127.0.0.1:" in second.stderr
    assert "--actor-name NAME" in second.stderr
    status = [*COMMAND, "serve-retrieval", "--status"]
    code = "from rl4rec_cli.api import RetrievalSection, read_status; s = read_status(RetrievalSection())"
    code += "; print(s.python_lines()); print(s.shell_lines()); print(s.health['datasets'])"
    plain, done, asked = together((status, env), ([*status, "--connect"], env), ([sys.executable, "-c", code], env))
    assert (plain.returncode, "ok" in plain.stdout) == (0, True), plain.stderr  # the second has hidden nothing
    assert done.returncode == 0, done.stderr
    program = done.stdout[done.stdout.index("import os") :]
    assert asked.stdout.startswith(program.rstrip()), asked.stderr
    assert asked.stdout.splitlines()[-2] in done.stdout
    assert asked.stdout.splitlines()[-1].startswith("{'shop': ")
    bare = {key: value for key, value in env.items() if key != "XDG_CACHE_HOME"}
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("export RAY_ADDRESS=")]
    script = f"{line}; {sys.executable} -c 'import ray; ray.init(log_to_driver=False); print(ray.cluster_resources())'"
    pasted, shell = together(([sys.executable, "-c", program], bare), (["bash", "-c", script], bare))
    assert (pasted.returncode, "(1, 301)" in pasted.stdout) == (0, True), pasted.stderr
    assert "node:127.0.0.1" in shell.stdout, shell.stderr
    serve.send_signal(signal.SIGTERM)
    _, errors = serve.communicate(timeout=120)
    assert serve.returncode == 0, errors
    assert "Stopping" in errors
    assert all(ends(process.pid, 60) for process in family)
    (done,) = together((status, env))
    assert done.returncode == 1
    assert "RetrievalService not found" in done.stderr
    assert "hint: start it: rl4rec serve-retrieval" in done.stderr
