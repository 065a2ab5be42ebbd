"""No run goes on with a loss that is no number: it would train nothing any more, for days."""

from __future__ import annotations

import math

from composer.core import Callback, State
from composer.loggers import Logger

from bertchen.errors import EXIT_CODE, Stop


class FiniteLoss(Callback):
    """Stops training after a step whose loss was NaN or infinite, without a checkpoint of the weights that it left.

    Looks at what Composer logs, so that it costs nothing; the step is done by then. `algorithms.loss_guard` comes
    before it.
    """

    def batch_end(self, state: State, logger: Logger) -> None:
        loss = state.total_loss_dict["loss/train/total"]
        if not math.isfinite(loss):
            raise Stop(
                f"the loss of step {state.timestamp.batch.value} is {loss}, and its weights are not saved: "
                "autoresume=true goes on from the checkpoint before, algorithms.loss_guard={on_bad: skip} leaves out "
                "such steps",
                EXIT_CODE,
                saves=False,
            )
