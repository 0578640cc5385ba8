"""An app for `leasemesh run`: a letter for each file in a folder, and an entry in a ledger for each letter.

    export MAIL_FOLDER=~/outbox MAIL_PORT=1025 LEDGER_PORT=8025
    leasemesh run app.py

It sends to an SMTP server on this machine, and enters at an HTTP service that takes `POST /entries` with an
`Idempotency-Key`; `scripts/demo` in the repository has both. A letter waits for a permit, so appoint an authority.
"""

import os
import platform

from mail_effects import Services
from mail_handlers import automation
from mail_source import Source

FOLDER = os.environ.get("MAIL_FOLDER", "outbox")
SERVICES = Services(
    platform.node(), int(os.environ.get("MAIL_PORT", "1025")), int(os.environ.get("LEDGER_PORT", "8025"))
)

demo = automation(Source("folder", FOLDER, limit=10_000), SERVICES, reading=True, working=True)
