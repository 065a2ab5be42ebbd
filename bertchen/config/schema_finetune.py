"""What a fine-tuning YAML can say: every key of `main.py` where `task` is not `pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from bertchen.config.schema_train import OptimizerConfig, SchedulerConfig


@dataclass
class TaskDataConfig:
    """The labelled examples; docs/finetuning.md lists the readers and their options.

    Attributes:
        reader: format of the files, by its name in `bertchen.tasks.readers.READERS`.
        folder: where the files lie.
        hub: a data set of the Hugging Face Hub, in the place of `folder`; `config` and `revision` are its own.
        splits: `train`, `dev`, `test` and further names that begin with `test` (test_synchronic, …) to a file in
            `folder`, or to the name of the hub's split; null leaves a split out.
        dev_size, test_size: so many examples of `train` become `dev` and `test`, where these aren't given.
        split_seed: which ones; never the run's `seed`, so that all runs have the same splits.
        options: of the reader.
    """

    reader: str = MISSING
    folder: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    splits: dict[str, Any] = field(default_factory=dict)
    dev_size: int | None = None
    test_size: int | None = None
    split_seed: int = 42
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class EncodingConfig:
    """From text to the model's inputs.

    Attributes:
        max_length: tokens of an input with its special ones; null takes the model's limit.
        long_inputs: what becomes of longer ones: `truncate`, `windows` that overlap by `stride` tokens, or `whole`,
            which a model without a limit can read. `auto`: whole without a limit, else windows for questions and
            truncate for the others.
        stride: tokens that a window shares with the one before it.
    """

    max_length: int | None = None
    long_inputs: str = "auto"
    stride: int = 128


@dataclass
class AnswersConfig:
    """Choosing an answer: among the `n_best` starts and ends, of at most `max_answer_tokens`."""

    n_best: int = 20
    max_answer_tokens: int = 100


@dataclass
class EarlyStoppingConfig:
    """Training ends after `patience` evaluations of dev without a better `metric`; the best weights count.

    `metric`: a name that eval/dev/… has in metrics.jsonl, higher being better; null takes the task's first.
    """

    metric: str | None = None
    patience: int = 3


@dataclass
class FinetuneConfig:
    """A fine-tuning run.

    Attributes:
        task: classification, tagging or question_answering.
        name: of the task in results, predictions and tables.
        model: a checkpoint (`*.pt`), a run folder, an exported folder or a hub name of any encoder.
        tokenizer: folder or hub name of the tokenizer of a model that lies without one; null takes the model's own.
        trust_remote_code: run the code that a model brings along.
        random_weights: the model's architecture and tokenizer, with fresh weights by `seed`, to compare with.
        seed: of the head, the order of the examples and dropout.
        save_folder: of the run; null takes runs/<name>/<model>-<seed>.
        results: the file that gets a line for each split; predictions/ lies beside it.
        data: see `TaskDataConfig`.
        labels: of a classification in order, or the entity types of a tagging; none for question answering.
        encoding, answers: see `EncodingConfig`, `AnswersConfig`.
        dropout: before the head.
        pooling: of hidden states to one vector for classification: mean.
        optimizer, scheduler: as in pretraining.
        max_duration: goal of the run and of the schedule: epochs (3ep) or steps (500ba).
        global_train_batch_size: inputs a step over all devices.
        microbatch_size: inputs that pass the model at once on a device; null takes all of a step.
        eval_batch_tokens: tokens with padding that pass the model at once in evaluation.
        eval_interval: dev is evaluated, and a checkpoint saved, this often: epochs (1ep) or steps (100ba).
        early_stopping: see `EarlyStoppingConfig`; null trains to max_duration and takes the last weights.
        protocol: held_out, or paper: evaluation on the training set, metrics as means over batches, as in the paper.
        precision: auto (bf16 on a GPU, float32 on a CPU), fp32 or amp_bf16.
        compile: torch.compile: null on no device, since every batch has a length of its own.
        dist_timeout: seconds that processes wait for one another before they give up.
        algorithms, callbacks, loggers: name to arguments, as in pretraining.
        autoresume: go on from the last checkpoint of `save_folder` if there is one.
        overwrite: remove an earlier run in `save_folder`.
        export: write a Hugging Face folder to `save_folder`/hf at the end, if the model is of our architecture.
        dry_run: check everything, run one step, print what would be trained, leave nothing.
        progress_bar: show one; else log to the console every `console_log_interval`.
    """

    task: str = MISSING
    name: str = MISSING
    model: str = MISSING
    tokenizer: str | None = None
    trust_remote_code: bool = False
    random_weights: bool = False
    seed: int = 42
    save_folder: str | None = None
    results: str = "results.jsonl"
    data: TaskDataConfig = field(default_factory=TaskDataConfig)
    labels: list[str] = field(default_factory=list)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    dropout: float = 0.1
    pooling: str = "mean"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    max_duration: str = "3ep"
    global_train_batch_size: int = 16
    microbatch_size: int | None = None
    eval_batch_tokens: int = 16384
    eval_interval: str = "1ep"
    early_stopping: EarlyStoppingConfig | None = None
    protocol: str = "held_out"
    precision: str = "auto"
    compile: bool | None = None
    dist_timeout: float = 1800.0
    algorithms: dict[str, Any] = field(
        default_factory=lambda: {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}}
    )
    callbacks: dict[str, Any] = field(default_factory=lambda: {"lr_monitor": {}, "peak_memory": {}})
    loggers: dict[str, Any] = field(default_factory=dict)
    autoresume: bool = False
    overwrite: bool = False
    export: bool = True
    dry_run: bool = False
    progress_bar: bool = True
    console_log_interval: str = "10ba"
