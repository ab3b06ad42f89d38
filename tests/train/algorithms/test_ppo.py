"""PPO, REINFORCE and RLOO beside GRPO: the real trainers on a random two-layer policy and a problem of one token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback

from rl4rec_cli.cli.main import main
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.policy.generation import generate_texts
from rl4rec_cli.policy.loading import Policy, load_policy, save_policy
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.rewards.scorer import Scorer
from rl4rec_cli.train import rollouts
from rl4rec_cli.train.algorithms import ppo
from rl4rec_cli.train.algorithms.advantages import clipped_policy_loss
from rl4rec_cli.train.algorithms.critic import CRITIC_FILE, Critic
from rl4rec_cli.train.algorithms.opening import open_lesson, open_trainer
from rl4rec_cli.train.arguments import number_of_steps
from rl4rec_cli.train.environments import Environment
from rl4rec_cli.train.parts import TrainerParts

SMALL = (
    *("data.synthetic.users=64", "data.synthetic.items=30", "data.train_targets=last"),
    *("prompt.max_history=2", "prompt.max_prompt_length=48", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.warm_start=null", "trainer.batch_size=8", "trainer.max_steps=4", "trainer.learning_rate=0.01"),
    *("trainer.num_train_epochs=99", "trainer.lr_scheduler_type=constant", "trainer.max_grad_norm=1000000"),
    *("trainer.gradient_accumulation_steps=1", "logging.steps=1", "logging.rollouts=1000"),
)
ONE_UPDATE = ("trainer.mini_batch_size=8", "trainer.ppo_epochs=1")
REWARD = '''
def letter(texts, targets, histories, **kwargs):
    """The best text begins with n; other small letters are worth a little."""
    return [1.0 if t[:1] == "n" else 0.2 * t[:1].islower() for t in texts]

def length(texts, targets, histories, **kwargs):
    return [len(t) / 10 for t in texts]
'''


def configure(folder: Path, algorithm: str, *sets: str, reward: str | None = "length") -> RunConfig:
    flags: dict[str, Any] = {"run.output_dir": str(folder)}
    if reward is not None:
        file = folder / "rewards.py"
        file.write_text(REWARD)
        flags["reward.functions"] = {f"{file}:{reward}": 1.0}
    own = ONE_UPDATE if algorithm == "ppo" else ("trainer.num_generations=4",) if algorithm in ("grpo", "rloo") else ()
    return load_config(
        algorithm=algorithm,
        recipes=["quick-test"],
        flags=flags,
        sets=["reward.rank_shaping=0", *SMALL, *own, *sets],
        allow_custom_rewards=True,
    )


@dataclass
class Trained(TrainerCallback):  # type: ignore[misc]
    """A trainer, its policy, and what was seen of each optimiser step."""

    trainer: Any
    policy: Policy
    log: list[dict[str, Any]] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    rollouts: Path = Path()
    describe: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda logs: None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        own = self.policy.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in own if p.grad is not None})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.weights.append(weights(self.policy))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        record = self.describe(logs or {})
        if record is not None:
            self.log.append(record)

    def column(self, name: str) -> list[Any]:
        return [record.get(name) for record in self.log]


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(configure(tmp_path_factory.mktemp("data"), "ppo").data)


@pytest.fixture(scope="session")
def retriever(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> InProcessRetriever:
    return open_retriever(configure(tmp_path_factory.mktemp("data"), "ppo").retrieval, dataset)


@pytest.fixture(scope="session")
def base(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy that everything starts from."""
    folder = tmp_path_factory.mktemp("base")
    save_policy(load_policy(configure(folder, "ppo").policy, dataset=dataset, seed=7), folder / "model")
    return folder / "model"


Do = Callable[..., Trained]


@pytest.fixture
def do(dataset: Dataset, retriever: InProcessRetriever, base: Path, tmp_path: Path) -> Do:
    """Train from `base` by an algorithm; `steps=0` only makes the trainer."""

    def run(algorithm: str, *sets: str, reward: str | None = "length", train: bool = True) -> Trained:
        config = configure(tmp_path, algorithm, f"policy.model={base}", *sets, reward=reward)
        policy = load_policy(config.policy, trainable=True, seed=3)
        examples = build_examples(dataset, "train")
        builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
        file = tmp_path / f"rollouts-{len(list(tmp_path.iterdir()))}.jsonl"
        environment = Environment(dataset, retriever, Scorer(retriever, config.reward), builder, examples)
        log = JsonLines(file)
        lesson = open_lesson(
            config.trainer, config.generation, policy, [environment], log, shown=config.logging.rollouts
        )
        steps = number_of_steps(config.trainer, len(examples))
        trainer = open_trainer(TrainerParts(config.trainer, config, policy, steps, tmp_path / "scratch", lesson))
        done = Trained(trainer, policy, rollouts=file, describe=lesson.describe)
        trainer.add_callback(done)
        if train:
            trainer.train()
        return done

    return run


