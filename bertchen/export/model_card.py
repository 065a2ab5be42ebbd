"""The model card: front matter for the Hub, what was trained on what and how, how to load it, its limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from transformers import BertConfig, PreTrainedTokenizerBase

from bertchen.export.facts import CardFacts
from bertchen.model import MosaicBertConfig

_METRICS = {
    "MaskedCrossEntropy": "cross entropy [nats]",
    "MaskedPerplexity": "perplexity",
    "MaskedAccuracy": "masked accuracy",
}
# Not part of the recipe, or only of the machine that ran it.
_PRIVATE = ("loggers", "save_folder")


@dataclass(frozen=True)
class _Architecture:
    """What a card says of an architecture; `{config.…}` is filled in."""

    name: str
    tags: tuple[str, ...]
    feed_forward: str
    positions: str
    needs: str
    trust: str
    beyond: str
    references: str


_ARCHITECTURES = {
    "mosaicbert": _Architecture(
        name="MosaicBERT",
        tags=("mosaicbert", "bert", "encoder", "german", "alibi", "sentence-transformers", "custom_code"),
        feed_forward="gated, {config.intermediate_size} wide",
        positions="ALiBi, symmetric; no position embeddings",
        needs="""\
The code lies in this folder, so everything is loaded with `trust_remote_code=True`: read it first, and pin a
`revision`. It needs PyTorch and transformers (tested with 4.57 and 5), nothing else. Where flash-attn is
installed, it is used on CUDA in float16 and bfloat16.""",
        trust=", trust_remote_code=True",
        beyond="ALiBi takes longer ones; how well was not measured.",
        references="""\
- MosaicBERT: Portes et al., 2023, *MosaicBERT: A Bidirectional Encoder Optimized for Fast Pretraining*.
- ALiBi: Press et al., 2022, *Train Short, Test Long: Attention with Linear Biases Enables Input Length
  Extrapolation*.""",
    ),
    "bert": _Architecture(
        name="BERT",
        tags=("bert", "encoder", "german", "sentence-transformers"),
        feed_forward="{config.intermediate_size} wide",
        positions="learned, {config.max_position_embeddings}",
        needs="It needs PyTorch and transformers, nothing else.",
        trust="",
        beyond="It has {config.max_position_embeddings} positions; those that no input reached are untrained.",
        references="""\
- BERT: Devlin et al., 2019, *BERT: Pre-training of Deep Bidirectional Transformers for Language
  Understanding*.""",
    ),
}


def model_card(
    facts: CardFacts, config: MosaicBertConfig | BertConfig, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> str:
    """The card as Markdown, with its front matter.

    Args:
        facts: what is known of the training; `name` must be set.
        max_length: the longest input of the training, in tokens.
    """
    architecture = _ARCHITECTURES[config.model_type]
    sections = (
        _front_matter(architecture, tokenizer),
        _summary(architecture, facts, config, max_length),
        _loading(architecture, facts, tokenizer),
        _data(facts),
        _tokenizer(facts, tokenizer),
        _training(facts),
        _validation(facts),
        _limits(architecture, config, max_length),
        _references(architecture),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(architecture: _Architecture, tokenizer: PreTrainedTokenizerBase) -> str:
    fields = {
        "language": "de",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "mask_token": str(tokenizer.mask_token),
        "tags": list(architecture.tags),
        "widget": [{"text": _sentence(tokenizer)}],
    }
    license_line = "license: other  # placeholder: the license that you publish the weights under"
    return f"---\n{license_line}\n{_yaml(fields)}\n---"


def _summary(
    architecture: _Architecture, facts: CardFacts, config: MosaicBertConfig | BertConfig, max_length: int
) -> str:
    rows = (
        ("parameters", _number(facts.parameters)),
        ("layers x hidden size", f"{config.num_hidden_layers} x {config.hidden_size}"),
        ("attention heads", config.num_attention_heads),
        ("feed-forward", architecture.feed_forward.format(config=config)),
        ("positions", architecture.positions.format(config=config)),
        ("vocabulary", f"{config.vocab_size:,} rows"),
        ("longest input in training", f"{max_length} tokens"),
    )
    about = f"A German {architecture.name} encoder, pretrained with BERTchen on masked language modelling alone."
    return f"# {facts.name}\n\n{about}\n\n{_table(('', ''), rows)}"


def _loading(architecture: _Architecture, facts: CardFacts, tokenizer: PreTrainedTokenizerBase) -> str:
    trust = architecture.trust
    name = json.dumps(facts.name, ensure_ascii=False)
    sentence = json.dumps(_sentence(tokenizer), ensure_ascii=False)
    return f"""## How to load it

