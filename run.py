"""Train, sample and sweep. For help: `python run.py --help`."""

from ddpm.runner.execution.shadowed_modules import check_shadowed_modules

check_shadowed_modules()

from ddpm.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
