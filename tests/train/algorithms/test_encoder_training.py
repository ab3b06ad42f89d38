"""What a tuned encoder learns from: texts at every training position, and no false negatives among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.commands import catalogue
from rl4rec_cli.commands.train import train
from rl4rec_cli.commands.train_retriever import settings_of_others
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import PromptSection, RunConfig
from rl4rec_cli.data.dataset import Dataset, Example, build_examples
from rl4rec_cli.data.history_texts import HistoryTexts
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.errors import ConfigError, EmbeddingError
from rl4rec_cli.retrieval.tuned_encoder import TunedEncoder
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.train import resumable, time_limit
from rl4rec_cli.train.algorithms.encoder import CachedPairLoss, PairLoss, Pairs, ranking_loss
from rl4rec_cli.train.examples import training_examples


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny BERT with random weights, as sentence-transformers saves one: mean pooling, 24 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from rl4rec_cli.data.synthetic import synthesize

    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for item in synthesize(30, 25, 0).items for word in str(item["text"]).lower().split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        model_max_length=24,
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)).save_pretrained(
        folder / "bert"
    )
    fast.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=24)
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(
        str(folder / "model"), create_model_card=False
    )
    return str(folder / "model")


def _config(folder: Path, model: str, name: str, *more: str) -> RunConfig:
    sets = [
        *("data.synthetic.users=30", "data.synthetic.items=25", "trainer.kind=full", "trainer.batch_size=24"),
        *("trainer.num_train_epochs=2.5", "trainer.warmup_steps=2", "trainer.mini_batch_size=7"),
        *("retrieval.embedder=sentence-transformers", f"retrieval.model={model}", f"retrieval.emb_dir={folder}/emb"),
        *("eval.baselines=[untrained]", "eval.steps=4", "eval.step_users=20", "eval.cache_dir=null"),
        *("logging.steps=1", "logging.save_steps=1", f"run.output_dir={folder}", f"run.name={name}"),
    ]
    return load_config(algorithm="retriever", recipes=["quick-test"], sets=[*sets, *more])


def _weights(run: Path, name: str = "checkpoint_final") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    folder = run / "checkpoints" / name
    return load_file(folder / ("retriever.safetensors" if _is_lora(run) else "model.safetensors"))


def _is_lora(run: Path) -> bool:
    return "kind: lora" in (run / "config.yaml").read_text()


def _pairs(examples: list[Example], texts: list[str], share: float = 0.0) -> Pairs:
    items = tuple({"item_id": i, "title": f"title {i}", "text": text} for i, text in enumerate(texts))
    dataset = Dataset("made", items, ("u",), ((0,) * 4,), prompts={}, mask_history=True, meta={})
    histories = HistoryTexts(PromptSection(max_history=3), dataset, count=lambda t: [1] * len(t), limit=None)
    return Pairs(examples, texts, histories, text_share=share, seed=0)


def _made_examples(sequences: list[list[int]]) -> list[Example]:
    return [
        Example(f"u{user}", tuple(row[:place]), row[place])
        for user, row in enumerate(sequences)
        for place in range(1, len(row))
    ]


SEQUENCES = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=5), min_size=2, max_size=5)
TEXTS = ["a", "b", "c", "a", "d", "b", "e", "f", "g", "h"]


@given(SEQUENCES, st.randoms())
def test_own_items_and_copies_are_no_negatives(sequences: list[list[int]], random: Any) -> None:
    examples = _made_examples(sequences)
    batch = random.sample(range(len(examples)), min(len(examples), 6))
    masked = _pairs(examples, TEXTS).no_negatives(batch)
    for row, pair in enumerate(batch):
        own = {TEXTS[item] for item in sequences[int(examples[pair].user[1:])]}
        for column, other in enumerate(batch):
            assert bool(masked[row, column]) == (row != column and TEXTS[examples[other].target] in own)


def test_the_loss_is_that_of_every_query_by_itself() -> None:
    torch.manual_seed(0)
    queries, items = torch.randn(5, 4), torch.randn(5, 4)
    masked = torch.rand(5, 5) < 0.4
    masked.fill_diagonal_(False)
    losses = []
    for row in range(5):
        scores = [torch.cosine_similarity(queries[row], items[c], dim=0) / 0.1 for c in range(5)]
        total = sum(score.exp() for c, score in enumerate(scores) if not masked[row, c])
        losses.append(-(scores[row].exp() / total).log())
    torch.testing.assert_close(ranking_loss(queries, items, 10.0, masked), torch.stack(losses).mean())


@pytest.mark.parametrize("mini_batch_size", [1, 3, 8])
def test_both_losses_and_their_gradients_are_the_same(encoder: str, mini_batch_size: int) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(encoder, device="cpu").eval()  # without dropout
    pairs = _pairs(_made_examples([[0, 1, 2], [3, 4], [5, 6, 7, 8]]), [f"{text} word" for text in TEXTS])
    labels = torch.tensor([0, 1, 2, 4])
    texts = [pairs.texts(pair) for pair in labels.tolist()]
    gradients = []
    for loss in (
        PairLoss(model, pairs, scale=20),
        CachedPairLoss(model, pairs, scale=20, mini_batch_size=mini_batch_size),
    ):
        model.zero_grad()
        value = loss([model.preprocess([row[side] for row in texts]) for side in (0, 1)], labels)
        value.backward()
        gradients.append([value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for plain, cached in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, cached, atol=1e-5, rtol=1e-4)


def test_pairs_are_texts_of_training_positions(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(sequences=[[0, 1, 2, 3, 4], [5, 4, 3], [1, 0, 2, 5]])
    config = load_config(algorithm="retriever", sets=["trainer.kind=full", "data.train_targets=last"])
    examples = training_examples(config.training_data, dataset, seed=0)
    assert [(example.history, example.target) for example in examples] == [((0,), 1), ((0, 1), 2), ((1,), 0)]
    texts = dataset.texts()
    titles = [str(item["title"]) for item in dataset.items]
    histories = HistoryTexts(config.prompt, dataset, count=lambda t: [1] * len(t), limit=None)
    pairs = Pairs(examples, texts, histories, text_share=0, seed=0)
    assert pairs.texts(1) == (f"{titles[0]}\n{titles[1]}", texts[2])
    alone = Pairs(examples, texts, histories, text_share=1, seed=0)
    assert alone.texts(1) == (texts[1], texts[2])
    both = replace(dataset, fit="train_and_validation")
    assert [e.target for e in build_examples(both, "train", train_targets="all")] == [1, 2, 3, 4, 0, 2]


def test_other_held_out_items_change_no_weight(tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path, encoder, "as-it-is", "eval.steps=null", "trainer.max_steps=3")
    train(config)
    dataset = open_dataset(config.data)
    planted = replace(
        dataset, sequences=tuple((*row[:-2], (row[-2] + 7) % 25, (row[-1] + 11) % 25) for row in dataset.sequences)
    )
    monkeypatch.setattr(catalogue, "open_datasets", lambda section: [planted])
    train(_config(tmp_path, encoder, "planted", "eval.steps=null", "trainer.max_steps=3"))
    first, second = _weights(tmp_path / "as-it-is"), _weights(tmp_path / "planted")
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = _weights(tmp_path / "planted", "checkpoint_start")
    assert any(not torch.equal(first[name], start[name]) for name in first)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is interrupted in its second epoch."""
    set_kind = f"trainer.kind={kind}"
    train(_config(tmp_path, encoder, "whole", set_kind))
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    steps = [json.loads(line)["epoch"] for line in (whole / "training_log.jsonl").read_text().splitlines()]
    interrupted = steps.index(2) + 2
    assert interrupted < len(steps)
    real, count = resumable.Keeper.after_step, [0]

    def after_step(self: resumable.Keeper) -> None:
        real(self)
        count[0] += 1
        if count[0] == interrupted:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumable.Keeper, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            train(_config(tmp_path, encoder, "broken", set_kind))
    train(_config(tmp_path, encoder, "broken", set_kind), resume=broken)
    for name in ("checkpoint_final", "checkpoint_best"):
        one, other = _weights(whole, name), _weights(broken, name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "validation_log.jsonl").read_text() == (broken / "validation_log.jsonl").read_text()


