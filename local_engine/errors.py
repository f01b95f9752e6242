"""What can go wrong in the engine.

EngineError
├── ModelFileError        the model file cannot be read, or holds something this engine cannot run
├── RequestError          the caller's request cannot be served as it is (maps to one HTTP status)
│   └── QueueFull         too many requests are open already; try again after `retry_after` seconds
└── GenerationError       one accepted request failed while it ran; the others go on
    └── DeadlineExceeded  its time was up before its answer was complete
"""


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""


class ModelFileError(EngineError):
    """The model file is damaged, hostile, or of a kind this engine does not run."""


class RequestError(EngineError):
    """A request that cannot be served as it is: found before it is queued.

    `param` names the field at fault, `code` is the machine-readable reason, `status` the HTTP status,
    `retry_after` the seconds after which it may work (None: trying again will not help).
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.kind = kind
        self.retry_after = retry_after


class QueueFull(RequestError):
    """Every running and waiting place is taken."""

    def __init__(self, open_requests: int, retry_after: int = 1) -> None:
        super().__init__(
            f"the engine is full: {open_requests} requests are running or waiting\nhint: try again in {retry_after} s",
            code="engine_full",
            status=429,
            kind="rate_limit_error",
            retry_after=retry_after,
        )


class GenerationError(EngineError):
    """One running request failed; its text so far is not an answer. `code` is the machine-readable reason."""

    code = "generation_failed"
    status = 500


class DeadlineExceeded(GenerationError):
    """The time that the caller gave was up."""

    code = "deadline_exceeded"
    status = 504
