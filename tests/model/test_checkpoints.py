"""Public MosaicBERT checkpoints: loading, the reference's outputs, saving, and another vocabulary."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from alibi_reference import tiny_config
from safetensors.torch import load_file
from torch import Tensor

import bertchen.model
from bertchen.model import (
    MosaicBertForMaskedLM,
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
    MosaicBertModel,
)

FIXTURE = Path(__file__).resolve().parents[2] / ".." / "shared" / "fixtures" / "mosaicbert_tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason="../shared/fixtures/mosaicbert_tiny is missing")
HEADS = [
    MosaicBertForSequenceClassification,
    MosaicBertForQuestionAnswering,
    MosaicBertForTokenClassification,
]
WORDS = "bert.embeddings.word_embeddings.weight"
BIAS = "cls.predictions.decoder.bias"


@pytest.fixture
def reference() -> dict[str, Tensor]:
    arrays = np.load(FIXTURE / "io.npz")
    return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return load_file(str(FIXTURE / "model.safetensors"))


def assert_tied(model: MosaicBertForMaskedLM) -> None:
    words = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is words
    before = model(torch.tensor([[5, 6]])).logits
    with torch.no_grad():
        words[7] += 1.0
    after = model(torch.tensor([[5, 6]])).logits
    assert (after - before)[..., 7].abs().min() > 0
    torch.testing.assert_close(after[..., :7], before[..., :7])


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


# -- the reference -------------------------------------------------------------------------------------------


@needs_fixture
def test_reference_hidden_states_and_logits(reference: dict[str, Tensor]) -> None:
    """Within 1e-4 at attended positions.

    `last_hidden_state` and `logits` of the fixture were recorded with the attention mask passed as the second
    positional argument, which in MosaicBERT's own `BertModel.forward` is `token_type_ids`: every position is
    attended, and the types are the mask. Our argument order is Hugging Face's, so the equal call names both.
    """
    model = MosaicBertForMaskedLM.from_pretrained(FIXTURE).eval()
    attended = reference["attention_mask"].bool()
    with torch.no_grad():
        output = model(
            reference["input_ids"].long(),
            token_type_ids=reference["attention_mask"].long(),
            attention_mask=None,
            output_hidden_states=True,
        )
    for got, name in ((output.hidden_states[-1], "last_hidden_state"), (output.logits, "logits")):
        assert (got - reference[name])[attended].abs().max() < 1e-4, name


@needs_fixture
def test_reference_loss(reference: dict[str, Tensor]) -> None:
    """The fixture's `loss`, unlike its hidden states, was recorded with the attention mask as a mask."""
    model = MosaicBertForMaskedLM.from_pretrained(FIXTURE).eval()
    with torch.no_grad():
        loss = model(
            reference["input_ids"].long(),
            attention_mask=reference["attention_mask"].long(),
            labels=reference["labels"].long(),
        ).loss
    assert abs(loss.item() - reference["loss"].item()) < 1e-5


