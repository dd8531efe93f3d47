"""Runs the command of resmerge_jax/cli/show.py from a clone."""

from resmerge_jax.cli.show import run

if __name__ == '__main__':
  run()
