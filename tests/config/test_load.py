"""Merging of defaults, YAML files and the command line, and what is said when something in them is wrong."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import MISSING

import main
from bertchen.config import Config, load_config
from bertchen.config.load import nearest, read_choice
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = str(ROOT / "yamls/pretrain.yaml")


@dataclass
class Inner:
    rate: float = 0.5
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    path: str | None = None


@dataclass
class Schema:
    out: str = MISSING
    steps: int = 10
    inner: Inner = field(default_factory=Inner)
    model: dict[str, Any] = field(default_factory=dict)
    algorithms: dict[str, Any] = field(default_factory=lambda: {"clip": {"threshold": 1.0}})


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def load(*argv: str) -> Config[Schema]:
    return load_config(Schema, argv, "command file.yaml key=value")


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_schemas_own() -> None:
    config = load("out=x")
    assert config.value == Schema(out="x")
    assert isinstance(config.value, Schema)
    assert isinstance(config.value.inner, Inner)


def test_later_yaml_wins_and_the_command_line_wins_over_all(write) -> None:
    first = write("first.yaml", "out: first\nsteps: 1\ninner: {rate: 0.1, path: p1}\n")
    second = write("second.yaml", "steps: 2\ninner: {rate: 0.2}\n")
    value = load("steps=3", first, second).value
    assert (value.out, value.steps, value.inner.rate, value.inner.path) == ("first", 3, 0.2, "p1")
    value = load(second, first).value
    assert (value.steps, value.inner.rate) == (1, 0.1)


def test_later_override_wins() -> None:
    assert load("out=x", "steps=3", "steps=4").value.steps == 4


LAYER = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(-5, 5),
        "inner": st.fixed_dictionaries({}, optional={"rate": st.floats(0, 1), "sizes": st.lists(st.integers(0, 9))}),
        "model": st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
    },
)


def overlaid(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = overlaid(base[key], value) if both else value
    return merged


@settings(max_examples=50, deadline=None)
@given(layers=st.lists(LAYER, max_size=3))
def test_merging_is_the_overlaying_of_mappings_in_order(tmp_path_factory, layers: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("layers")
    expected: dict[str, Any] = load("out=x").to_dict()
    for number, layer in enumerate(layers):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(layer))
        expected = overlaid(expected, layer)
    files = [str(folder / f"{number}.yaml") for number in range(len(layers))]
    assert load("out=x", *files).to_dict() == expected


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("inner.rate=1e-5", lambda value: value.inner.rate == 1e-5),
        ("inner.rate=3", lambda value: value.inner.rate == 3.0),
        ("inner.sizes=[5,6]", lambda value: value.inner.sizes == [5, 6]),
        ("inner.sizes=[]", lambda value: value.inner.sizes == []),
        ("inner.path=null", lambda value: value.inner.path is None),
        ("inner.path=2024", lambda value: value.inner.path == "2024"),
        ("inner.path=a=b", lambda value: value.inner.path == "a=b"),
        ("inner.path=", lambda value: value.inner.path is None),
        ("model.hidden_size=64", lambda value: value.model == {"hidden_size": 64}),
        ("model.act={name: gelu}", lambda value: value.model == {"act": {"name": "gelu"}}),
        ("algorithms.clip=null", lambda value: value.algorithms == {"clip": None}),
        ("algorithms.ema.half_life=100ba", lambda value: value.algorithms["ema"] == {"half_life": "100ba"}),
    ],
)
def test_overrides_are_read_as_yaml(override: str, read) -> None:
    assert read(load("out=x", override).value)


def test_free_mappings_take_any_key(write) -> None:
    path = write("free.yaml", "out: x\nmodel: {anything: [1, {deep: true}]}\nalgorithms: {new: {a: 1}}\n")
    value = load(path).value
    assert value.model == {"anything": [1, {"deep": True}]}
    assert value.algorithms == {"clip": {"threshold": 1.0}, "new": {"a": 1}}


def test_an_empty_yaml_and_one_of_comments_change_nothing(write) -> None:
    assert load("out=x", write("empty.yaml", ""), write("comment.yaml", "# nothing\n")).value == Schema(out="x")


def test_interpolation_reads_other_keys(write) -> None:
    path = write("a.yaml", "out: runs/${inner.path}\nsteps: ${model.depth}\nmodel: {depth: 7}\n")
    config = load(path, "inner.path=first")
    assert (config.value.out, config.value.steps) == ("runs/first", 7)
    assert config.to_dict()["out"] == "runs/first"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("out: ${nowhere}", ["out", "nowhere"]),
        ("out: x\nsteps: ${inner.path}\ninner: {path: word}", ["steps"]),
        ("out: x\nsteps: ${gone.key}", ["steps", "gone"]),
        ("out: ${out}", ["out"]),
        ("out: ${unknown_resolver:1}", ["out", "unknown_resolver"]),
        ("out: x\nmodel: {depth: '${nowhere}'}", ["model.depth", "nowhere"]),
    ],
)
def test_interpolation_that_leads_nowhere_is_named(write, text: str, names: list[str]) -> None:
    message = refused(write("a.yaml", text))
    assert "a.yaml" in message
    assert all(name in message for name in names)


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("stesp: 3", "stesp", "did you mean steps?"),
        ("inner: {raet: 3}", "inner.raet", "did you mean inner.rate?"),
        ("inner: {zzzzzz: 3}", "inner.zzzzzz", "known: inner.path, inner.rate, inner.sizes"),
        ("7: 3", "7", "unknown key"),
    ],
)
def test_unknown_key_names_file_and_nearest(write, text: str, key: str, hint: str) -> None:
    path = write("wrong.yaml", text)
    message = refused("out=x", path)
    assert message.startswith(f"{key} (from {path}): unknown key; ")
    assert hint in message


def test_unknown_key_on_the_command_line() -> None:
    assert refused("out=x", "inner.raet=3") == (
        "inner.raet (from the command line): unknown key; did you mean inner.rate?"
    )


def test_a_required_key_without_value_is_known(write) -> None:
    assert load(write("a.yaml", "out: x\n")).value.out == "x"


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("steps=many", "steps", "int"),
        ("steps=1.5", "steps", "int"),
        ("steps=null", "steps", "int"),
        ("steps=[1]", "steps", "int"),
        ("steps.deep=1", "steps", "int"),
        ("inner.rate=fast", "inner.rate", "float"),
        ("inner.sizes=[a]", "inner.sizes", "list[int]"),
        ("inner.sizes=3", "inner.sizes", "list[int]"),
        ("inner=3", "inner", "a mapping"),
        ("inner=null", "inner", "a mapping"),
        ("model=3", "model", "a mapping"),
        ("model=[1]", "model", "a mapping"),
        ("inner.sizes[0]=3", "inner.sizes", "list[int]"),
        ("inner.rate=[1]", "inner.rate", "float"),
        ("algorithms.clip=[1]", "algorithms.clip", "a mapping"),
    ],
)
def test_wrong_type_names_key_source_and_type(override: str, key: str, expected: str) -> None:
    message = refused("out=x", override)
    assert message.startswith(key)
    assert "from the command line" in message
    assert expected in message


def test_wrong_type_in_a_yaml_names_the_file(write) -> None:
    path = write("wrong.yaml", "inner:\n  rate: fast\n")
    assert refused("out=x", path) == f"inner.rate=fast (from {path}): wrong type, should be float"


@pytest.mark.parametrize("text", ["", "out: ???\n"])
def test_missing_value_is_asked_for(write, text: str) -> None:
    message = refused(write("a.yaml", text))
    assert message.startswith("out is not set")
    assert "out=" in message


@pytest.mark.parametrize(
    "text",
    ["a: [1, 2", "a: b: c", "\tout: x", "out: x\nout: y", "out: !!python/object:os.system x", "3", "\x00"],
)
def test_malformed_yaml_names_the_file(write, text: str) -> None:
    path = write("bad.yaml", text)
    assert refused(path).startswith(f"{path}: ")


def test_yaml_that_is_no_mapping(write) -> None:
    path = write("list.yaml", "- out\n- steps\n")
    assert refused(path) == f"{path}: a configuration is a mapping of keys to values, this file holds a list"


def test_yaml_that_is_no_text_or_no_file(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "binary.yaml" in refused(str(tmp_path / "binary.yaml"))
    assert str(tmp_path) in refused(str(tmp_path))
    assert "no such YAML file" in refused(str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize("item", ["=3", " steps=3", "steps =3", "steps=[1", ".steps=3", "steps.=3"])
def test_malformed_override_is_quoted(item: str) -> None:
    assert item.split("=")[0].strip(" .[") in refused("out=x", item)


def test_an_option_is_told_how_it_is_written() -> None:
    assert "batch_size=" in refused("--batch-size", "out=x")


def test_help_prints_usage_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "command file.yaml key=value" in printed
    assert "steps: 10" in printed


def test_sources(write) -> None:
    first = write("first.yaml", "out: x\ninner: {rate: 0.1}\nmodel: {hidden_size: 1, layers: 2}\n")
    second = write("second.yaml", "inner: {rate: 0.2}\nalgorithms: {}\n")
    config = load(first, second, "model.layers=3")
    assert config.source("out") == first
    assert config.source("inner.rate") == second
    assert config.source("model.hidden_size") == first
    assert config.source("model.layers") == "the command line"
    assert config.source("algorithms") == second
    assert config.source("algorithms.clip.threshold") == second, "the nearest key above"
    assert config.source("inner") == second, "a key below"
    assert config.source("steps") == "the defaults"
    assert config.source("inner.path") == "the defaults"


def test_fail_says_key_value_source_and_remedy(write) -> None:
    config = load(write("a.yaml", "out: two words\nmodel: {hidden_size: 7}\n"), "steps=3")
    for key, value, expected in [
        ("steps", ..., "steps=3 (from the command line): should be even"),
        ("inner.rate", ..., "inner.rate=0.5 (from the defaults): should be even"),
        ("steps", "other", "steps=other (from the command line): should be even"),
    ]:
        with pytest.raises(UserError) as caught:
            config.fail(key, "should be even", value)
        assert str(caught.value) == expected
    with pytest.raises(UserError, match=r"^out='two words' \(from .*a\.yaml\): no$"):
        config.fail("out", "no")
    with pytest.raises(UserError, match=r"^model\.hidden_size=7 \(from .*a\.yaml\): no$"):
        config.fail("model.hidden_size", "no")


def test_to_dict_is_plain_and_complete() -> None:
    config = load("out=x", "model.a=[1]")
    plain = config.to_dict()
    assert plain == {
        "out": "x",
        "steps": 10,
        "inner": {"rate": 0.5, "sizes": [1, 2], "path": None},
        "model": {"a": [1]},
        "algorithms": {"clip": {"threshold": 1.0}},
    }
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain, "plain containers only"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adamv", "did you mean adamw?"), ("sgd", "known: adamw, decoupled_adamw, lion")],
)
def test_nearest(name: str, expected: str) -> None:
    assert nearest(name, ["lion", "decoupled_adamw", "adamw"]) == expected


# The paper's baseline, from its table of hyperparameters and its description of model, data and validation.
PAPER = {
    "seed": 42,
    "model.hidden_size": 768,
    "model.num_hidden_layers": 12,
    "model.num_attention_heads": 12,
    "model.intermediate_size": 3072,
    "model.hidden_dropout_prob": 0.1,
    "model.attention_probs_dropout_prob": 0,
    "model.layer_norm_eps": 1e-12,
    "sequence_length": 512,
    "masking.mlm_probability": 0.3,
    "masking.eval_mlm_probability": 0.3,
    "masking.mask_share": 0.8,
    "masking.random_share": 0.1,
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-4,
    "optimizer.betas": [0.9, 0.98],
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 1e-5,
    "scheduler.name": "linear_with_warmup",
    "scheduler.t_warmup": "0.06dur",
    "scheduler.alpha_f": 0,
    "max_duration": "2500ba",
    "stop_after": "4h",
    "eval.interval": "100ba",
    "eval.lengths": [64, 128, 256, 512],
    "algorithms.gradient_clipping.clipping_type": "norm",
    "algorithms.gradient_clipping.clipping_threshold": 1.0,
}
REQUIRED = ("out=x", "save_folder=x", "tokenizer=x", "data.local=x", "input=x", "source.path=x", "models=[x]")


def pretrain(*overrides: str) -> Config[TrainConfig]:
    return load_config(TrainConfig, [PRETRAIN, "save_folder=x", "tokenizer=x", "data.local=x", *overrides], "usage")


def test_pretrain_yaml_is_the_papers_baseline() -> None:
    values = pretrain().to_dict()
    for key, expected in PAPER.items():
        value: Any = values
        for name in key.split("."):
            value = value[name]
        assert value == expected, key
    assert values["global_train_batch_size"] * values["sequence_length"] == 524_288
    assert values["model"]["vocab_size"] is None, "the tokenizer's"


def test_pretrain_yaml_says_what_the_defaults_say() -> None:
    """Who leaves a key out gets the paper's value too; only the time limit is the YAML's own choice."""
    values = pretrain().to_dict()
    defaults = load_config(TrainConfig, ["save_folder=x", "tokenizer=x", "data.local=x"], "usage").to_dict()
    assert values.pop("stop_after") == "4h"
    assert defaults.pop("stop_after") is None
    assert defaults.pop("model") == {}
    values.pop("model")
    assert values == defaults


def schemas() -> dict[str, type]:
    """Every command's schema by name; parts of others are left out."""
    found: dict[str, type] = {}
    for path in sorted((ROOT / "bertchen/config").glob("*.py")):
        module = importlib.import_module(f"bertchen.config.{path.stem}")
        found |= {
            f"{path.stem}.{name}": kind
            for name, kind in inspect.getmembers(module, inspect.isclass)
            if is_dataclass(kind) and kind.__module__ == module.__name__ and kind is not Config
        }
    return found