{architecture.needs}

Masked tokens:

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model={name}{trust})
print(fill_mask({sentence}))
```

```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}{trust})
model = AutoModelForMaskedLM.from_pretrained({name}{trust}).eval()
inputs = tokenizer({sentence}, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
```

Hidden states:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}{trust})
model = AutoModel.from_pretrained({name}{trust}).eval()
inputs = tokenizer(["Guten Morgen!", "Wie spät ist es?"], padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**inputs).last_hidden_state
```

Fine-tuning; the heads are new and have to be trained:

```python
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

classifier = AutoModelForSequenceClassification.from_pretrained({name}, num_labels=3{trust})
tagger = AutoModelForTokenClassification.from_pretrained({name}, num_labels=9{trust})
reader = AutoModelForQuestionAnswering.from_pretrained({name}{trust})
```

Sentence embeddings: the mean over the last hidden states, not trained for similarity yet:

```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer({name}{trust})
embeddings = encoder.encode(["Guten Morgen!", "Wie spät ist es?"])
```"""


def _data(facts: CardFacts) -> str:
    manifest = facts.manifest
    if not manifest:
        return ""
    train, val = (manifest.get("splits", {}).get(split, {}) for split in ("train", "val"))
    conversion = _without_paths(manifest.get("config") or {})
    rows = (
        ("source", _arguments(conversion.get("source"))),
        ("sources", ", ".join(conversion.get("sources") or ())),
        ("strategy", conversion.get("strategy")),
        ("documents", _number(manifest.get("documents", {}).get("kept"))),
        ("training tokens", _number(train.get("tokens"))),
        ("training blocks", _number(train.get("blocks"))),
        ("validation tokens", _number(val.get("tokens"))),
        ("validation blocks", _number(val.get("blocks"))),
        ("tokens a block", _number(manifest.get("block_size"))),
        ("unigram entropy [nats]", _number(manifest.get("unigram_entropy_nats"))),
    )
    return f"## Data\n\n{_table(('', ''), rows)}{_details('How it was converted', conversion)}"


def _tokenizer(facts: CardFacts, tokenizer: PreTrainedTokenizerBase) -> str:
    special = sorted(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    rows = (
        ("entries", _number(len(tokenizer))),
        ("special tokens", ", ".join(f"`{token}` {index}" for index, token in special)),
        ("a pair of texts", f"`{tokenizer.decode(tokenizer('A', 'B')['input_ids'])}`"),
        ("fingerprint", facts.manifest.get("tokenizer", {}).get("fingerprint")),
    )
    return f"## Tokenizer\n\n{_table(('', ''), rows)}"


def _training(facts: CardFacts) -> str:
    config = facts.config
    rows = (
        ("steps", _number(facts.steps)),
        ("tokens read", _number(facts.tokens)),
        ("wall-clock time", _duration(facts.seconds)),
        ("hardware", facts.hardware),
        ("precision", facts.precision),
        ("sequence length", config.get("sequence_length")),
        ("batch", _batch(config.get("global_train_batch_size"), facts.manifest.get("block_size"))),
        ("optimizer", _arguments(config.get("optimizer"))),
        ("schedule", _arguments(config.get("scheduler"))),
        ("goal of the schedule", config.get("max_duration")),
        ("limit of wall-clock time", config.get("stop_after")),
        ("masking", _arguments(config.get("masking"))),
        ("algorithms", _arguments(config.get("algorithms"))),
        ("seed", config.get("seed")),
    )
    if all(value is None for _, value in rows):
        return ""
    public = _without_paths({key: value for key, value in config.items() if key not in _PRIVATE})
    return f"## Training\n\n{_table(('', ''), rows)}{_details('Whole configuration', public)}"


def _validation(facts: CardFacts) -> str:
    if not facts.validation:
        return ""
    measured = {name for values in facts.validation.values() for name in values}
    names = [name for name in _METRICS if name in measured] + sorted(measured - _METRICS.keys())
    rows = [
        (_evaluator(label), *(_number(values.get(name)) for name in names))
        for label, values in sorted(facts.validation.items(), key=lambda item: _length(item[0]))
    ]
    step = facts.validation_step
    share = (facts.config.get("masking") or {}).get("eval_mlm_probability")
    masked = "" if share is None else f", {share:.0%} of the tokens masked"
    after = "" if step is None else f", after step {step:,}"
    head = ("input", *(_METRICS.get(name, name) for name in names))
    return f"## Validation\n\nOn held-out blocks{masked}{after}:\n\n{_table(head, rows)}"


def _limits(architecture: _Architecture, config: MosaicBertConfig | BertConfig, max_length: int) -> str:
    beyond = architecture.beyond.format(config=config)
    return f"""## Limits

- It has learned to predict masked German tokens and nothing else. For a task it must be fine-tuned; its
  embeddings are not trained for similarity.
- It was trained on inputs of up to {max_length} tokens. {beyond}
- What its training text holds of errors, prejudice and personal data can show in its predictions. They are
  no source of facts.
- Text in other languages is read by a tokenizer and a model made for German.
- Attention backends round differently: results in bfloat16 on a GPU differ slightly from those on a CPU."""


def _references(architecture: _Architecture) -> str:
    return f"""## References

{architecture.references}
- BERTchen: Sadrieh, 2024."""


# -- formatting ----------------------------------------------------------------------------------------------


def _sentence(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"Die Hauptstadt von Deutschland ist {tokenizer.mask_token}."


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; rows whose values are all missing are left out."""
    lines = [head, ["---"] * len(head)]
    lines += [row for row in rows if any(value not in (None, "") for value in row[1:])]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _details(title: str, content: Any) -> str:
    if not content:
        return ""
    code = f"```yaml\n{_yaml(content)}\n```"
    return f"\n\n<details><summary>{title}</summary>\n\n{code}\n\n</details>"


def _without_paths(value: Any) -> Any:
    """Absolute paths cut down to their last part: the rest tells of a machine, not of the model."""
    if isinstance(value, Mapping):
        return {str(key): _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
        return f"…/{os.path.basename(value.rstrip('/'))}"
    return value


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=110).rstrip()


def _arguments(values: Mapping[str, Any] | None) -> str | None:
    """`adamw, lr 0.0005, …`, or None where there is nothing. What isn't set or empty is left out."""
    told = {key: _plain(value) for key, value in (values or {}).items()}
    return ", ".join(text if key == "name" else f"{key} {text}" for key, text in told.items() if text) or None


def _plain(value: Any) -> str:
    if value is None or value is False:
        return ""
    if isinstance(value, Mapping):
        inner = _arguments(value)
        return f"({inner})" if inner else ""
    if isinstance(value, (list, tuple)):
        return " / ".join(_plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _batch(blocks: int | None, block_size: int | None) -> str | None:
    if blocks is None or block_size is None:
        return None
    return f"{blocks:,} blocks of {block_size}: {blocks * block_size:,} tokens a step"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _evaluator(label: str) -> str:
    length, _ = _length(label)
    return f"{length} tokens" if length else label


def _length(label: str) -> tuple[int, str]:
    """The length in `eval_512`, 0 where there is none, and the label."""
    length = label.rpartition("_")[2]
    return (int(length) if length.isdigit() else 0, label)
