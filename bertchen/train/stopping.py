"""What happens when all processes stop between two steps: the finished steps are saved, and the loggers are closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from composer import Trainer
from composer.core import Event

from bertchen.callbacks import Checkpoints, MetricsFile, OwedEvaluation
from bertchen.data.together import Preempted, gathered
from bertchen.errors import Stop
from bertchen.signals import stop_signals
from bertchen.train.resume import by_first


@contextmanager
def saved_when_stopped(trainer: Trainer) -> Iterator[None]:
    """For training: signals wait for the end of a step, and a `Stop` leaves a checkpoint of all finished steps.

    Raises:
        Stop: the same, when all processes have come so far.
    """
    for callback in trainer.state.callbacks:
        if isinstance(callback, OwedEvaluation):
            callback.evaluate = trainer._run_evaluators
    begun = trainer.state.timestamp.batch.value
    stop_signals.in_training = True
    try:
        yield
        _stop_if_asked()  # in the last step, after which no batch is asked for
    except Stop as stop:
        step = trainer.state.timestamp.batch.value
        if stop.saves and step != begun:
            _save(trainer)
            stop.args = (f"{stop}; {step} steps are saved, and autoresume=true goes on from there",)
        for logger in trainer.logger.destinations:
            if isinstance(logger, MetricsFile):
                logger.log_event(step, event="stop", reason=str(stop))
        trainer.close()
        gathered(None)  # the launcher would end all when the first one has ended
        raise
    stop_signals.in_training = False


def _stop_if_asked() -> None:
    if names := [name for name in gathered(stop_signals.received) if name]:
        raise Preempted(names[0])


def _save(trainer: Trainer) -> None:
    """Saves as Composer would in this step, so that retention, the link and what follows a checkpoint are the same."""
    saver = trainer._checkpoint_saver
    if saver is None:
        return
    saver.save_interval = lambda state, event: True  # which leaves out a step that is saved already
    trainer.engine.run_event(Event.BATCH_CHECKPOINT)
    if isinstance(saver, Checkpoints):
        by_first(saver.wait)  # closing it would only log that it can't be written
