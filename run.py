"""Train, sample, sweep: `python run.py --help` says how."""

from ddpm.cli import main

if __name__ == "__main__":
    main()
