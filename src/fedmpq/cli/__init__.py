"""The command line: the root group, lazy loading of commands and the one place where errors become exit codes.

Results go to standard output, commentary to standard error. Commands are imported only when they are called, so that
`fedmpq device` starts without torch, numpy or rich.
"""

from fedmpq.cli._main import main

__all__ = ["main"]
