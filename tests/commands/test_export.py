"""`rl4rec export`: what others load, the model card, and the Hub (a small server of our own)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.export import export
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import PolicySection
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.files.folders import problems
from rl4rec_cli.policy.generation import generate_texts
from rl4rec_cli.policy.loading import Policy, load_policy
from rl4rec_cli.strict_yaml import load_yaml

SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400", "retrieval.lsa_dim=16"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.max_steps=2", "trainer.learning_rate=0.05"),
    *("trainer.warm_start={max_steps: 40, num_train_epochs: 99, batch_size: 8, learning_rate: 3e-3, target: last}",),
    *("eval.users=24", "eval.baselines=[untrained, last_item]", "eval.cache_dir=null", "eval.steps=null"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: an adapter over a stored base, and all weights."""
    folder = tmp_path_factory.mktemp("runs")
    for name, sets in {"adapted": ["policy.lora.r=4"], "full": []}.items():
        flags = {"run.output_dir": str(folder), "run.name": name}
        train(load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=[*SMALL, *sets]), (1,))
    return folder


def texts_of(run: Path) -> dict[str, str]:
    lines = (run / "eval" / "validation_users.jsonl").read_text().splitlines()
    return {record["user"]: record["texts"]["tuned policy"] for record in map(json.loads, lines)}


def write(model: Any, tokenizer: Any, run: Path) -> dict[str, str]:
    """What a model writes for the users that the run was measured on."""
    from rl4rec_cli.data.dataset import build_examples
    from rl4rec_cli.data.opening import open_dataset
    from rl4rec_cli.data.prompts import PromptBuilder
    from rl4rec_cli.runs.making import open_run

    config = open_run(run).config
    dataset = open_dataset(config.data)
    examples = [e for e in build_examples(dataset, "validation") if e.user in texts_of(run)]
    builder = PromptBuilder(config.prompt, dataset, tokenizer)
    prompts = [builder.build(e.user, e.history).ids for e in examples]
    written = generate_texts(Policy(model, tokenizer, "export"), prompts, Sampling(6, 0.0), batch_size=24)
    return {e.user: text for e, text in zip(examples, written, strict=True)}


