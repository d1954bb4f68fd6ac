"""What the process that readers are forked from imports: torch, once for all of them, and how to take signals.

Ctrl-C, and SIGTERM of a launcher, reach the whole process group. The main process decides what they mean, and needs its
readers until it has saved.
"""

import signal

import vitreous.data.loader  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)
