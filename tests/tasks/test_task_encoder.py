"""Loading encoders: every family against Transformers' own loading, our checkpoints, and everything that is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import torch
from composer.models import HuggingFaceModel
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_encoders import FAMILIES, POSITIONS, SIZES, config_of, folder_of, load, shared
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, T5Config, T5Model

from bertchen.errors import UserError
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM, MosaicBertModel
from bertchen.tasks import encoder as encoder_module
from bertchen.tasks.encoder import Encoder, load_encoder

FIXTURE = Path(__file__).resolve().parents[2] / ".." / "shared" / "fixtures" / "mosaicbert_tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason="../shared/fixtures/mosaicbert_tiny is missing")
OURS = ("mosaicbert", "public_mosaicbert")
LEARNED = ("bert", "roberta", "electra")


def inputs(encoder: Encoder, length: int = 12) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, len(encoder.tokenizer), (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, encoder.pad_id), "attention_mask": mask}


def outputs(encoder: Encoder, length: int = 12) -> torch.Tensor:
    with torch.no_grad():
        batch = inputs(encoder, length)
        return encoder.model(**batch).last_hidden_state[batch["attention_mask"] == 1]


def weights_differ(one: Encoder, other: Encoder) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: Path(shutil.copytree(folder_of(family), tmp_path / family))


# -- families ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_same_hidden_states_as_transformers_loads(family: str) -> None:
    encoder = shared(family)
    reference = MosaicBertModel if family in OURS else AutoModel
    model = reference.from_pretrained(folder_of(family)).eval()
    batch = inputs(encoder)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state[batch["attention_mask"] == 1]
    torch.testing.assert_close(outputs(encoder), expected, rtol=0, atol=1e-6)
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    assert not encoder.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_facts(family: str) -> None:
    encoder = shared(family)
    assert encoder.name == str(folder_of(family))
    assert encoder.max_length == (None if family in OURS else POSITIONS)
    assert encoder.token_types == (family in ("bert", "electra"))
    assert encoder.parameters == sum(parameter.numel() for parameter in encoder.model.parameters())
    assert encoder.pad_id == (1 if family in ("roberta", "modernbert") else 0)
    ours = AutoTokenizer.from_pretrained(folder_of(family))("Der Hund von Köln.")["input_ids"]
    assert encoder.tokenizer("Der Hund von Köln.")["input_ids"] == ours


@pytest.mark.parametrize("family", LEARNED)
def test_the_limit_is_where_positions_end(family: str) -> None:
    encoder = shared(family)
    assert outputs(encoder, POSITIONS).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        outputs(encoder, POSITIONS + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_used(family: str) -> None:
    """Distributed training refuses weights without gradients, such as a pooler's."""
    encoder = load(family)
    encoder.model(**inputs(encoder)).last_hidden_state.square().sum().backward()
    assert [
        name for name, weight in encoder.model.named_parameters() if weight.requires_grad and weight.grad is None
    ] == []


@needs_fixture
def test_the_public_family_s_fixture(tmp_path: Path) -> None:
    """Loaded without any code of its own; only the tokenizer is another."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURE / file, tmp_path)
    shared("mosaicbert").tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(config_of(tmp_path))
    assert isinstance(encoder.model, MosaicBertModel)
    weights = load_file(str(FIXTURE / "model.safetensors"))
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, weights[f"bert.{name}"]), name


def test_remote_code_stays_unused_for_our_class(copy: Callable[[str], Path]) -> None:
    """The public family names code of its own; it isn't run even where that is allowed."""
    folder = copy("public_mosaicbert")
    (folder / "configuration_bert.py").write_text("raise SystemExit('was run')")
    assert isinstance(load_encoder(config_of(folder, "trust_remote_code=true")).model, MosaicBertModel)


