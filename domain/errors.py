"""The exception tree of the domain.

    DarkbloomError
    ├── InvalidRequest              400
    │   ├── BadRequest
    │   ├── IncompleteRequest
    │   ├── PayloadTooLarge         413
    │   ├── InvalidSealedEnvelope
    │   ├── KidMismatch
    │   └── DecryptionFailed
    ├── AuthenticationFailed        401
    │   └── SignInRefused
    ├── InsufficientFunds           402
    │   └── KeyLimitReached
    ├── Forbidden                   403
    ├── NotFound                    404
    │   ├── CodeNotFound
    │   ├── GrantNotFound
    │   ├── ModelNotFound
    │   ├── EndpointNotFound
    │   └── UnknownRequest
    ├── MethodNotAllowed            405
    ├── Conflict                    409
    │   ├── AlreadyUsed
    │   ├── CheckpointPending
    │   ├── IdempotencyConflict
    │   └── IdempotencyInFlight
    ├── CodeExpired                 410
    │   └── GrantExpired
    ├── NoLinkedMachine             409
    ├── MachineBusy                 429
    ├── RateLimited                 429
    ├── InternalError               500
    │   ├── AccountLookupFailed
    │   └── CodeNotSent
    ├── ProviderFailed              502 or what the provider reported
    ├── ModelNotAvailable           503
    ├── EncryptionUnavailable       503
    ├── MachineOffline              503
    ├── LedgerUnavailable           503
    │   ├── LedgerBusy
    │   └── LedgerHalted
    ├── NotConfigured               503
    ├── ServiceUnavailable          503
    ├── AttemptTimedOut             504
    └── InvariantViolated           500, never the caller's fault

``type``, ``code`` and the HTTP status are contract; a class's docstring is its default message and may change.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class DarkbloomError(Exception):
    """Something went wrong."""

    type: ClassVar[str] = "internal_error"
    code: ClassVar[str | None] = None
    http_status: int = 500
    retry_after_seconds: int | None = None
    should_retry: bool | None = None
    """Said outright where the status alone would make client packages decide wrongly."""

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        self.message = message or inspect.getdoc(type(self)) or type(self).__name__
        self.param = param
        super().__init__(self.message)

    @property
    def wire_code(self) -> str:
        """The ``code`` member of an error answer: the class's own, else its type."""
        return self.code or self.type


class InvalidRequest(DarkbloomError):
    """The request is not valid."""

    type = "invalid_request_error"
    http_status = 400


class BadRequest(InvalidRequest):
    """The request does not say what it is about."""

    type = "bad_request"


class IncompleteRequest(InvalidRequest):
    """The request lacks what it is about."""

    type = "invalid_request"


class PayloadTooLarge(InvalidRequest):
    """The request body is larger than this endpoint accepts."""

    code = "payload_too_large"
    http_status = 413


class InvalidSealedEnvelope(InvalidRequest):
    """The sealed envelope is not one: send JSON with 'kid', 'ephemeral_public_key' and 'ciphertext'."""

    type = "invalid_sealed_envelope"


class KidMismatch(InvalidRequest):
    """The request is sealed to a key that is not in use; fetch GET /v1/encryption-key and seal it again."""

    type = "kid_mismatch"


class DecryptionFailed(InvalidRequest):
    """The sealed request does not open, or was sent before; seal it anew."""

    type = "decryption_failed"


class AuthenticationFailed(DarkbloomError):
    """No valid API key was sent; send one as 'Authorization: Bearer <key>'."""

    type = "authentication_error"
    http_status = 401


class SignInRefused(AuthenticationFailed):
    """The code or the session is wrong, used or expired; sign in again."""

    type = "auth_error"


class InsufficientFunds(DarkbloomError):
    """The balance does not cover the most that this request can cost; lower max_tokens, or get more credit."""

    type = "insufficient_funds"
    code = "insufficient_quota"
    http_status = 402
    should_retry = False


class KeyLimitReached(InsufficientFunds):
    """This API key's own spend limit does not cover the most that this request can cost."""


class Forbidden(DarkbloomError):
    """This key may not do that."""

    type = "forbidden"
    http_status = 403


class NotFound(DarkbloomError):
    """There is no such thing."""

    type = "not_found"
    http_status = 404


class CodeNotFound(NotFound):
    """There is no such code; check it for typing errors."""

    type = "invalid_code"


class GrantNotFound(NotFound):
    """There is no such device code."""

    type = "invalid_grant"


