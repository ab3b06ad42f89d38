"""The model card of an export, from the run's folder: the training data, the recipe and the results.

Decides: what others need to judge and use the policy; that the card holds no path of this machine.
Hides: the forms of the run's files.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rl4rec_cli import __version__
from rl4rec_cli.config.tasks import TASKS
from rl4rec_cli.data.dataset import FIT_WORDS
from rl4rec_cli.data.opening import dataset_name
from rl4rec_cli.data.provenance import trained_on
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint, is_of
from rl4rec_cli.eval.result_files import read_result
from rl4rec_cli.policy.sources import CARRIED
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.strict_yaml import dump_yaml

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection

_SHOWN = ("prompt", "generation", "reward", "trainer")


def model_card(run: Run, checkpoint: Path, *, form: str, base: str, weights: str) -> str:
    """Returns the text of `README.md`.

    Args:
        form: `merged` or `adapter`.
        base: the model that was trained: a Hub name, or a folder of this machine.
        weights: type of a merged model's weights.
    """
    config = run.config
    is_local = Path(base).is_dir() or base == "tiny"
    head: dict[str, Any] = {
        "library_name": "peft" if form == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rl4rec", config.task.tag, config.trainer.algorithm, *(["lora"] if config.policy.lora else [])],
    }
    if not is_local:
        head["base_model"] = base
    parts = [
        f"---\n{dump_yaml(head)}---\n",
        f"# {run.folder.resolve().name}\n",
        f"{config.task.model} Trained with rl4rec {__version__}.\n",
        "## Training\n",
        _training(run, checkpoint, base="a small model built and trained locally" if is_local else f"`{base}`"),
        "## Data\n",
        _data(run),
        "## Results\n",
        _results(run, checkpoint),
        "## Use\n",
        _use(run, form=form, weights=weights, is_local=is_local),
        "## Recipe\n",
        _recipe(config),
    ]
    return "\n".join(parts)


def retriever_card(run: Run, checkpoint: Path) -> str:
    """Returns the text of `README.md` for a trained retriever."""
    config = run.config
    encoder = config.retrieval.model
    is_local = Path(encoder).is_dir()
    head: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["rl4rec", "recommender-system", config.trainer.algorithm],
        **({} if is_local else {"base_model": encoder}),
    }
    settings = {"retrieval": {"emb_type": config.retrieval.emb_type}, "trainer": config.trainer.model_dump(mode="json")}
    section = cast("RetrieverSection", config.trainer)
    name = f"the folder `{Path(encoder).name}`" if is_local else f"`{encoder}`"
    what, how, queries, use = _tuned(section, name) if section.tunes_encoder else _projected(name)
    parts = [
        f"---\n{dump_yaml(head)}---\n",
        f"# {run.folder.resolve().name}\n",
        f"An embedder that was fitted to what users chose after what: {what}, so that histories lie near the items "
        f"that follow. Trained with rl4rec {__version__}.\n",
        "## Training\n",
        f"- {how}\n- {_checkpoint(run, checkpoint)}; seed {config.run.seed}\n",
        "## Data\n",
        _data(run),
        "## Results\n",
        f"{queries}\n",
        _results(run, checkpoint),
        "## Use\n",
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("NAME")\n{use}```\n\n'
        "`item_vectors.safetensors` has the vectors of the items that it was trained on"
        f"{'' if section.tunes_encoder else ', with what they have beyond their texts'}. rl4rec reads both: "
        "`--set retrieval.embedder=sentence-transformers --set retrieval.model=FOLDER`.\n",
        "## Recipe\n",
        f"```yaml\n{dump_yaml(settings)}```\n",
    ]
    return "\n".join(parts)


def _projected(name: str) -> tuple[str, str, str, str]:
    """Returns what is said of a projection: what it is, its training, its queries, and its use."""
    return (
        "the encoder's vectors are projected, by one map for items and one for queries",
        f"encoder, unchanged: {name}",
        "Queries are whole histories, by the weights in `retriever.safetensors`; a single text knows less.",
        'queries = model.encode_query(["a text that says what is wanted"])\n'
        'items = model.encode_document(["the text of an item"])\n',
    )


def _tuned(section: RetrieverSection, name: str) -> tuple[str, str, str, str]:
    """Returns what is said of a tuned encoder, as `_projected` does of a projection."""
    lora = section.adapter
    weights = "all weights" if lora is None else f"a LoRA adapter (rank {lora.r}, alpha {lora.alpha}), merged into them"
    return (
        "the encoder itself was tuned",
        f"encoder: {name}; trained: {weights}, by MultipleNegativesRankingLoss",
        "Queries are the texts of histories; a single text knows less.",
        'queries = model.encode(["the titles of a history, oldest first, a line each"])\n'
        'items = model.encode(["the text of an item"])\n',
    )


def _training(run: Run, checkpoint: Path, *, base: str) -> str:
    config = run.config
    lora = config.policy.lora
    how = "all its weights" if lora is None else f"a LoRA adapter (rank {lora.r}, alpha {lora.alpha})"
    if config.policy.quantization != "none":
        how += f" over its weights in {config.policy.quantization.replace('bit', ' bits')}"
    warm_start = " after a supervised warm start" if len(config.trainer.phases) > 1 else ""
    lines = [
        f"- base: {base}",
        f"- trained: {how}, by {config.trainer.algorithm.upper()}{warm_start}",
        f"- rewards: {', '.join(f'{n} × {w:g}' for n, w in _rewards(config).items())}{_cut_off(config)}",
        f"- {_checkpoint(run, checkpoint)}; seed {config.run.seed}",
    ]
    return "\n".join(lines) + "\n"


def _cut_off(config: Any) -> str:
    return f", at {config.reward.k}" if config.task.has_catalogue else ""


def _checkpoint(run: Run, checkpoint: Path) -> str:
    line = checkpoint_line(describe_checkpoint(run, checkpoint)).partition(". The best step")[0]
    return line[:1].lower() + line[1:].removesuffix(".")


def _rewards(config: Any) -> dict[str, float]:
    """Returns the rewards by name. Of the user's own code it keeps only the function's name."""
    return {re.sub(r"^.*[:/]", "", name): weight for name, weight in config.reward.functions.items()}


def _data(run: Run) -> str:
    fit = run.config.data.fit
    lines = [f"Fitted on {FIT_WORDS[fit]} (`data.fit={fit}`).\n"] if run.config.task.has_catalogue else []
    digests = trained_on(run)
    for name in _datasets(run):
        result = _evaluation(run.results(name) / "validation.json")
        if result is None:
            lines.append(f"`{name}`{_digest(digests, name)}. Not measured.\n")
        else:
            lines.append(
                f"`{result['dataset']}` (digest `{result['dataset_digest'][:16]}`). {result.get('audit', '')}".rstrip()
                + "\n"
            )
    return "\n".join(lines)


def _digest(digests: Mapping[str, str], name: str) -> str:
    """Returns the digest of a run's dataset in words. A single dataset needs no matching name."""
    digest = next(iter(digests.values())) if len(digests) == 1 else digests.get(name)
    return f" (digest `{digest[:16]}`)" if digest else ""


