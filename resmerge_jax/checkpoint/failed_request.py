"""What a request to a store raises when it fails."""

import errno


def failed(error: BaseException, file: str, code: int = errno.EIO) -> OSError:
  """The OSError of a request that failed; Python makes `code` its class."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return OSError(code, text if len(text) <= 300 else f'{text[:300]} ...', file)
