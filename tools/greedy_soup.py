"""Runs the command of resmerge_jax/cli/greedy_soup.py from a clone."""

from resmerge_jax.cli.greedy_soup import run

if __name__ == '__main__':
  run()
