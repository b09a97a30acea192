"""Entry point of the `fedmpq` command."""

from fedmpq.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
