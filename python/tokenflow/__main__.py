"""`python -m tokenflow`: the command line, as `torchrun -m tokenflow` starts it."""

from tokenflow.cli import main

if __name__ == "__main__":
    main()
