"""Tasks that no application wants, and some have: the workers of the proofs know them, too."""

import os
from signal import SIGKILL

from celery import shared_task


@shared_task
def kill_own_process() -> None:
    """End the pool process in the midst of its work, as the kernel's out-of-memory killer does."""
    os.kill(os.getpid(), SIGKILL)


@shared_task
def use_all_memory() -> None:
    """Ask for more memory than there is."""
    raise MemoryError("asked for more memory than there is")
