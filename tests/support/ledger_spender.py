"""A process of its own that spends an account through its own writer: ``python -m tests.support.ledger_spender``.

Arguments: database URL, account, amount of each admission, how many to try. It starts at a line on its standard input,
and prints a JSON object of what its admissions came to.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from uuid import uuid4

from domain.errors import DarkbloomError
from tests.support.ledger_commands import admit
from tests.support.ledger_writers import running

THREADS = 8


def spend(url: str, account_id: str, amount: int, tries: int) -> Counter[str]:
    """Admissions from several threads through one writer, counted by their outcome."""
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def work() -> None:
        for _ in range(tries // THREADS):
            try:
                writer.execute(admit(account_id, amount, uuid4()))
                outcome = "admitted"
            except DarkbloomError as error:
                outcome = type(error).__name__
            with lock:
                outcomes[outcome] += 1

    with running(url) as writer:
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(spend(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