class ModelNotFound(NotFound):
    """No model of that name is offered; GET /v1/models lists those that are."""

    type = "model_not_found"


class EndpointNotFound(NotFound):
    """This endpoint does not exist."""

    type = "invalid_request_error"
    code = "endpoint_not_found"


class UnknownRequest(NotFound):
    """No such inference request was admitted."""


class MethodNotAllowed(DarkbloomError):
    """This endpoint does not answer that method."""

    type = "invalid_request_error"
    code = "method_not_allowed"
    http_status = 405


class Conflict(DarkbloomError):
    """The request contradicts what is already recorded."""

    type = "conflict"
    http_status = 409


class AlreadyUsed(Conflict):
    """This code was used already."""

    type = "already_used"


class CodeExpired(DarkbloomError):
    """This code has expired; run 'darkbloom login' again."""

    type = "expired_code"
    http_status = 410


class GrantExpired(CodeExpired):
    """This device code has expired or was used; run 'darkbloom login' again."""

    type = "expired_token"


class CheckpointPending(Conflict):
    """No signed checkpoint covers this event yet; one is being made, so try again in a moment."""

    code = "checkpoint_pending"
    retry_after_seconds = 2


class IdempotencyConflict(Conflict):
    """This Idempotency-Key was used with another request before; choose a new key for a new request."""

    type = "invalid_request_error"
    code = "idempotency_conflict"
    should_retry = False


class IdempotencyInFlight(Conflict):
    """The first request with this Idempotency-Key is still being answered; ask again for its answer."""

    code = "idempotency_in_flight"
    retry_after_seconds = 1


class NoLinkedMachine(DarkbloomError):
    """This request may only go to your own machines, and none is linked to your account."""

    type = "no_linked_machine"
    http_status = 409


class MachineBusy(DarkbloomError):
    """None of your own machines became free in time; nothing was charged, try again shortly."""

    type = "machine_busy"
    http_status = 429
    retry_after_seconds = 10


class RateLimited(DarkbloomError):
    """Too many requests; wait as long as Retry-After says."""

    type = "rate_limit_exceeded"
    http_status = 429

    def __init__(self, message: str | None = None, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class InternalError(DarkbloomError):
    """The server made a mistake; nothing was charged. Quote the request id when you report it."""

    type = "internal_error"


class AccountLookupFailed(InternalError):
    """The account behind this session could not be looked up; try again."""

    type = "auth_error"


class CodeNotSent(InternalError):
    """The code could not be sent; try again later."""

    type = "otp_error"


class ProviderFailed(DarkbloomError):
    """The machine that served this request failed."""

    type = "provider_error"
    http_status = 502

    def __init__(self, message: str | None = None, *, http_status: int = 502) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.should_retry = False if http_status == 504 else None


class ModelNotAvailable(DarkbloomError):
    """No machine can take this request now; try again shortly."""

    type = "model_not_available"
    http_status = 503
    retry_after_seconds = 10


class EncryptionUnavailable(DarkbloomError):
    """This coordinator has no key that requests could be sealed to."""

    type = "encryption_unavailable"
    http_status = 503
    should_retry = False


class MachineOffline(DarkbloomError):
    """None of your own machines serves this model now; GET /v1/me/providers says what keeps them from it."""

    type = "machine_offline"
    http_status = 503
    retry_after_seconds = 10


class LedgerUnavailable(DarkbloomError):
    """The ledger cannot be written just now; nothing was charged, try again."""

    type = "service_unavailable"
    http_status = 503
    retry_after_seconds = 1


class LedgerBusy(LedgerUnavailable):
    """The ledger has more work waiting than it accepts; nothing was charged, try again."""


class LedgerHalted(LedgerUnavailable):
    """The ledger stopped because its books would no longer add up; nothing was charged. An operator has to look."""

    retry_after_seconds = 60


class NotConfigured(DarkbloomError):
    """This deployment does not offer that."""

    type = "not_configured"
    http_status = 503
    should_retry = False


class ServiceUnavailable(DarkbloomError):
    """The service is shutting down or lost its lease; nothing was charged, try again."""

    type = "service_unavailable"
    http_status = 503
    retry_after_seconds = 3


class AttemptTimedOut(DarkbloomError):
    """No answer came in time."""

    type = "timeout"
    http_status = 504
    should_retry = False


class InvariantViolated(DarkbloomError):
    """The books would no longer add up; the operation was refused."""
