"""Boxes and signatures as the gateway uses them."""

from __future__ import annotations

from nacl.public import PrivateKey

from adapters.crypto import box, signing


class AttemptChannel(box.SealedChannel):
    """A channel under a key of our own that lives for one attempt."""

    def __init__(self, provider_key: str) -> None:
        session_key = PrivateKey.generate()
        super().__init__(session_key, box.parse_public_key(provider_key))
        self.public_key = box.public_key_text(session_key)


class NaclSealing:
    def channel(self, provider_key: str) -> AttemptChannel:
        """Raises SealingError when the key is unusable."""
        return AttemptChannel(provider_key)

    def is_key(self, provider_key: str) -> bool:
        """Whether a request can be sealed to it; a point of small order is well-formed and yet no key."""
        try:
            self.channel(provider_key)
        except box.SealingError:
            return False
        return True

    def verify(self, public_key: str, signature: str, message: bytes) -> None:
        signing.verify(public_key, signature, message)

    def raw_key(self, public_key: str) -> bytes:
        numbers = signing.parse_public_key(public_key).public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
