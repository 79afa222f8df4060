"""A worker freezes: a paused virtual machine, a machine that swaps, SIGSTOP."""

from contextlib import suppress
from signal import SIGCONT, SIGSTOP

from proj.processes import Worker
from proj.prove.fault import DidNotLand, Fault, Stand

HEARTBEATS = 4.5  # after two missed ones RabbitMQ gives up; it looks at them in its own rhythm


class PauseWorker(Fault):
    """SIGSTOP a worker for longer than its heartbeat, in the midst of a message: another one takes that over."""

    patience = 45
    paused: Worker | None = None

    def inject(self, stand: Stand) -> str:
        run = stand.busy()
        self.paused = stand.workers[run.worker]
        self.paused.signal_all(SIGSTOP)
        seconds = HEARTBEATS * stand.app.conf.broker_heartbeat
        taken_over = "its message stayed with it"
        with suppress(DidNotLand):
            other = stand.expect(lambda: stand.elsewhere(run), "another worker to take its message over", seconds)
            taken_over = f"{other.worker} took {run.message!r} over after {other.started - run.started:.0f} s"
        state = stand.state(self.paused.pid)
        if state != "T":
            raise DidNotLand(f"expected {run.worker} to be stopped (T), got {state}")
        return f"{run.worker} (pid {self.paused.pid}) was stopped; {taken_over}"

    def heal(self, stand: Stand) -> None:
        if self.paused:
            self.paused.signal_all(SIGCONT)