def test_the_minutes_end_a_run_with_its_last_step_measured(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Clock:
        """A minute for every look."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 60
            return self.now

    monkeypatch.setattr(time_limit, "time", Clock())
    (trained,) = train(
        _config(tmp_path, encoder, "short", "trainer.max_minutes=30", "eval.steps=2", "trainer.patience=null")
    )
    run = trained.run
    log = [json.loads(line) for line in (run.folder / "training_log.jsonl").read_text().splitlines()]
    measured = [json.loads(line)["step"] for line in (run.folder / "validation_log.jsonl").read_text().splitlines()]
    assert measured[-1] == log[-1]["step"]
    said = capsys.readouterr().err
    assert f"30 minutes (trainer.max_minutes) are over after step {measured[-1]}" in said
    assert run.final.is_dir()
    rates = [record["learning_rate"] for record in log]
    assert rates[-1] < rates[3] / 3  # it fell by the clock, long before the last of all steps
    assert train(run.config, resume=run.folder) == []


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_recomputed_activations_train_the_same_weights(tmp_path: Path, encoder: str, kind: str) -> None:
    few = (f"trainer.kind={kind}", "trainer.max_steps=3", "eval.steps=null", "trainer.mini_batch_size=null")
    runs = []
    for name in ("true", "false"):
        train(_config(tmp_path, encoder, name, *few, f"trainer.gradient_checkpointing={name}"))
        runs.append(_weights(tmp_path / name))
    start = _weights(tmp_path / "true", "checkpoint_start")
    assert all(torch.allclose(runs[0][key], runs[1][key], atol=1e-6) for key in start)
    moved = [key for key in start if not torch.equal(runs[0][key], start[key])]
    assert any("layer.0" in key for key in moved)  # gradients reach the first layer


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        (["retrieval.embedder=lsa"], ConfigError, "is no model, of which weights could be trained"),
        (["data.train_users=1", "trainer.batch_size=2"], ConfigError, "one user to train on"),
        (["trainer.kind=lora", "trainer.lora.target_modules=[nowhere]"], ConfigError, "target_modules"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    tmp_path: Path, encoder: str, more: list[str], error: type[Exception], words: str
) -> None:
    config = _config(tmp_path, encoder, "bad", *([] if "retrieval.embedder=lsa" in more else more))
    if (
        "retrieval.embedder=lsa" in more
    ):  # as a recipe gives it: beside a model on the command line it is refused before
        config = config.model_copy(update={"retrieval": config.retrieval.model_copy(update={"embedder": "lsa"})})
    with pytest.raises(error, match=words):
        train(config)
    assert not (tmp_path / "bad").exists()


def test_a_model_without_a_transformer_is_refused(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    SentenceTransformer(modules=[BoW(["red", "blue"])], device="cpu").save(str(tmp_path / "bow"))
    with pytest.raises(EmbeddingError, match="is no transformer"):
        train(_config(tmp_path, str(tmp_path / "bow"), "bad"))


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["trainer.kind=full", "trainer.dim=9"], "dim is a setting of kind projection"),
        (["trainer.kind=lora", "trainer.max_history=3"], r"prompt\.max_history"),
        (["trainer.kind=full", "trainer.batch_size=1"], "no negatives"),
        (["trainer.precision=bf16"], "no effect on a projection"),
        (["trainer.gradient_checkpointing=true"], "no effect on a projection"),
    ],
)
def test_settings_of_other_kinds_are_errors(sets: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(algorithm="retriever", sets=sets)


def test_the_settings_that_are_printed_embed_as_the_encoder_was_trained_to(tmp_path: Path) -> None:
    config = _config(tmp_path, "model", "one", "retrieval.emb_type=title", 'retrieval.query_prompt="query: "')
    run = Run(tmp_path / "one", config)
    tuned, untold = (cast("TunedEncoder", SimpleNamespace(reads=reads)) for reads in ({"query_prompt": "query: "}, {}))
    sets = settings_of_others(run, tuned)
    retrieval = load_config(algorithm="grpo", recipes=["quick-test"], sets=sets).retrieval
    assert (retrieval.model, retrieval.emb_type, retrieval.query_prompt) == (str(run.final), "title", "query: ")
    plain = settings_of_others(Run(tmp_path / "one", _config(tmp_path, "model", "one")), untold)
    assert plain == ["retrieval.embedder=sentence-transformers", f"retrieval.model={run.final}"]
