"""The plain BERT is Transformers' `BertForMaskedLM`: weights, loss, gradients; and what a YAML can't say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from bertchen.config import Config, load_config
from bertchen.config.schema_train import TrainConfig
from bertchen.data.cutting import split_by_tokens
from bertchen.data.masking import mask_tokens, max_masked_per_row
from bertchen.errors import UserError
from bertchen.train import builders
from bertchen.train.composer_model import ComposerMaskedLM
from bertchen.train.plain_bert import PlainBertForMaskedLM
from bertchen.train.preflight import preflight

MakeConfig = Callable[..., Config[TrainConfig]]
ROOT = Path(__file__).resolve().parents[2]
BERT = "model.architecture=bert"
WITHOUT_DROPOUT = (BERT, "model.hidden_dropout_prob=0.0", "model.initializer_range=0.2")
BLOCK_SIZE, VOCABULARY = 32, 384


def built(config: Config[TrainConfig]) -> ComposerMaskedLM:
    return builders.build_model(config, preflight(config))


def reference_of(model: PlainBertForMaskedLM) -> BertForMaskedLM:
    """Transformers' own class with the same weights."""
    reference = BertForMaskedLM(model.config)
    reference.load_state_dict(model.state_dict())
    return reference.train(model.training)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    model.zero_grad()
    return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6, msg=lambda text, at=name: at + text)


def masked_batch(config: Config[TrainConfig], seq_len: int = BLOCK_SIZE, rate: float = 0.3) -> dict[str, Any]:
    """A training batch of 256 tokens as the masking algorithm leaves it."""
    rows = 256 // seq_len
    ids = torch.randint(4, 330, (rows, seq_len), generator=torch.Generator().manual_seed(seq_len))
    vocabulary = builders.masking_vocabulary(preflight(config))
    input_ids, labels = mask_tokens(ids, torch.arange(rows), vocabulary, rate, seed=1, step=2)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "masked_per_row": ((labels != -100).sum() / rows).expand(rows),
        "max_masked_per_row": max_masked_per_row(rate, seq_len),
    }


# -- the model ------------------------------------------------------------------------------------------------


def test_weights_are_those_that_transformers_begins_with(train_config: MakeConfig) -> None:
    model = built(train_config(BERT, "seed=5", "model.initializer_range=0.03"))
    torch.manual_seed(5)
    reference = BertForMaskedLM(model.model.config)
    begun, expected = model.model.state_dict(), reference.state_dict()
    assert begun.keys() == expected.keys()
    assert all(torch.equal(begun[name], expected[name]) for name in expected)
    assert begun["bert.embeddings.word_embeddings.weight"].std().item() == pytest.approx(0.03, rel=0.05)


def test_shapes(train_config: MakeConfig) -> None:
    model = built(train_config(BERT, "model.intermediate_size=40")).model
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["bert.embeddings.position_embeddings.weight"] == (BLOCK_SIZE, 32)
    assert shapes["bert.embeddings.word_embeddings.weight"] == (VOCABULARY, 32)
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == (40, 32)
    assert shapes["cls.predictions.bias"] == (VOCABULARY,)
    assert not any("pooler" in name or "gate" in name for name in shapes)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_what_follows_when_it_is_not_set(train_config: MakeConfig) -> None:
    config = preflight(
        train_config(
            BERT, "model.intermediate_size=null", "model.vocab_size=null", "model.max_position_embeddings=null"
        )
    ).model_config
    assert isinstance(config, BertConfig)
    assert (config.intermediate_size, config.vocab_size, config.max_position_embeddings) == (4 * 32, 384, BLOCK_SIZE)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.1, 0.0)
    assert config._attn_implementation == "sdpa"
    given = preflight(train_config(BERT, "model.attention_probs_dropout_prob=0.2", "model.max_position_embeddings=48"))
    assert given.model_config.attention_probs_dropout_prob == 0.2
    assert given.model_config.max_position_embeddings == 48


def test_pretrain_yaml_with_bert_is_bert_base(tiny_tokenizer: str, tiny_data: Path, tmp_path: Path) -> None:
    """All that yamls/pretrain.yaml says of the model is true of BERT base too."""
    arguments = [f"data.local={tiny_data}", f"tokenizer={tiny_tokenizer}", f"save_folder={tmp_path / 'run'}", BERT]
    arguments += ["model.vocab_size=30522", "sequence_length=32", "eval.lengths=[32]", "global_train_batch_size=8"]
    config = load_config(TrainConfig, [str(ROOT / "yamls/pretrain.yaml"), *arguments], "usage")
    found, base = preflight(config).model_config.to_dict(), BertConfig().to_dict()
    different = {name for name in base if found[name] != base[name]}
    assert different == {"max_position_embeddings", "attention_probs_dropout_prob"}


