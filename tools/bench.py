"""Runs the command of resmerge_jax/cli/bench.py from a clone."""

from resmerge_jax.cli.bench import run

if __name__ == '__main__':
  run()
