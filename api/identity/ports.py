"""What signing in and device login need from the world."""

from __future__ import annotations

from typing import Protocol

from domain.people import AskingMachine, Details, FoundSession, OpenedSession, Person, SessionClaims


class TokenVerifier(Protocol):
    def verify(self, token: str) -> SessionClaims:
        """Raises AuthenticationFailed."""
        ...


class TokenIssuer(Protocol):
    @property
    def token_seconds(self) -> int: ...

    def token(self, subject: str, session_id: str) -> str: ...


class DetailsSource(Protocol):
    async def details_of(self, subject: str) -> Details:
        """What an issuer knows of a person; empty when it cannot be asked."""
        ...


class People(Protocol):
    async def find(self, claims: SessionClaims) -> FoundSession: ...

    async def add(self, issuer: str, subject: str, details: Details) -> Person:
        """The person of a subject, made with these details when it is new."""
        ...

    async def at_address(self, email: str) -> tuple[Person, str]:
        """The person who signs in at an address, made when it is new, and the subject of the tokens."""
        ...

    async def mark_open(self, account_id: str) -> None: ...

    async def open_session(self, account_id: str, seconds: float) -> tuple[str, str]:
        """A new session's id, and the token that refreshes it."""
        ...

    async def refresh(self, refresh_token: str, idle_seconds: float) -> tuple[OpenedSession, str] | None:
        """The session of a refresh token and its next one; None when it has ended."""
        ...

    async def sign_out(self, claims: SessionClaims, account_id: str) -> None: ...

    async def sign_out_everywhere(self, account_id: str) -> None: ...


class SignInCodes(Protocol):
    async def keep(self, email: str, challenge: str, code: str, seconds: float) -> None:
        """Raises RateLimited when the address got as many codes as it may."""
        ...

    async def use(self, email: str, challenge: str, code: str) -> bool: ...


class DeviceCodes(Protocol):
    async def add(
        self, device_code: str, user_code: str, seconds: float, *, machine_name: str = "", chip: str = ""
    ) -> bool: ...

    async def approve(self, user_code: str, account_id: str) -> None:
        """Raises CodeNotFound, CodeExpired or AlreadyUsed."""
        ...

    async def refuse(self, user_code: str) -> None:
        """Raises CodeNotFound, CodeExpired or AlreadyUsed."""
        ...

    async def who_asks(self, user_code: str) -> AskingMachine:
        """Raises CodeNotFound, CodeExpired or AlreadyUsed."""
        ...

    async def redeem(self, device_code: str) -> tuple[str, str] | None:
        """The machine's token and the account, once; None while nobody has approved. Raises GrantNotFound,
        GrantExpired or LinkRefused."""
        ...

    async def revoke_token(self, token: str) -> bool: ...


class Mail(Protocol):
    async def send(self, address: str, subject: str, text: str) -> None:
        """Raises ServiceUnavailable when the mail cannot be handed over."""
        ...