# What is learnt


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce"])
def test_a_bandit_is_solved_from_the_same_start(algorithm: str, do: Do, dataset: Dataset) -> None:
    """40 × 64 texts of one token, of which one beginning is the best: 2,560 rollouts, as many for each algorithm."""
    sets = {
        "grpo": ["trainer.num_generations=8"],
        "rloo": ["trainer.num_generations=8"],
        "ppo": [
            *("trainer.batch_size=64", "trainer.mini_batch_size=32", "trainer.ppo_epochs=2", "trainer.max_steps=160"),
            "trainer.critic_learning_rate=0.01",
        ],
        "reinforce": ["trainer.batch_size=64"],
    }[algorithm]
    one = ("generation.max_completion_length=1", "trainer.max_steps=40", "logging.rollouts=64")
    done = do(algorithm, *one, *sets, reward="letter")
    assert len(done.rollouts.read_text().splitlines()) == 2560
    rewards = done.column("avg_reward")
    assert rewards[0] < 0.4
    assert sum(rewards[-4:]) / 4 > 0.9
    config = configure(done.rollouts.parent, algorithm, reward=None)
    builder = PromptBuilder(config.prompt, dataset, done.policy.tokenizer)
    prompts = [builder.build(e.user, e.history).ids for e in build_examples(dataset, "train")]
    texts = generate_texts(done.policy, prompts, Sampling(1, temperature=0.0), batch_size=64)
    assert {text[:1] for text in texts} == {"n"}


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce"])
def test_texts_are_written_by_the_generation_that_evaluation_uses(
    algorithm: str, do: Do, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    write = rollouts.write_ids

    def record(policy: Policy, model: Any, prompts: Any, sampling: Any) -> Any:
        asked.extend(map(tuple, prompts))
        rows, logps = write(policy, model, prompts, sampling)
        return [[*row[:1], policy.tokenizer.eos_token_id] for row in rows], logps

    monkeypatch.setattr(rollouts, "write_ids", record)
    done = do(algorithm, "trainer.max_steps=1")
    config = configure(done.rollouts.parent, algorithm)
    builder = PromptBuilder(config.prompt, dataset, done.policy.tokenizer)
    known = {builder.build(e.user, e.history).ids for e in build_examples(dataset, "train")}
    assert len(asked) == (32 if algorithm in ("grpo", "rloo") else 8)
    assert set(asked) <= known
    assert done.column("mean_length") == [2.0]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("normalize", ["batch", "none"])
def test_ppo_with_an_idle_critic_is_reinforce(gamma: float, normalize: str, do: Do) -> None:
    shared = (f"trainer.gamma={gamma}", "trainer.max_steps=1", f"reward.normalize_rewards={normalize}")
    theirs = do("reinforce", *shared)
    ours = do("ppo", *shared, "trainer.critic_learning_rate=0", "trainer.lam=1")
    assert ours.rollouts.read_text() == theirs.rollouts.read_text()
    [plain], [critic] = theirs.gradients, ours.gradients
    assert plain.keys() == critic.keys()
    assert max(g.abs().max() for g in plain.values()) > 1e-3
    for name, gradient in plain.items():
        if normalize == "batch":
            torch.testing.assert_close(critic[name], gradient, atol=1e-5, rtol=1e-5)
    # Where nothing is divided, the critic is PPO's only baseline: here it has none.
    if normalize == "none":
        assert any((critic[name] - gradient).abs().max() > 1e-4 for name, gradient in plain.items())


def test_the_policy_loss_is_ours(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's loss from advantages of shape (B, T) next to the formula."""
    seen = []
    inner = ppo.PpoTrainer._policy_loss

    def compare(self: Any, model: Any, inputs: Any) -> Tensor:
        loss = inner(self, model, inputs)
        logps, mask = self._passes[0][0], inputs["completion_mask"]
        old, advantages = inputs["old_per_token_logps"], inputs["advantages"]
        expected = clipped_policy_loss(logps, old, advantages, mask, low=0.1, high=0.3).sum()
        seen.append((loss.item(), (expected / inputs["num_items_in_batch"] * self.args.steps_per_generation).item()))
        return loss

    monkeypatch.setattr(ppo.PpoTrainer, "_policy_loss", compare)
    sets = ("trainer.epsilon=0.1", "trainer.epsilon_high=0.3", "trainer.mini_batch_size=4", "trainer.ppo_epochs=2")
    done = do("ppo", *sets, "trainer.max_steps=8")
    assert len(seen) == 8
    for loss, expected in seen:
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert max(done.column("clip_share")) > 0


# The critic


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_value_gradients_do_not_leak_into_the_policy(critic: str, do: Do) -> None:
    lora = ["policy.lora.r=4"] if critic == "adapter" else []
    sets = (f"trainer.critic={critic}", *lora, "trainer.max_steps=3", "trainer.ppo_epochs=3", "trainer.lam=1")
    none = do("ppo", *sets, "trainer.vf_coef=0")
    much = do("ppo", *sets, "trainer.vf_coef=50")
    for a, b in zip(none.gradients, much.gradients, strict=True):
        policys = [name for name in a if ".critic." not in name]
        assert policys
        assert all(torch.equal(a[name], b[name]) for name in policys)
    assert not any(torch.equal(p, torch.zeros_like(p)) for p in much.trainer.critic.state_dict().values())


def test_value_gradients_reach_the_policy_where_asked(do: Do) -> None:
    sets = ("trainer.critic_trains_policy=true", "trainer.max_steps=2", "trainer.ppo_epochs=2")
    none, much = do("ppo", *sets, "trainer.vf_coef=0"), do("ppo", *sets, "trainer.vf_coef=50")
    # In the first step the critic expects 0 everywhere, whatever the hidden states are.
    assert not same(none.gradients[1], much.gradients[1])


def test_in_the_warm_up_only_the_critic_learns(do: Do) -> None:
    sets = ("trainer.value_warmup_steps=6", "trainer.max_steps=8", "trainer.critic_learning_rate=0.02")
    done = do("ppo", *sets, "trainer.batch_size=32", "trainer.mini_batch_size=16", "trainer.ppo_epochs=4")
    assert all(same(w, done.weights[0]) for w in done.weights[:6])
    assert done.gradients[:6] == [{}] * 6
    assert not same(done.weights[6], done.weights[5])
    assert done.column("policy_loss")[:6] == [None] * 6
    losses = done.column("value_loss")
    assert sum(losses[4:6]) < 0.85 * sum(losses[:2])
    assert done.column("approximate_kl")[:7] == [0] * 7


def test_an_adapter_of_the_critics_own(do: Do, base: Path, tmp_path: Path) -> None:
    done = do(
        "ppo", "trainer.critic=adapter", "policy.lora.r=4", "trainer.beta=0.1", "trainer.max_steps=3", train=False
    )
    before = weights(done.policy)
    kinds = {kind: [n for n in before if f".{kind}." in n] for kind in ("default", "ref", "critic")}
    assert len(kinds["default"]) == len(kinds["ref"]) == len(kinds["critic"]) > 0
    assert all(torch.equal(before[n], before[n.replace(".critic.", ".default.")]) for n in kinds["critic"])
    done.trainer.critic.unfreeze()  # as any pass through it does
    done.trainer.train()
    after = weights(done.policy)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {*kinds["default"], *kinds["critic"]}
    folder = tmp_path / "exported"
    save_policy(done.policy, folder)
    done.trainer.critic.remove()
    assert set(done.policy.model.peft_config) == {"default", "ref"}
    ids = torch.arange(3, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, done.policy.model(ids).logits)
    assert not any("critic" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_a_critic_changes_no_text(do: Do) -> None:
    """Nor does what it is made of draw from the generators that texts are drawn from."""
    sets = ("trainer.learning_rate=0", "trainer.max_steps=2")
    assert do("ppo", *sets).rollouts.read_text() == do("reinforce", *sets).rollouts.read_text()


@pytest.mark.parametrize("kind", ["head", "adapter"])
def test_a_critic_is_stored_and_read_back(kind: str, do: Do, tmp_path: Path) -> None:
    lora = ["policy.lora.r=4"] if kind == "adapter" else []
    done = do("ppo", f"trainer.critic={kind}", *lora, "trainer.max_steps=2")
    folder = tmp_path / "checkpoint"
    save_policy(done.policy, folder)
    done.trainer.write_beside(folder)
    fresh = do("ppo", f"trainer.critic={kind}", *lora, train=False).trainer
    assert not same(fresh.critic.state_dict(), done.trainer.critic.state_dict())
    fresh.read_beside(folder)
    assert same(fresh.critic.state_dict(), done.trainer.critic.state_dict())
    # The policy beside it is loaded as if it were not there.
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, done.policy.model(ids).logits)
    other = do("ppo", *(["policy.lora.r=4"] if kind == "head" else []), "trainer.critic=head", train=False).trainer
    if kind == "adapter":
        with pytest.raises(PolicyError, match="another kind or size"):
            other.read_beside(folder)
    (folder / CRITIC_FILE).write_bytes(b"x")
    with pytest.raises(PolicyError, match=rf"{CRITIC_FILE}: cannot read the critic"):
        fresh.read_beside(folder)


# Updates


def test_updates_from_one_batch_and_what_is_logged(do: Do) -> None:
    done = do("ppo", "trainer.mini_batch_size=4", "trainer.ppo_epochs=2", "trainer.max_steps=8")
    rewards = done.column("avg_reward")
    assert rewards[:4] == [rewards[0]] * 4
    assert rewards[4:] == [rewards[4]] * 4
    assert rewards[0] != rewards[4]
    every = {"policy_loss", "value_loss", "approximate_kl", "clip_share", "entropy", "stopped_share"}
    assert all(every <= record.keys() for record in done.log)
    for record in done.log:  # texts are nearly of one length: a mini-batch's mean is nearly its share of the batch's
        assert record["loss"] - record["policy_loss"] == pytest.approx(0.5 * record["value_loss"], rel=0.2)
    for record in (done.log[0], done.log[4]):
        assert {"explained_variance", "returns_mean", "values_mean", "mean_rank", "truncated_share"} <= record.keys()
    kl = done.column("approximate_kl")
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[3] > 1e-6
    assert done.column("zero_variance_share")[0] == 0.0
    assert [n for n, w in done.weights[0].items() if torch.equal(w, done.weights[-1][n])] == []
    config = configure(
        done.rollouts.parent, "ppo", "trainer.batch_size=16", "trainer.mini_batch_size=4", "trainer.ppo_epochs=4",
        "trainer.num_train_epochs=2", "trainer.max_steps=999",
    )  # fmt: skip
    assert number_of_steps(config.trainer, 64) == 2 * 4 * 16


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_accumulation_splits_a_step_and_adds_nothing(algorithm: str, do: Do) -> None:
    mini = {"ppo": ["trainer.mini_batch_size=4"], "reinforce": []}[algorithm]
    split = do(algorithm, "trainer.batch_size=4", *mini, "trainer.gradient_accumulation_steps=2", "trainer.max_steps=2")
    whole = do(algorithm, "trainer.max_steps=2")
    assert split.rollouts.read_text().splitlines()[:8] == whole.rollouts.read_text().splitlines()[:8]
    for name, gradient in whole.gradients[0].items():
        torch.testing.assert_close(split.gradients[0][name], gradient, atol=1e-6, rtol=1e-3)
    if algorithm == "ppo":
        for name, value in whole.trainer.critic.state_dict().items():
            torch.testing.assert_close(split.trainer.critic.state_dict()[name], value, atol=1e-3, rtol=1e-2)


def test_far_from_the_texts_the_policy_waits_for_new_ones(do: Do) -> None:
    sets = ("trainer.ppo_epochs=4", "trainer.max_steps=8", "trainer.learning_rate=0.05", "trainer.epsilon=100")
    done = do("ppo", *sets, "trainer.target_kl=0.0001")
    assert done.column("stopped_share") == [0, 1, 1, 1] * 2
    assert not same(done.weights[4], done.weights[3])
    for step in (1, 2, 3, 5, 6, 7):
        assert same(done.weights[step], done.weights[step - 1])
        assert done.gradients[step] == {}
    assert len(set(done.column("value_loss"))) == 8  # the critic learns on
    assert done.column("approximate_kl")[1] > 0.0001


def test_in_the_midst_of_a_step_nothing_half_done_is_applied(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near in the first micro-batch of the second step, far in its second: what the first gave is dropped."""
    far = iter([0.0, 0.0, 0.0, 1.0])
    monkeypatch.setattr(ppo, "approximate_kl", lambda *_: torch.tensor(next(far)))
    split = ("trainer.batch_size=4", "trainer.mini_batch_size=4", "trainer.gradient_accumulation_steps=2")
    done = do("ppo", *split, "trainer.ppo_epochs=2", "trainer.max_steps=2", "trainer.target_kl=0.1")
    assert done.gradients[0] != {}
    assert done.gradients[1] == {}
    assert same(done.weights[0], done.weights[1])
    assert list(far) == []


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_the_reference_holds_the_policy_back(kl_in: str, do: Do) -> None:
    sets = ("trainer.max_steps=16", f"trainer.kl_in={kl_in}", "trainer.batch_size=16", "trainer.mini_batch_size=16")
    free, held = do("ppo", *sets, "trainer.beta=0.0001"), do("ppo", *sets, "trainer.beta=5")
    assert free.column("kl")[0] == pytest.approx(0, abs=1e-6)
    assert free.column("kl")[-1] > 0.001
    assert abs(held.column("kl")[-1]) < 0.5 * free.column("kl")[-1]
    if kl_in == "reward":  # the critic and the returns know of it
        assert held.column("returns_mean")[1] != free.column("returns_mean")[1]


def test_kl_in_the_reward_is_not_in_the_loss_too(do: Do) -> None:
    """The first texts are the reference's own: with KL in the reward they are learnt from as if there were none."""
    sets = ("trainer.max_steps=2", "trainer.ppo_epochs=2")
    free = do("ppo", *sets).gradients[1]
    rewarded = do("ppo", *sets, "trainer.beta=5", "trainer.kl_in=reward").gradients[1]
    lost = do("ppo", *sets, "trainer.beta=5", "trainer.kl_in=loss").gradients[1]
    for name, gradient in free.items():
        torch.testing.assert_close(rewarded[name], gradient, atol=1e-5, rtol=1e-3)
    assert max((lost[name] - gradient).abs().max() for name, gradient in free.items()) > 1e-3


def test_bf16_on_the_cpu(do: Do) -> None:
    done, plain = do("ppo", "trainer.precision=bf16"), do("ppo")
    assert {w.dtype for w in done.weights[-1].values()} == {torch.float32}
    assert {w.dtype for w in done.trainer.critic.state_dict().values()} == {torch.float32}
    assert done.column("grad_norm")[0] != plain.column("grad_norm")[0]
    assert done.column("grad_norm")[0] == pytest.approx(plain.column("grad_norm")[0], rel=0.1)


# Bad settings


@pytest.mark.parametrize(
    ("algorithm", "sets", "said"),
    [
        ("ppo", ["trainer.mini_batch_size=3"], "mini_batch_size 3 does not divide batch_size 8"),
        ("ppo", ["trainer.lam=1.5"], "trainer.lam: must be less than or equal to 1, not 1.5 (--set)"),
        ("ppo", ["trainer.lam=-0.1"], "trainer.lam: must be greater than or equal to 0"),
        ("reinforce", ["trainer.gamma=1.01"], "trainer.gamma: must be less than or equal to 1"),
        ("ppo", ["trainer.num_generations=4"], "num_generations must be 1: this algorithm learns from one completion"),
        (
            "reinforce",
            ["trainer.num_generations=2"],
            "num_generations must be 1: this algorithm learns from one completion",
        ),
        ("reinforce", ["trainer.batch_size=1"], "a batch of one completion is its own mean"),
        ("ppo", ["trainer.critic=adapter"], "trainer.critic: an adapter of the critic's own needs a policy with one"),
        (
            "ppo",
            ["trainer.critic=adapter", "policy.lora.r=4", "trainer.gradient_checkpointing=true"],
            "cannot be used with gradient_checkpointing",
        ),
        (
            "ppo",
            ["trainer.critic=adapter", "policy.lora.r=4", "trainer.critic_trains_policy=true"],
            "critic_trains_policy needs critic: head",
        ),
        (
            "ppo",
            ["reward.normalize_rewards=group"],
            "reward.normalize_rewards: with ppo it must be auto, batch or none",
        ),
        ("rloo", ["trainer.num_generations=1"], "trainer.num_generations: must be greater than or equal to 2"),
        ("grpo", ["trainer.lam=0.9"], "trainer.lam: belongs to ppo, not to grpo"),
    ],
)
def test_settings_that_cannot_be(algorithm: str, sets: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path, algorithm, *sets, reward=None)
    assert said in caught.value.message
    assert caught.value.exit_code == 2


def test_the_command_line_says_it_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = ["train", "ppo", "--quick-test", "--output", str(tmp_path), "--set", "trainer.critic=adapter"]
    assert main(args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "error: trainer.critic: an adapter of the critic's own needs a policy with one (--set)" in err
    assert "hint: give policy.lora, e.g. --set policy.lora.r=16, or use trainer.critic=head" in err
    assert list(tmp_path.iterdir()) == []


def test_a_critic_built_by_hand_says_it_too(base: Path, tmp_path: Path) -> None:
    policy = load_policy(configure(tmp_path, "ppo", f"policy.model={base}").policy)
    with pytest.raises(ConfigError, match="needs a policy with one"):
        Critic(policy.model, "adapter", seed=0)