@pytest.mark.parametrize(("name", "form"), [("adapted", "merged"), ("adapted", "adapter"), ("full", "merged")])
def test_plain_libraries_write_what_was_measured(
    name: str, form: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "out"
    assert main(["export", str(runs / name), "--to", form, "--output", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert problems(folder) == []
    kind = AutoPeftModelForCausalLM if form == "adapter" else AutoModelForCausalLM
    model = kind.from_pretrained(folder)
    assert write(model, AutoTokenizer.from_pretrained(folder), runs / name) == texts_of(runs / name)
    assert hasattr(model, "peft_config") == (form == "adapter")
    files = {p.name for p in folder.iterdir()}
    assert not files & {"optimizer.pt", "progress.json", "recipe.yaml", "critic.safetensors", "validation.json"}
    ours = load_policy(load_config(algorithm="grpo", sets=[f"policy.model={folder}", "policy.device=cpu"]).policy)
    assert write(ours.model, ours.tokenizer, runs / name) == texts_of(runs / name)


def test_a_moved_adapter_finds_the_base_that_it_carries(runs: Path, tmp_path: Path) -> None:
    """By plain PEFT as its card says, and by our own commands; the run is gone."""
    run = tmp_path / "run"
    shutil.copytree(runs / "adapted", run)
    config = run / "checkpoints" / "checkpoint_final" / "adapter_config.json"
    saved = json.loads(config.read_text())
    saved["base_model_name_or_path"] = str(run / "checkpoints" / "checkpoint_base")
    config.write_text(json.dumps(saved))
    assert main(["export", str(run), "--to", "adapter", "--output", str(tmp_path / "out")]) == 0
    files = {p.name for p in (tmp_path / "out" / "base").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not files & {"manifest.json", "progress.json"}
    shutil.rmtree(run)
    moved = tmp_path / "elsewhere" / "policy"
    moved.parent.mkdir()
    (tmp_path / "out").rename(moved)
    code = (moved / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("NAME", str(moved)), names)
    ours = load_policy(PolicySection(model=str(moved), device="cpu"))
    assert write(names["model"], ours.tokenizer, runs / "adapted") == texts_of(runs / "adapted")
    assert write(ours.model, ours.tokenizer, runs / "adapted") == texts_of(runs / "adapted")


def test_a_run_that_was_moved_finds_its_own_base(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "adapted", run)
    config = run / "checkpoints" / "checkpoint_final" / "adapter_config.json"
    config.write_text(config.read_text().replace(str((runs / "adapted").resolve()), "/gone/adapted"))
    ours = load_policy(PolicySection(model=str(config.parent), device="cpu"))
    assert write(ours.model, ours.tokenizer, run) == texts_of(runs / "adapted")


@pytest.mark.parametrize(("short", "name"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_sixteen_bits_on_request(
    short: str, name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "out"
    written = export(runs / "adapted", output=folder, dtype=short)
    assert capsys.readouterr().out == ""
    assert (written.folder, written.form, written.repository) == (folder, "merged", None)
    assert {"README.md", "config.json", "model.safetensors"} < set(written.files)
    assert all((folder / file).is_file() for file in written.files)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == getattr(torch, name)
    assert json.loads((folder / "config.json").read_text())["dtype"] == name
    assert f'dtype="{name}"' in (folder / "README.md").read_text()


def test_the_card_has_data_recipe_and_metrics_and_no_path(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert main(["export", str(runs / "adapted"), "--to", "adapter", "--output", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    head = load_yaml(card.split("---\n")[1])
    assert (head["library_name"], head["pipeline_tag"]) == ("peft", "text-generation")
    assert {"grpo", "lora"} <= set(head["tags"])
    measured = json.loads((runs / "adapted" / "eval" / "validation.json").read_text())
    assert measured["dataset"] in card
    assert measured["dataset_digest"][:16] in card
    assert f"| **tuned policy** | {measured['methods']['tuned policy']['ndcg@10']:.4f} |" in card
    assert measured["verdict"][3:] in card
    recipe = load_yaml(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["trainer"]["max_steps"] == 2
    assert recipe["policy"]["lora"]["r"] == 4
    assert "LoRA adapter (rank 4, alpha 32)" in card
    assert str(tmp_path) not in card
    assert str(runs) not in card
    # Of a checkpoint that was not measured nothing is claimed.
    other = tmp_path / "other"
    start = runs / "adapted" / "checkpoints" / "checkpoint_start"
    assert main(["export", str(start), "--to", "adapter", "--output", str(other)]) == 0
    assert "This checkpoint was not measured." in (other / "README.md").read_text()


REFUSED = {
    "a 4-bit merge": (["adapted", "--to", "merged-4bit"], 2, "nothing is merged into quantised weights"),
    "a form": (["adapted", "--to", "gguf"], 2, "--to gguf: must be merged or adapter"),
    "a type": (["adapted", "--dtype", "int8"], 2, "--dtype int8: must be auto, bf16, fp16, fp32"),
    "an adapter's type": (["adapted", "--to", "adapter", "--dtype", "bf16"], 2, "an adapter stays as it is"),
    "no adapter": (["full", "--to", "adapter"], 2, "all its weights were trained, there is no adapter"),
    "no run": (["nothing"], 1, "not a run folder"),
    "a place that is taken": (["adapted", "--output", "{runs}"], 1, "is there already"),
    "a base that is here only": (
        ["adapted", "--to", "adapter", "--push-to-hub", "me/x"],
        2,
        "the base of this adapter is a folder of this machine",
    ),
    "nobody logged in": (["full", "--push-to-hub", "me/x"], 1, "nobody is logged in"),
    "no name": (["full", "--push-to-hub", "a/b/c"], 2, "--push-to-hub a/b/c"),
    "public alone": (["full", "--public"], 2, "--public is for --push-to-hub"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(
    case: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    (name, *rest), code, said = REFUSED[case]
    assert main(["export", str(runs / name), *(part.format(runs=runs) for part in rest)]) == code
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.startswith("error: ")
    assert told.out == ""
    assert not (runs / "adapted" / "export").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload asks for; keeps what it was sent."""

    created: dict[str, Any]
    files: dict[str, bytes]
    tokens: set[str | None]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = type(self)
        kept.tokens.add(self.headers.get("Authorization"))
        if kept.refuses:
            return self._answer({"error": "no right to write there"}, 403)
        if self.path == "/api/repos/create":
            kept.created = json.loads(body)
            return self._answer({"url": f"http://{self.headers['Host']}/me/beauty"})
        if self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            return self._answer({"files": files})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    kept.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer({"commitUrl": f"http://{self.headers['Host']}/me/beauty/commit/1", "commitOid": "1"})
        return self._answer([] if "paths-info" in self.path else {"errors": [], "warnings": []})

    def _answer(self, value: Any, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    kind = type("OneHub", (Hub,), {"created": {}, "files": {}, "tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield kind, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def push(run: Path, folder: Path, address: str, *more: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret", "HF_HOME": str(folder.parent / "hf")}
    command = ["export", str(run), "--output", str(folder), "--push-to-hub", "me/beauty", *more]
    return subprocess.run(
        [sys.executable, "-m", "rl4rec_cli.cli.main", *command], env=env, capture_output=True, text=True, check=False
    )


def test_an_upload_is_the_folder(runs: Path, tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    kept, address = hub
    done = push(runs / "adapted", tmp_path / "out", address)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n{address}/me/beauty\n"
    assert kept.created["name"] == "beauty"
    assert kept.created["visibility"] == "private"
    assert kept.tokens == {"Bearer hf_secret"}
    here = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name != "manifest.json"}
    assert kept.files == here
    assert "hf_secret" not in done.stdout + done.stderr


def test_an_upload_that_is_refused_leaves_the_export(runs: Path, tmp_path: Path, hub: tuple[type[Hub], str]) -> None:
    kept, address = hub
    kept.refuses = True
    done = push(runs / "full", tmp_path / "out", address, "--public")
    assert done.returncode == 1
    assert "\nerror: cannot upload to me/beauty: " in done.stderr
    assert f"hint: the export is in {tmp_path / 'out'}" in done.stderr
    assert problems(tmp_path / "out") == []