# -- fresh weights and fingerprints --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights(family: str) -> None:
    before = torch.random.get_rng_state()
    one, again, other = (load(family, "random_weights=true", f"seed={seed}") for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not weights_differ(one, again)
    assert weights_differ(one, other)
    assert weights_differ(one, shared(family))
    assert type(one.model) is type(shared(family).model)
    assert (one.parameters, one.max_length) == (shared(family).parameters, shared(family).max_length)
    assert len({one.fingerprint, other.fingerprint, shared(family).fingerprint}) == 3
    assert one.fingerprint == again.fingerprint


def test_random_weights_need_no_weights(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    (folder / "model.safetensors").unlink()
    assert load_encoder(config_of(folder, "random_weights=true")).parameters == shared("bert").parameters


def test_fingerprint_tells_files_and_configurations_apart(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    seen = [load_encoder(config_of(folder)).fingerprint]
    assert load_encoder(config_of(folder)).fingerprint == seen[0]
    os.utime(folder / "model.safetensors", ns=(1, 1))
    seen.append(load_encoder(config_of(folder)).fingerprint)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    seen.append(load_encoder(config_of(folder)).fingerprint)
    assert len(set(seen)) == 3


# -- our checkpoints -----------------------------------------------------------------------------------------


def save_checkpoint(path: Path, model: MosaicBertForMaskedLM | BertForMaskedLM) -> None:
    """With what of a Composer checkpoint says which model it is."""
    metadata = HuggingFaceModel(model, tokenizer=shared("mosaicbert").tokenizer).get_metadata()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state": {"model": weights, "integrations": {"huggingface": metadata}}}, path)


MASKED_LM = {
    "mosaicbert": lambda: MosaicBertForMaskedLM(MosaicBertConfig(448, **SIZES, attention_backend="flex")),
    "bert": lambda: BertForMaskedLM(BertConfig(448, **SIZES, max_position_embeddings=40)),
}


@pytest.mark.parametrize("architecture", MASKED_LM)
@pytest.mark.parametrize("how", ["file", "run folder"])
def test_checkpoints(tmp_path: Path, architecture: str, how: str) -> None:
    model = MASKED_LM[architecture]().eval()
    save_checkpoint(tmp_path / "run" / "latest-rank0.pt", model)
    encoder = load_encoder(config_of(tmp_path / "run" / ("latest-rank0.pt" if how == "file" else "")))
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, model.bert.state_dict()[name]), name
    assert encoder.max_length == (40 if architecture == "bert" else None)
    assert not encoder.token_types
    assert getattr(encoder.model.config, "attention_backend", "auto") == "auto"
    assert outputs(encoder).isfinite().all()
    fresh = load_encoder(config_of(tmp_path / "run", "random_weights=true"))
    assert weights_differ(fresh, encoder)
    assert fresh.parameters == encoder.parameters


def test_a_checkpoint_holds_its_tokenizer(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run" / "latest-rank0.pt", MosaicBertForMaskedLM(MosaicBertConfig(448, **SIZES)))
    with pytest.raises(UserError, match=r"tokenizer=elsewhere \(from the command line\): the checkpoint .* leave this"):
        load_encoder(config_of(tmp_path / "run", "tokenizer=elsewhere"))


def test_a_run_folder_without_checkpoints_has_its_export(tmp_path: Path) -> None:
    shutil.copytree(folder_of("mosaicbert"), tmp_path / "run" / "hf")
    assert load_encoder(config_of(tmp_path / "run")).parameters == shared("mosaicbert").parameters


# -- what is refused -----------------------------------------------------------------------------------------


def refused(model: str | Path, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        load_encoder(config_of(model, *overrides))
    message = str(raised.value)
    assert f"model={model} (from the command line)" in message
    return message


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").write_bytes(b"")
    assert "no such file or folder" in refused(tmp_path / "missing")
    assert "no such file or folder" in refused("runs/first/latest-rank0.pt")
    assert "holds no model" in refused(tmp_path / "empty")
    assert "no checkpoint" in refused(tmp_path / "model.bin")


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def model_info(self, *_: object, **__: object) -> None:
            raise RepositoryNotFoundError("404", response=requests.Response())

    monkeypatch.setattr(encoder_module, "HfApi", Hub)
    assert "no such name on the Hugging Face Hub" in refused("nobody/nothing")


def test_a_model_without_a_tokenizer(copy: Callable[[str], Path]) -> None:
    for family in ("bert", "mosaicbert"):
        folder = copy(family)
        for file in (*folder.glob("*token*"), *folder.glob("vocab*")):
            file.unlink()
        assert "it has no tokenizer" in refused(folder)


def test_a_tokenizer_from_elsewhere(copy: Callable[[str], Path], tmp_path: Path) -> None:
    """As for MosaicBERT's own release, which lies without one."""
    folder = copy("public_mosaicbert")
    for file in (*folder.glob("*token*"), *folder.glob("vocab*")):
        file.rename(tmp_path / file.name)
    shutil.copy(folder / "config.json", tmp_path)
    assert "tokenizer=…" in refused(folder)
    encoder = load_encoder(config_of(folder, f"tokenizer={tmp_path}"))
    assert encoder.tokenizer.get_vocab() == shared("public_mosaicbert").tokenizer.get_vocab()
    assert torch.equal(outputs(encoder), outputs(shared("public_mosaicbert")))


def test_a_model_that_needs_code(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "new_bert", "auto_map": {"AutoConfig": "code.NewConfig", "AutoModel": "code.NewModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()")
    assert "trust_remote_code=true runs it" in refused(folder)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.usefixtures("remote_code")
def test_code_that_is_allowed(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "tiny_new_bert",
        "auto_map": {"AutoConfig": "code.NewConfig", "AutoModel": "code.NewModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(
        "from transformers import BertConfig, BertModel\n"
        "class NewConfig(BertConfig):\n    model_type = 'tiny_new_bert'\n"
        "class NewModel(BertModel):\n    config_class = NewConfig\n"
    )
    encoder = load_encoder(config_of(folder, "trust_remote_code=true"))
    assert type(encoder.model).__name__ == "NewModel"
    torch.testing.assert_close(outputs(encoder), outputs(shared("bert")))
    assert not any(weight.requires_grad for weight in encoder.model.pooler.parameters())


def test_a_hub_that_can_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def model_info(self, *_: object, **__: object) -> None:
            raise requests.ConnectionError("no route")

    monkeypatch.setattr(encoder_module, "HfApi", Hub)
    assert "its configuration can't be read" in refused("nobody/nothing-at-all")


def test_a_model_of_an_unknown_kind(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "new_bert"}))
    assert "can't be loaded" in refused(folder)


@pytest.mark.parametrize("family", ["bert", "mosaicbert"])
def test_incomplete_weights(copy: Callable[[str], Path], family: str) -> None:
    folder = copy(family)
    file = str(folder / "model.safetensors")
    weights = load_file(file)
    gone = next(name for name in weights if ".layer.1." in name)
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    assert f"{gone.removeprefix('bert.')} and 0 more are missing" in refused(folder)


def test_an_encoder_with_a_decoder(tmp_path: Path) -> None:
    T5Model(
        T5Config(len(shared("roberta").tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    shared("roberta").tokenizer.save_pretrained(tmp_path)
    assert "an encoder alone is wanted" in refused(tmp_path)


def test_a_tokenizer_that_is_too_large(copy: Callable[[str], Path]) -> None:
    folder = copy("mosaicbert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"neu{number}" for number in range(100)])
    tokenizer.save_pretrained(folder)
    assert "the model only 448" in refused(folder)
