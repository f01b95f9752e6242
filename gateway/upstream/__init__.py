"""The HTTP/1.1 client to upstreams.

request.py     what is asked: origin, request, header block, deadlines, limits
client.py      `UpstreamClient.send`: a pooled connection or a new one, one retry when a pooled one proves stale
pool.py        the idle connections of one origin
connection.py  one socket: writes a request, parses the answer, keeps one timer
response.py    the answer as its reader sees it
coding.py      gzip and deflate, bounded
transport.py   the same client for ordinary `httpx` code
"""
