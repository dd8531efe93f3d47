"""Folders of a test as Google Cloud Storage, S3 and the Hugging Face Hub, on loopback.

Each server speaks as much of its store's protocol as the client libraries need to list
a folder and to read byte ranges, and notes what it was asked.
"""

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from xml.sax.saxutils import escape


class Request(NamedTuple):
  """`file` is '' for a listing; `n_bytes` are those of the answer's body."""

  file: str
  range: str | None
  status: int
  n_bytes: int
  token: str | None


class Server:
  """`url` answers for `root`: BUCKET/FOLDER/FILE, or of a hub OWNER/NAME/COMMIT/FILE.

  `at_once`: most ranges that were being sent at a time, each for `delay_s` at least.
  `faults`: statuses of the next answers about files whose name matches, in turn.
  `whole`: ranges are ignored, as HTTP allows. `refs`: of a hub, revision -> commit. `cdn`: where a hub sends readers.
  """

  def __init__(self, root: pathlib.Path, kind: type['_Handler']):
    self.root, self.log = root, list[Request]()
    self.faults: list[tuple[str, int]] = []
    self.whole = False
    self.delay_s, self.at_once, self._now = 0.0, 0, 0
    self._lock = threading.Lock()
    self.refs: dict[str, str] = {}
    self.cdn: Server | None = None
    self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), kind)
    self._http.daemon_threads = True
    self._http.store = self  # type: ignore[attr-defined]
    self.url = f'http://127.0.0.1:{self._http.server_port}'
    threading.Thread(target=self._http.serve_forever, args=(0.05,)).start()

  def close(self) -> None:
    self._http.shutdown()
    self._http.server_close()

  @contextlib.contextmanager
  def counted(self) -> Iterator[None]:
    with self._lock:
      self._now += 1
      self.at_once = max(self.at_once, self._now)
    threading.Event().wait(self.delay_s)  # time.sleep may be patched
    try:
      yield
    finally:
      with self._lock:
        self._now -= 1

  def weights(self) -> list[Request]:
    """Requests for weight files."""
    return [r for r in self.log if r.file.endswith('.safetensors')]


@contextlib.contextmanager
def serving(root: pathlib.Path, kind: type['_Handler']) -> Iterator[Server]:
  server = Server(root, kind)
  try:
    yield server
  finally:
    server.close()


def version_of(file: pathlib.Path) -> int:
  return file.stat().st_mtime_ns


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  wbufsize = -1  # header and body leave together
  answer: Callable[..., None]  # each store's own: parts of the path, query

  @property
  def store(self) -> Server:
    return self.server.store  # type: ignore[attr-defined]

  def log_message(self, *args: Any) -> None:
    del args

  def do_GET(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    self.answer([urllib.parse.unquote(p) for p in url.path.split('/')[1:]], query)

  do_HEAD = do_GET

  def faulty(self, file: str) -> bool:
    """Sends the next fault that is for this file."""
    for i, (pattern, status) in enumerate(self.store.faults):
      if re.search(pattern, file):
        del self.store.faults[i]
        self.send(file, status, b'{"error": "as the test wants"}')
        return True
    return False

  def send(self, file: str, status: int, body: bytes = b'', **headers: Any) -> None:
    asked = self.headers.get('Range'), self.headers.get('Authorization')
    sent = 0 if self.command == 'HEAD' else len(body)
    self.store.log.append(Request(file, asked[0], status, sent, asked[1]))
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), str(value))
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if sent:
      self.wfile.write(body)

  def send_file(self, path: pathlib.Path, **headers: Any) -> None:
    file = str(path.relative_to(self.store.root))
    if self.faulty(file):
      return None
    if not path.is_file():
      return self.send(file, 404)
    n_file = path.stat().st_size
    span = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range') or '')
    if span is None or self.store.whole:
      return self.send(file, 200, path.read_bytes(), **headers)
    begin, end = int(span[1]), min(int(span[2]) + 1, n_file)
    if begin >= n_file:
      return self.send(file, 416, Content_Range=f'bytes */{n_file}')
    headers['Content_Range'] = f'bytes {begin}-{end - 1}/{n_file}'
    with path.open('rb') as opened, self.store.counted():
      opened.seek(begin)
      return self.send(file, 206, opened.read(end - begin), **headers)

  def keys(self, bucket: str) -> list[str]:
    top = self.store.root / bucket
    return sorted(str(f.relative_to(top)) for f in top.rglob('*') if f.is_file())


