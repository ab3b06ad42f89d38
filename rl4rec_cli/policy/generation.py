"""Prompts to completions.

Decides: all sampling settings, and where a completion ends.
Hides: padding, transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli.errors import PolicyError
from rl4rec_cli.models.turns import end_of_turn
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.policy.fast_inference import has_engine, write_by_engine
from rl4rec_cli.policy.shared_prompts import read_for_generation

if TYPE_CHECKING:
    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.policy.loading import Policy

_ENGINE_BATCH = 1024
"""Prompts that an engine gets at once: it orders and batches them itself."""


@contextmanager
def writing(model: Any) -> Iterator[None]:
    """Puts a model into the state for generation, and afterwards back into the one it was in."""
    was_training = model.training
    if hasattr(model, "for_inference"):  # Unsloth's
        model.for_inference()
    model.eval()
    try:
        yield
    finally:
        if was_training and hasattr(model, "for_training"):
            model.for_training()
        model.train(was_training)


def generate_ids(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    """Completes prompts with a model.

    Args:
        model: a causal language model; its `generation_config` gives the ids that end a completion.
        prompts: B token sequences.

    Returns:
        B token sequences, with the ending token if the completion ended by itself; of a beam search
        `num_return_sequences` for each prompt, one prompt after the other.

    Raises:
        PolicyError: the policy's probabilities are not finite, or its engine is to search beams.
    """
    from transformers import GenerationConfig

    size = max(1, (sampling.batch_size or len(prompts) * sampling.num_beams) // sampling.num_beams)
    if len(prompts) > size:  # the cache of keys and values grows with the batch
        parts = (prompts[start : start + size] for start in range(0, len(prompts), size))
        return [ids for part in parts for ids in generate_ids(model, tokenizer, part, sampling)]
    own, ends = model.generation_config, ending_ids(model, tokenizer)
    if has_engine(model):
        _refuse_beams(sampling)
        return write_by_engine(model, prompts, sampling, ends)
    if sampling.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    else:
        how = {"do_sample": False}
    config = GenerationConfig(
        **how,
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty,
        num_beams=sampling.num_beams,
        num_return_sequences=sampling.num_return_sequences,
        length_penalty=1.0,
        early_stopping=False,
        use_cache=True,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        disable_compile=True,
    )
    width = max(len(p) for p in prompts)
    device = next(model.parameters()).device
    ids_BT = torch.empty(len(prompts), width, dtype=torch.long)
    mask_BT = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        # Padded with the prompt's first token, which the mask hides: the repetition penalty looks at hidden tokens too,
        # and would punish the padding token, which in many models is the one that ends a completion.
        ids_BT[row] = prompt[0]
        ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, width - len(prompt) :] = 1
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    try:
        with torch.inference_mode():
            shares = sampling.share_prompts and sampling.num_beams == 1
            cache = read_for_generation(model, ids_BT, mask_BT) if shares else None
            own_cache = {} if cache is None else {"past_key_values": cache}
            out_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config, **own_cache)
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise PolicyError(
            "the policy's probabilities are not finite: its training diverged",
            hint="lower trainer.learning_rate, or go back to an earlier checkpoint",
        ) from error
    ending = set(ends)
    texts = []
    for row in out_BT[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in ending), len(row) - 1)
        texts.append(row[: end + 1])
    return texts


@during(Phase.WRITING)
def write_ids(
    policy: Policy, model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> tuple[list[list[int]], list[list[float]] | None]:
    """Completes prompts with the policy's engine, or with its model if it has no engine.

    Args:
        model: the policy's, perhaps wrapped by a trainer, in the state for generation (`writing`).

    Returns:
        Tokens as `generate_ids` returns them, and the engine's log-probability of each token under the sampling
        distribution, or None without an engine.

    Raises:
        PolicyError: the policy's probabilities are not finite. EngineError: the engine failed.
    """
    if policy.engine is not None:
        _refuse_beams(sampling)
        return policy.engine.write(policy.model, prompts, sampling, ending_ids(policy.model, policy.tokenizer))
    return generate_ids(model, policy.tokenizer, prompts, sampling), None


def _refuse_beams(sampling: Sampling) -> None:
    if sampling.num_beams > 1:
        raise PolicyError(
            "engines sample only, and a beam search is asked for",
            hint="generate by transformers, or set num_beams to 1",
        )


def ending_ids(model: Any, tokenizer: Any) -> list[int]:
    """Returns the ids of the tokens that end a completion: the model's, or else the tokenizer's."""
    own = model.generation_config.eos_token_id
    ids = tokenizer.eos_token_id if own is None else own
    return list(ids) if isinstance(ids, list) else [ids]


def decode_texts(tokenizer: Any, completions: Sequence[Sequence[int]]) -> list[str]:
    """Decodes tokens into the texts that are embedded, without special tokens, the end of turn and outer blanks."""
    if not completions:  # which transformers takes for one text without tokens
        return []
    end = end_of_turn(tokenizer)  # which not every tokenizer flags as special
    rows = [list(c[:-1] if len(c) and c[-1] == end else c) for c in completions]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def generate_texts(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Returns the text of a completion for each prompt, without special tokens; by the engine if the policy has one.

    Of a beam search there are `num_return_sequences` for each prompt, one prompt after the other.
    """
    completions = generate_completions(policy, prompts, sampling, batch_size=batch_size, progress=progress)
    return decode_texts(policy.tokenizer, completions)


def generate_several(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    count: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Returns the texts of `count` completions for each prompt: samples, or the best of a beam search.

    Args:
        batch_size: completions generated at once.
        progress: gets the numbers of prompts as they are done; of samples, of completions.
    """
    sampling, prompts = _repeated(prompts, sampling, count)
    texts = generate_texts(policy, prompts, sampling, batch_size=batch_size, progress=progress)
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def generate_grouped(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    count: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[list[int]]]:
    """Returns the tokens of `count` completions for each prompt, see `generate_several`."""
    sampling, prompts = _repeated(prompts, sampling, count)
    ids = generate_completions(policy, prompts, sampling, batch_size=batch_size, progress=progress)
    return [ids[start : start + count] for start in range(0, len(ids), count)]


def _repeated(
    prompts: Sequence[Sequence[int]], sampling: Sampling, count: int
) -> tuple[Sampling, Sequence[Sequence[int]]]:
    """Returns how, and for what, `count` completions of each prompt are generated."""
    if sampling.num_beams > 1:
        return replace(sampling, num_return_sequences=count), prompts
    return sampling, [prompt for prompt in prompts for _ in range(count)]


def generate_completions(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Returns the tokens of a completion for each prompt, as `generate_ids` does; see `generate_texts`."""
    each, batch_size = sampling.num_return_sequences, max(1, batch_size // sampling.num_beams)
    if policy.engine is not None:
        batch_size = _ENGINE_BATCH
    # Prompts of like length share a batch, so that little is spent on padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: list[list[int]] = [[]] * (len(prompts) * each)
    with writing(policy.model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, _ = write_ids(policy, policy.model, [prompts[i] for i in rows], sampling)
            for place, row in enumerate(rows):
                completions[row * each : (row + 1) * each] = ids[place * each : (place + 1) * each]
            if progress is not None:
                progress(len(rows))
    return completions
