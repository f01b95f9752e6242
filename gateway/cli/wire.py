"""`hatchway wire`: how the gateway reads and writes what goes over the wire. A support tool; it sends nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.cli.console import fail, show, stderr
from gateway.errors import GatewayError

# The adapters are imported by the commands that use them: all others start a quarter of a second sooner.

app = typer.Typer(no_args_is_help=True, help="Show how the gateway reads and writes recorded traffic.")

MAX_FILE_BYTES = 256 * 1024 * 1024


@app.command()
def decode(
    files: Annotated[list[Path], typer.Argument(help="Recorded scenarios, as JSON.")],
) -> None:
    """Read recorded exchanges as the gateway would: one JSON line each.

    Exit status 1: a file could not be read at all. An exchange that cannot be read is a line with `error`.
    """
    from gateway.adapters.recorded import RecordingError, decode_recording
    from gateway.config.row_book import shipped_rows

    failed = False
    for file in files:
        try:
            decoded = list(decode_recording(_read(file), shipped_rows()))
        except RecordingError as error:
            stderr.print(f"{file}: {error}", markup=False, highlight=False)
            failed = True
            continue
        for number, fields in enumerate(decoded):
            show(json.dumps({"file": str(file), "exchange": number, **fields}))
    raise typer.Exit(1 if failed else 0)


@app.command()
def encode(
    request: Annotated[Path, typer.Argument(help="A request as an application sends it, as JSON.")],
    adapter: Annotated[str, typer.Option(help="The provider to write it for, as in `adapter:` of a configuration.")],
    model: Annotated[str | None, typer.Option(help="The upstream model; left out: the request's.")] = None,
    surface: Annotated[
        str | None, typer.Option(help="The request's protocol; left out: found out from its fields.")
    ] = None,
) -> None:
    """Print what would be sent to a provider for a request of any surface."""
    from gateway.adapters.recorded import RecordingError, encode_request
    from gateway.config.row_book import shipped_rows

    try:
        body = _read(request)
        written = encode_request(body, adapter, shipped_rows(), model=model, surface=surface)
    except (RecordingError, GatewayError) as error:
        fail(str(error))
    show(json.dumps(written, indent=2, ensure_ascii=False))


def _read(file: Path) -> Any:
    """Raises RecordingError."""
    from gateway.adapters.recorded import RecordingError

    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise RecordingError(f"it is over {MAX_FILE_BYTES} bytes")
        return msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise RecordingError(error.strerror or "it cannot be read") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordingError(f"it is not JSON: {error}") from None
