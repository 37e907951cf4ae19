"""What the process that workers are forked from does: it imports this module, once. See `simulation.workers`."""

from __future__ import annotations

from simulation.quiet import quiet_libraries
from simulation.workers import import_needed

quiet_libraries()
import_needed()