def schema_of(yaml_path: Path) -> type:
    """The schema of the command in a YAML's head, or of the YAML that it is merged over."""
    head = [line for line in yaml_path.read_text().splitlines() if line.startswith("#")]
    shown = [word.rstrip(".,:;") for line in head for word in line.split()]
    commands = [word for word in shown if word.endswith(".py")]
    if not commands:
        return schema_of(ROOT / next(word for word in shown if word.endswith(".yaml")))
    if commands[0] == "main.py":  # whose schema is that of the YAML's task
        return main.TASKS[yaml.safe_load(yaml_path.read_text())["task"]].schema
    source = (ROOT / commands[0]).read_text()
    named = [kind for name, kind in schemas().items() if f"load_config({name.split('.')[1]}" in source]
    assert len(named) == 1, f"{commands[0]} should load one schema"
    return named[0]


@pytest.mark.parametrize("path", sorted((ROOT / "yamls").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_loads_with_the_schema_of_its_command(path: Path) -> None:
    schema = schema_of(path)
    required = [item for item in REQUIRED if has_key(schema, item.split("=")[0])]
    required += ["model=x"] if schema is FinetuneConfig else []  # in pretraining it is a mapping
    assert isinstance(load_config(schema, [str(path), *required], "usage").value, schema)


def has_key(schema: type, key: str) -> bool:
    name, _, rest = key.partition(".")
    kinds = {field_.name: field_.default_factory for field_ in schema.__dataclass_fields__.values()}
    return name in kinds and (not rest or (is_dataclass(kinds[name]) and has_key(kinds[name], rest)))


@dataclass
class WithShares:
    shares: dict[int, float] = field(default_factory=dict)


def test_names_that_are_numbers() -> None:
    config = load_config(WithShares, ["shares={64: 0.25}", "shares.512=0.75"], "usage")
    assert config.value.shares == {64: 0.25, 512: 0.75}
    assert config.source("shares.512") == "the command line"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shares={a: 1}", "shares.a (from the command line): should be a whole number"),
        ("shares.64=x", "shares.64=x (from the command line): wrong type, should be float"),
    ],
)
def test_names_that_should_be_numbers(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(WithShares, [override], "usage")


def test_a_pattern_of_files_on_the_command_line() -> None:
    assert load_config(Inner, ["path=*.jsonl"], "usage").value.path == "*.jsonl"


class TestReadChoice:
    """The one key that is looked at before the schema is known."""

    @pytest.fixture
    def choose(self, tmp_path: Path) -> Callable[..., str]:
        for name, content in (("a", "task: one"), ("b", "task: two\nother: 1"), ("c", "other: 1"), ("d", "task: ???")):
            (tmp_path / f"{name}.yaml").write_text(content)

        def call(*argv: str) -> str:
            items = [str(tmp_path / item) if item.endswith(".yaml") else item for item in argv]
            return read_choice(items, "task", ["one", "two", "three"], "three", "usage")

        return call

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            ((), "three"),
            (("c.yaml",), "three"),
            (("d.yaml",), "three"),
            (("a.yaml",), "one"),
            (("a.yaml", "b.yaml"), "two"),
            (("b.yaml", "a.yaml"), "one"),
            (("task=two", "a.yaml"), "two"),
            (("task=two", "task=three", "a.yaml"), "three"),
            (("tasks=two", "a.task=two", "--task", "-h", "a.yaml"), "one"),
        ],
    )
    def test_the_last_counts_and_the_command_line_before_files(
        self, choose: Callable[..., str], argv: tuple[str, ...], expected: str
    ) -> None:
        assert choose(*argv) == expected

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (("task=thre",), "task=thre (from the command line): unknown; did you mean three?"),
            (("task=[one]",), "task=['one'] (from the command line): unknown"),
            (("task=null",), "task=None (from the command line): unknown"),
            (("no.yaml",), "no.yaml: no such YAML file; usage: usage"),
        ],
    )
    def test_what_is_wrong(self, choose: Callable[..., str], argv: tuple[str, ...], message: str) -> None:
        with pytest.raises(UserError, match=re.escape(message)):
            choose(*argv)

    def test_a_file_that_names_an_unknown_task_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text("task: ones")
        with pytest.raises(UserError, match=re.escape(f"task=ones (from {path}): unknown; did you mean one?")):
            read_choice([str(path)], "task", ["one"], "one", "usage")
