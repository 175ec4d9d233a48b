"""How anything runs: kernels, the driver, progress."""

from mcx.run.driver import Run, run
from mcx.run.kernel import Kernel

__all__ = ["Kernel", "Run", "run"]
