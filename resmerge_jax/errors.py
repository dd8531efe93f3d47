"""The errors a user meets, and their form: who, what, why it matters, what to do."""

from collections.abc import Iterable

MAX_LISTED = 20


class InputError(ValueError):
  """Bad input or configuration, found before (or while) reading weights.

  Commands print it without a traceback. `problems` lists every offender of the same
  kind, one line each; the message shows the first MAX_LISTED and counts the rest.
  """

  def __init__(
    self, what: str, problems: Iterable[str] = (), *, why: str = '', fix: str = ''
  ):
    self.what = what
    self.problems = tuple(problems)
    lines = [what]
    lines += [f'  - {problem}' for problem in self.problems[:MAX_LISTED]]
    if len(self.problems) > MAX_LISTED:
      lines.append(f'  - ... and {len(self.problems) - MAX_LISTED} more')
    if why:
      lines.append(f'Why it matters: {why}')
    if fix:
      lines.append(f'What to do: {fix}')
    super().__init__('\n'.join(lines))


class StoppedError(InputError):
  """The disk or the machine ended the run, not what it was given.

  What is written stays on disk, and the same command with --resume continues it.
  """


class EchoError(InputError):
  """What one of several processes sees of another's error; that one tells more."""