@needs_fixture
def test_reference_mask_of_ints_bools_or_floats(reference: dict[str, Tensor]) -> None:
    model = MosaicBertModel.from_pretrained(FIXTURE).eval()
    ids, mask = reference["input_ids"].long(), reference["attention_mask"]
    outputs = [model(ids, mask.to(dtype)).last_hidden_state for dtype in (torch.int64, torch.bool, torch.float32)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


# -- loading -------------------------------------------------------------------------------------------------


@needs_fixture
def test_every_weight_is_loaded_as_it_is(weights: dict[str, Tensor]) -> None:
    """The row of the padding too, which is zero only in a new model."""
    model, report = MosaicBertForMaskedLM.from_pretrained(FIXTURE, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert weights[WORDS][0].abs().max() > 0
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(state[name], tensor), name
    assert_tied(model)


@needs_fixture
@pytest.mark.parametrize("extra", ["pooler", "position ids"])
def test_public_checkpoint_with_extra_keys(tmp_path: Path, weights: dict[str, Tensor], extra: str) -> None:
    """As public ones are: `pytorch_model.bin`, a pooler, model_type "bert", MosaicBERT's own config keys."""
    config = json.loads((FIXTURE / "config.json").read_text())
    config |= {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "alibi_starting_size": 512,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 512,
        "position_embedding_type": "absolute",
        "auto_map": {"AutoConfig": "mosaicml/some-bert--configuration_bert.BertConfig"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = {
        "pooler": {
            "bert.pooler.dense.weight": torch.zeros(96, 96),
            "bert.pooler.dense.bias": torch.zeros(96),
            "cls.seq_relationship.weight": torch.zeros(2, 96),
        },
        "position ids": {"bert.embeddings.position_ids": torch.arange(512)[None]},
    }[extra]
    torch.save(weights | more, tmp_path / "pytorch_model.bin")
    model, report = MosaicBertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_weights(model, MosaicBertForMaskedLM.from_pretrained(FIXTURE))
    assert model.config.alibi_starting_size == 512

    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["model_type"] == "mosaicbert"
    assert "auto_map" not in saved


@needs_fixture
def test_trained_length_is_no_limit() -> None:
    """The fixture's `alibi_starting_size` is 64; 300 tokens are neither cut off nor refused.

    What the last 10 tokens change fades with the distance to them, as ALiBi wants it.
    """
    model = MosaicBertModel.from_pretrained(FIXTURE).eval()
    ids = torch.randint(1, 512, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        long, shorter = model(ids).last_hidden_state, model(ids[:, :290]).last_hidden_state
    assert long.shape == (1, 300, 96)
    assert long.isfinite().all()
    change = (long[:, :290] - shorter).abs().amax(dim=-1)[0]
    assert change[:100].max() < 0.2 * change[-10:].max()


@needs_fixture
@pytest.mark.parametrize("head", HEADS)
def test_heads_take_the_encoder_of_an_mlm_checkpoint(head: type, weights: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = head.from_pretrained(FIXTURE, num_labels=3)
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(tensor, weights[f"bert.{name}"]), name
    new = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("bert.")}
    assert len(new) == 2
    for name, tensor in new.items():
        if name.endswith("bias"):
            assert not tensor.any()
        else:
            assert tensor.std().item() == pytest.approx(model.config.initializer_range, rel=0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_another_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    MosaicBertForMaskedLM(tiny_config()).save_pretrained(tmp_path)
    model = MosaicBertForMaskedLM.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(torch.tensor([[5, 6, 7]])).logits.dtype == dtype


# -- new models ----------------------------------------------------------------------------------------------


def test_initial_weights() -> None:
    torch.manual_seed(0)
    config = tiny_config(vocab_size=512, initializer_range=0.05)
    model = MosaicBertForMaskedLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layernorm" in name.lower():
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
    words = model.get_input_embeddings().weight
    assert not words[config.pad_token_id].any()
    assert words[config.pad_token_id + 1].any()
    assert_tied(model)


# -- saving --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_save_and_load(tmp_path: Path, shard: str) -> None:
    torch.manual_seed(0)
    changes = {"classifier_pooling": "first", "attention_backend": "sdpa", "hidden_dropout_prob": 0.25}
    model = MosaicBertForMaskedLM(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms too, which start out alike
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded, report = MosaicBertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_weights(model, loaded)
    assert {name: getattr(loaded.config, name) for name in changes} == changes
    assert loaded.config.model_type == "mosaicbert"
    assert not loaded.training
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert_tied(loaded)


@pytest.mark.parametrize("head", [MosaicBertModel, *HEADS])
def test_save_and_load_other_models(tmp_path: Path, head: type) -> None:
    model = head(tiny_config(num_labels=4))
    model.save_pretrained(tmp_path)
    loaded, report = head.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_weights(model, loaded)
    assert loaded.config.num_labels == 4


# -- another tokenizer ---------------------------------------------------------------------------------------


@needs_fixture
@pytest.mark.parametrize(("vocab_size", "rows"), [(1000, 1024), (513, 576), (512, 512), (500, 512), (100, 128)])
def test_another_vocabulary(tmp_path: Path, weights: dict[str, Tensor], vocab_size: int, rows: int) -> None:
    torch.manual_seed(0)
    model = MosaicBertForMaskedLM.from_pretrained(FIXTURE, vocab_size=vocab_size)
    words, bias = model.get_input_embeddings().weight, model.get_output_embeddings().bias
    assert model.config.vocab_size == rows
    assert words.shape == (rows, 96)
    assert bias.shape == (rows,)
    kept = min(rows, 512)
    assert torch.equal(words[:kept], weights[WORDS][:kept])
    assert torch.equal(bias[:kept], weights[BIAS][:kept])
    if rows > 512:
        assert words[512:].std().item() == pytest.approx(model.config.initializer_range, rel=0.1)
        assert not bias[512:].any()
    for name, tensor in model.state_dict().items():
        if "word_embeddings" not in name and "decoder" not in name:
            assert torch.equal(tensor, weights[name]), name
    ids = torch.tensor([[1, rows - 1]])
    assert model(ids, labels=ids).logits.shape == (1, 2, rows)

    model.save_pretrained(tmp_path, max_shard_size="50KB")
    loaded = MosaicBertForMaskedLM.from_pretrained(tmp_path)
    assert_same_weights(model, loaded)
    assert_tied(model)
    assert_tied(loaded)


@needs_fixture
def test_another_vocabulary_for_a_model_without_decoder(weights: dict[str, Tensor]) -> None:
    model, _ = MosaicBertForSequenceClassification.from_pretrained(FIXTURE, vocab_size=130, output_loading_info=True)
    assert model.get_input_embeddings().weight.shape == (192, 96)
    assert torch.equal(model.get_input_embeddings().weight, weights[WORDS][:192])


@needs_fixture
def test_new_rows_are_trained_through_both_ends(weights: dict[str, Tensor]) -> None:
    """A resized model learns: the new token's row gets gradient as input and as output."""
    model = MosaicBertForMaskedLM.from_pretrained(FIXTURE, vocab_size=600)
    ids = torch.tensor([[599, 5, 6]])
    model(ids, labels=torch.tensor([[-100, 598, -100]])).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[599].any()
    assert gradient[598].any()
    assert model.get_output_embeddings().bias.grad[598] != 0


# -- the folder as remote code -------------------------------------------------------------------------------


def test_every_file_is_imported_where_transformers_looks() -> None:
    """transformers 4 copies a model file's own relative imports, not those of the files that it imports."""
    folder = Path(bertchen.model.__file__).parent
    tree = ast.parse((folder / "modeling_mosaicbert.py").read_text())
    named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "modeling_mosaicbert"}
    assert named == files
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("file", sorted(path.name for path in Path(bertchen.model.__file__).parent.glob("*.py")))
def test_folder_imports_nothing_else_of_the_project(file: str) -> None:
    tree = ast.parse((Path(bertchen.model.__file__).parent / file).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            assert not (node.module or "").startswith("bertchen")
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("bertchen") for alias in node.names)


@pytest.mark.usefixtures("remote_code")
def test_an_exported_folder_runs_alone(tmp_path: Path) -> None:
    """AutoModel from the saved weights and the folder's files, none of it from this package."""
    from transformers import AutoModelForMaskedLM

    model = MosaicBertForMaskedLM(tiny_config()).eval()
    folder = tmp_path / "exported"
    model.save_pretrained(folder)
    for path in Path(bertchen.model.__file__).parent.glob("*.py"):
        if path.name != "__init__.py":
            shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_mosaicbert.MosaicBertConfig",
        "AutoModelForMaskedLM": "modeling_mosaicbert.MosaicBertForMaskedLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    remote = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert not type(remote).__module__.startswith("bertchen")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(remote(ids).logits, model(ids).logits)
    remote.save_pretrained(tmp_path / "again")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
