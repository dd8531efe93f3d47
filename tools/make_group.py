"""Runs the command of resmerge_jax/cli/make_group.py from a clone."""

from resmerge_jax.cli.make_group import run

if __name__ == '__main__':
  run()