def _datasets(run: Run) -> list[str]:
    """Returns the names of the run's datasets. A single one has the name of its folder."""
    paths = run.config.data.paths
    return [dataset_name(path) for path in paths] if len(paths) > 1 else [Path(p).name for p in paths] or ["synthetic"]


def _evaluation(path: Path) -> dict[str, Any] | None:
    return read_result(path) if path.is_file() else None


def _results(run: Run, checkpoint: Path) -> str:
    """Returns the results of exactly this checkpoint."""
    name = checkpoint.resolve().name
    own = "" if name == run.final.name else name
    parts = []
    names = _datasets(run)
    for name, split in itertools.product(names, ("validation", "test")):
        result = _evaluation(run.results(name) / own / f"{split}.json")
        if result is None or not is_of(result, checkpoint):
            continue
        of = f"{name}, " if len(names) > 1 else ""
        metrics = [n for n in next(iter(result["methods"].values())) if n.endswith("@10")] or [result["metric"]]
        rows = ["| method | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
        for method, values in result["methods"].items():
            cells = " | ".join(f"{values[n]:.4f}" if n in values else "" for n in metrics)
            rows.append(f"| {'**' + method + '**' if method == result['subject'] else method} | {cells} |")
        parts += [
            f"{of}{split if of else split.capitalize()} split, {result['users']:,} {run.config.task.unit}:\n",
            "\n".join(rows) + "\n",
        ]
        if result.get("verdict"):
            parts.append(f"{result['verdict'][:1].upper()}{result['verdict'][1:]}\n")
    return "\n".join(parts) or "This checkpoint was not measured.\n"


def _use(run: Run, *, form: str, weights: str, is_local: bool) -> str:
    lines = _prompts(run) if run.config.task.has_catalogue else []
    if form == "merged":
        lines.append(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("NAME", dtype="{weights}")\n'
            'tokenizer = AutoTokenizer.from_pretrained("NAME")\n```\n'
        )
        return "\n".join(lines)
    is_quantised = run.config.policy.quantization != "none"
    import_line, argument = "", ""
    if is_quantised:
        import_line = "from transformers import BitsAndBytesConfig\n"
        four = ', bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
        kind = run.config.policy.quantization
        argument = f", quantization_config=BitsAndBytesConfig(load_in_{kind}=True{four if kind == '4bit' else ''})"
    if is_local:
        lines.append(
            f"Its base lies in the folder `{CARRIED}`, which goes wherever this folder goes.\n\n```python\n"
            f"from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n{import_line}\n"
            f'base = AutoModelForCausalLM.from_pretrained("NAME/{CARRIED}"{argument})\n'
            'model = PeftModel.from_pretrained(base, "NAME")\n```\n'
        )
        return "\n".join(lines)
    lines.append(
        f"```python\nfrom peft import AutoPeftModelForCausalLM\n{import_line}\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("NAME"{argument})\n```\n'
    )
    return "\n".join(lines)


def _prompts(run: Run) -> list[str]:
    template = run.config.prompt.template
    sentence = f"The prompt is {json.dumps(template, ensure_ascii=False)}, `{{history}}` being the titles chosen so far"
    lines = [f"{sentence}, joined by {json.dumps(run.config.prompt.separator)}.\n"]
    for name, own in run.config.prompt.templates.items():
        lines.append(f"For `{name}` it is {json.dumps(own, ensure_ascii=False)}.\n")
    return lines


def _recipe(config: Any) -> str:
    """Returns the settings that the policy's texts depend on, without the paths."""
    whole = config.model_dump(mode="json")
    settings = {name: whole[name] for name in _SHOWN}
    settings["reward"]["functions"] = _rewards(config)
    for section, _, name in (key.partition(".") for task in TASKS.values() for key in task.settings):
        if section in settings and f"{section}.{name}" not in config.task.settings:  # only another task reads it
            settings[section].pop(name, None)
    policy = whole["policy"]
    settings["policy"] = {name: policy[name] for name in ("quantization", "four_bit", "dtype", "lora")}
    return f"```yaml\n{dump_yaml(settings)}```\n"