# -- the loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_len", [8, BLOCK_SIZE])
def test_loss_and_gradients_are_transformers_own(train_config: MakeConfig, seq_len: int) -> None:
    """All rows in one microbatch. Transformers predicts every position, here the hidden ones alone are predicted."""
    config = train_config(*WITHOUT_DROPOUT)
    model, batch = built(config), masked_batch(config, seq_len)
    model.train()
    reference = reference_of(model.model)
    loss = model.loss(model(batch), batch)
    expected = reference(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    assert_close(gradients(model.model), gradients(reference))


@pytest.mark.parametrize("microbatch_tokens", [32, 64, 128])
def test_microbatches_give_the_gradients_of_the_whole_batch(train_config: MakeConfig, microbatch_tokens: int) -> None:
    """Composer weights each microbatch by its share of the rows; rows hide unlike numbers of tokens."""
    config = train_config(*WITHOUT_DROPOUT)
    model, batch = built(config), masked_batch(config, 8, rate=0.29)
    assert len((batch["labels"] != -100).sum(dim=1).unique()) > 1
    reference = reference_of(model.model)
    reference(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
    parts = split_by_tokens(batch, microbatch_tokens)
    assert len(parts) == 256 // microbatch_tokens
    for part in parts:
        share = len(part["input_ids"]) / len(batch["input_ids"])
        (share * model.loss(model(part), part)).backward()
    assert_close(gradients(model.model), gradients(reference))


def test_the_head_sees_hidden_positions_alone(train_config: MakeConfig) -> None:
    config = train_config(BERT)
    model, batch = built(config).model, masked_batch(config)
    seen = []
    model.cls.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    output = model(input_ids=batch["input_ids"], labels=batch["labels"], max_masked=8 * 10)
    assert seen == [(80, VOCABULARY)]
    assert output.logits is None
    free = model.eval()(input_ids=batch["input_ids"], labels=batch["labels"], output_logits=False)
    assert free.masked_labels.tolist() == batch["labels"][batch["labels"] != -100].tolist()


def test_logits_of_all_positions(train_config: MakeConfig) -> None:
    model = built(train_config(BERT)).model.eval()
    input_ids = torch.randint(4, 330, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=input_ids).logits, reference_of(model)(input_ids).logits)


def test_metrics_are_those_of_transformers_logits(train_config: MakeConfig) -> None:
    config = train_config(*WITHOUT_DROPOUT, "eval.batch_tokens=96")
    checked = preflight(config)
    model = builders.build_model(config, checked)
    evaluators = builders.build_evaluators(config, checked)
    trainer = Trainer(model=model, eval_dataloader=evaluators, device="cpu", precision="fp32", progress_bar=False)
    trainer.eval()
    reference = reference_of(model.model).eval()
    for evaluator in evaluators:
        losses, right, count = 0.0, 0, 0
        for batch in evaluator.dataloader.dataloader:
            with torch.no_grad():
                logits = reference(batch["input_ids"]).logits
            chosen = batch["labels"] != -100
            losses += F.cross_entropy(logits[chosen], batch["labels"][chosen], reduction="sum").item()
            right += (logits.argmax(-1) == batch["labels"])[chosen].sum().item()
            count += int(chosen.sum())
        found = [metric.compute().item() for metric in trainer.state.eval_metrics[evaluator.label].values()]
        expected = [losses / count, torch.tensor(losses / count).exp().item(), right / count]
        assert found == pytest.approx(expected, rel=1e-5)
    trainer.close()


@pytest.mark.slow
def test_compiled_once_a_length(train_config: MakeConfig) -> None:
    """With `compile: true`, here with a backend that counts: the same numbers; lengths that come back are known."""
    model = built(train_config(*WITHOUT_DROPOUT)).model.train()
    expected = {}
    for seq_len in (8, 16, 32):
        ids = torch.randint(4, 330, (256 // seq_len, seq_len), generator=torch.Generator().manual_seed(seq_len))
        labels = torch.where(ids % 4 == 0, ids, -100)
        batch = {"input_ids": ids, "labels": labels, "max_masked": 128, "num_items_in_batch": (labels != -100).sum()}
        model(**batch).loss.backward()
        expected[seq_len] = (batch, gradients(model))
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    try:
        model.compile(dynamic=False, fullgraph=True, backend=counting)
        for seq_len in (32, 8, 16, 8, 32, 16):
            batch, gradient = expected[seq_len]
            model(**batch).loss.backward()
            assert_close(gradients(model), gradient)
        assert len(graphs) == 3
    finally:
        torch._dynamo.reset()


# -- around it ------------------------------------------------------------------------------------------------


def test_its_size_is_told(train_config: MakeConfig) -> None:
    """By the model itself, which MFU and the dry run go by."""
    config = train_config(BERT)
    model = built(config)
    parameters = sum(parameter.numel() for parameter in BertForMaskedLM(preflight(config).model_config).parameters())
    assert model.facts["parameters"] == parameters


def test_weights_to_start_from(train_config: MakeConfig, tmp_path: Path) -> None:
    """Of another vocabulary, as `BertForMaskedLM` saves them; fields that are set replace the folder's."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    source = BertForMaskedLM(BertConfig(vocab_size=320, **sizes))
    source.save_pretrained(tmp_path / "hf")
    model = built(train_config(BERT, f"init_from={tmp_path / 'hf'}", "model.hidden_dropout_prob=0.3")).model
    assert isinstance(model, PlainBertForMaskedLM)
    assert (model.config.vocab_size, model.config.max_position_embeddings) == (VOCABULARY, 512)
    assert model.config.hidden_dropout_prob == 0.3
    found, expected = model.state_dict(), source.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name][: len(value)], value), name


def refused(config: Config[TrainConfig]) -> str:
    with pytest.raises(UserError) as caught:
        built(config)
    message = str(caught.value)
    assert "\n" not in message
    assert not Path(config.value.save_folder).exists()
    return message


def test_weights_that_do_not_suit(train_config: MakeConfig, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(max_position_embeddings=16, **sizes)).save_pretrained(tmp_path / "short")
    message = refused(train_config(BERT, f"init_from={tmp_path / 'short'}"))
    assert message.startswith(f"init_from={tmp_path / 'short'} (from the command line): has 16 positions")
    assert "32 tokens" in message
    builders.build_model(config := train_config(), preflight(config)).model.save_pretrained(tmp_path / "mosaic")
    assert "can't be loaded as BERT: " in refused(train_config(BERT, f"init_from={tmp_path / 'mosaic'}"))
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    assert "can't be loaded as MosaicBERT: " in refused(train_config(f"init_from={tmp_path / 'bert'}"))


WRONG = [
    ("model.architecture=brt", "model.architecture=brt (from the command line): unknown; did you mean bert?"),
    ("model.architecture=[bert]", "model.architecture=['bert'] (from the command line): unknown; "),
    ("model.architecture=null", "model.architecture=None (from the command line): unknown; known: bert, mosaicbert"),
    (
        "model.classifier_pooling=mean",
        "model.classifier_pooling (from the command line): unknown field of BERT; did you mean classifier_dropout?",
    ),
    ("model.is_decoder=true", "model.is_decoder (from the command line): unknown field of BERT; known: "),
    (
        "model.attention_backend=flex",
        "model.attention_backend=flex (from the command line): architecture=bert has sdpa alone; take auto or sdpa",
    ),
    ("model.attention_backend=flash", "take auto or sdpa"),
    ("model.kernels=triton", "architecture=bert has PyTorch's alone; take auto or torch"),
    ("model.float8=true", "architecture=bert has no 8-bit matrix products"),
    ("model.attention_backend=3", "model.attention_backend=3 (from the command line): should be text"),
    (
        "model.max_position_embeddings=16",
        "model.max_position_embeddings=16 (from the command line): the data's blocks have 32 tokens",
    ),
    ("model.num_attention_heads=5", "hidden_size=32 is not divisible by num_attention_heads=5"),
    ("model.intermediate_size=wide", "model.intermediate_size=wide (from the command line): should be a whole number"),
    ("model.hidden_act=gelo", "did you mean gelu?"),
    ("model.hidden_dropout_prob=1.5", "should be a share between 0 and 1"),
    ("model.vocab_size=329", "the tokenizer"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[override for override, _ in WRONG])
def test_wrong_models(train_config: MakeConfig, override: str, message: str) -> None:
    found = refused(train_config(BERT, override))
    assert message in found
    assert "(from " in found


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_backends_that_it_has(train_config: MakeConfig, backend: str) -> None:
    assert isinstance(built(train_config(BERT, f"model.attention_backend={backend}")).model, PlainBertForMaskedLM)


def test_positions_are_not_mosaicberts(train_config: MakeConfig) -> None:
    message = refused(train_config("model.architecture=mosaicbert", "model.max_position_embeddings=32"))
    assert "unknown field of MosaicBERT" in message


def test_a_checkpoint_says_what_it_is(train_config: MakeConfig) -> None:
    saved = built(train_config(BERT)).get_metadata()
    assert saved["model"]["config"]["content"]["model_type"] == "bert"
    assert saved["bertchen"]["config"]["model"]["architecture"] == "bert"
    assert json.dumps(saved["bertchen"])
