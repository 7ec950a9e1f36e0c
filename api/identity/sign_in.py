"""Signing in with a code that is sent to an e-mail address, and the sessions after it (consumer API, section 3.4)."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from api.identity.accounts import ensure_open
from api.identity.limits import IdentityLimits
from api.identity.ports import Mail, People, SignInCodes, TokenIssuer
from api.ports import Ledger
from domain.errors import CodeNotSent, InvalidRequest, ServiceUnavailable, SignInRefused
from domain.people import Person

CODE_SECONDS = 600
DIGITS = 6
ADMIN_DIGITS = 8
"""A code without a challenge can be tried by everybody who knows the address, so it is longer."""

SESSION_SECONDS = 30 * 86_400.0
IDLE_SECONDS = 7 * 86_400.0

_ADDRESS = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?=.{4,189}$)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+")


class SignedIn(NamedTuple):
    """``token`` is a session's JWT for ``seconds``; ``refresh_token`` gets the next one, once."""

    token: str
    refresh_token: str
    account_id: str
    seconds: int


def read_address(text: object) -> str:
    """An e-mail address in lower case. Raises InvalidRequest when it is none."""
    address = text.strip().lower() if isinstance(text, str) else ""
    if not _ADDRESS.fullmatch(address):
        raise InvalidRequest("'email' must be an e-mail address.", param="email")
    return address


class EmailSignIn:
    def __init__(
        self,
        *,
        people: People,
        codes: SignInCodes,
        tokens: TokenIssuer,
        mail: Mail,
        ledger: Ledger,
        limits: IdentityLimits,
    ) -> None:
        self._people = people
        self._codes = codes
        self._tokens = tokens
        self._mail = mail
        self._ledger = ledger
        self._limits = limits

    async def start(self, email: str, network_address: str) -> str:
        """Send a code. The answer is the same whoever the address is of; what it returns has to come with the code.

        Raises:
            RateLimited: too many codes, for this address or from that network address. CodeNotSent: the mail failed.
        """
        challenge = secrets.token_hex(32)
        await self._send(email, challenge, DIGITS, network_address)
        return challenge

    async def start_admin(self, email: str, network_address: str) -> None:
        """The same for a terminal, which sends back the code alone."""
        await self._send(email, "", ADMIN_DIGITS, network_address)

    async def person_of(self, email: str, challenge: str, code: str) -> tuple[Person, str]:
        """Who has the code that was sent to an address, and the subject of their tokens.

        Raises:
            SignInRefused: the code is wrong, used or expired, or was tried too often.
        """
        if not await self._codes.use(email, challenge, code.strip()):
            raise SignInRefused("This code is wrong, used or expired; check it, or ask for a new one.")
        person, subject = await self._people.at_address(email)
        await ensure_open(person, self._people, self._ledger)
        return person, subject

    async def session_for(self, person: Person, subject: str) -> SignedIn:
        session_id, refresh_token = await self._people.open_session(person.account_id, SESSION_SECONDS)
        return self._signed_in(subject, session_id, refresh_token, person.account_id)

    async def refresh(self, refresh_token: str) -> SignedIn:
        """The session's next token. Raises SignInRefused when it has ended."""
        found = await self._people.refresh(refresh_token, IDLE_SECONDS)
        if found is None:
            raise SignInRefused("This session has ended; sign in again.")
        session, next_token = found
        return self._signed_in(session.subject, session.session_id, next_token, session.account_id)

    def _signed_in(self, subject: str, session_id: str, refresh_token: str, account_id: str) -> SignedIn:
        token = self._tokens.token(subject, session_id)
        return SignedIn(token, refresh_token, account_id, self._tokens.token_seconds)

    async def _send(self, email: str, challenge: str, digits: int, network_address: str) -> None:
        self._limits.count_sign_in(network_address)
        code = f"{secrets.randbelow(10**digits):0{digits}}"
        await self._codes.keep(email, challenge, code, CODE_SECONDS)
        try:
            await self._mail.send(
                email,
                f"Your Darkbloom sign-in code: {code}",
                f"Your sign-in code is {code}. It holds for {CODE_SECONDS // 60} minutes and works once.\n\n"
                "If you did not ask for it, somebody typed your address; without the code nothing happens.\n"
                "Nobody of Darkbloom will ever ask you for this code.\n",
            )
        except ServiceUnavailable as error:
            raise CodeNotSent from error