class GoogleStorage(_Handler):
  """The JSON API: /storage/v1/b/BUCKET/o and .../o/OBJECT."""

  def answer(self, parts: list[str], query: dict[str, str]) -> None:
    bucket, name = parts[3], '/'.join(parts[5:])
    if not name:
      if self.faulty(''):
        return None
      first, last = query.get('startOffset', ''), query.get('endOffset')
      keys = [k for k in self.keys(bucket) if first <= k and (not last or k < last)]
      items = [{'name': key, 'generation': '1'} for key in keys]
      return self.send('', 200, json.dumps({'items': items}).encode())
    path = self.store.root / bucket / name
    generation = version_of(path) if path.is_file() else 0
    if query.get('alt') == 'media':
      return self.send_file(path, x_goog_generation=generation)
    described = {'name': name, 'generation': str(generation), 'size': '0'}
    file = str(path.relative_to(self.store.root))
    if self.faulty(file):
      return None
    if not path.is_file():
      return self.send(file, 404)
    return self.send(file, 200, json.dumps(described).encode())


class S3(_Handler):
  """Path style: /BUCKET?list-type=2 and /BUCKET/KEY. Two keys to a page."""

  def answer(self, parts: list[str], query: dict[str, str]) -> None:
    bucket, name = parts[0], '/'.join(parts[1:])
    if self.command == 'HEAD' and not name:
      return self.send('', 200, x_amz_bucket_region='us-east-1')
    if not name:
      if self.faulty(''):
        return None
      keys = [k for k in self.keys(bucket) if k.startswith(query.get('prefix', ''))]
      keys = [k for k in keys if k > query.get('continuation-token', '')]
      page = ''.join(f'<Contents><Key>{escape(k)}</Key></Contents>' for k in keys[:2])
      more = len(keys) > 2
      if more:
        page += f'<NextContinuationToken>{escape(keys[1])}</NextContinuationToken>'
      text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f'<IsTruncated>{str(more).lower()}</IsTruncated>{page}</ListBucketResult>'
      )
      return self.send('', 200, text.encode(), Content_Type='application/xml')
    path = self.store.root / bucket / name
    tag = version_of(path) if path.is_file() else 0
    tag = hashlib.md5(str(tag).encode()).hexdigest()
    return self.send_file(path, ETag=f'"{tag}"')


class Hub(_Handler):
  """/api/models/OWNER/NAME/revision/REV, and OWNER/NAME/resolve/COMMIT/FILE.

  Files are sent by another server, to which the token must not go.
  """

  def answer(self, parts: list[str], query: dict[str, str]) -> None:
    del query
    if self.faulty('/'.join(parts)):
      return None
    if parts[0] != 'api':
      owner, name, _, commit, *file = parts
      place = '/'.join([owner, name, commit, *file])
      assert self.store.cdn is not None
      return self.send('', 302, Location=f'{self.store.cdn.url}/{place}')
    if len(parts) < 4:  # what the client asks for itself
      return self.send('', 404)
    owner, name = parts[2:4]
    revision = parts[5] if len(parts) > 5 else 'main'
    if not (self.store.root / owner / name).is_dir():
      return self.send('', 404, X_Error_Code='RepoNotFound')
    commit = self.store.refs.get(revision, revision)
    top = self.store.root / owner / name / commit
    if not top.is_dir():
      return self.send('', 404, X_Error_Code='RevisionNotFound')
    files = sorted(str(f.relative_to(top)) for f in top.rglob('*') if f.is_file())
    model = {
      'id': f'{owner}/{name}',
      'modelId': f'{owner}/{name}',
      'sha': commit,
      'siblings': [{'rfilename': file} for file in files],
    }
    return self.send(
      '', 200, json.dumps(model).encode(), Content_Type='application/json'
    )


class Cdn(_Handler):
  """Plain files."""

  def answer(self, parts: list[str], query: dict[str, str]) -> None:
    del query
    self.send_file(self.store.root.joinpath(*parts), ETag='"any"')
