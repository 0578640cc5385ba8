"""The demo: an automation on three devices of this machine, which are cut off, killed and late, and real services that
count what reached them.

| module | what it is |
|---|---|
| `automation`, `effects`, `source` | the app: handlers, what they do to the outside, where its events come from |
| `mail_server`, `ledger`, `withheld` | the outside: a real SMTP server, a real HTTP service |
| `network` | the link to the hub, which can be cut |
| `device`, `driver` | a process for each device, and how it is told what to do |
| `scenario` | what happens, step by step |
| `records`, `invariants` | the proof: the databases and the services' own records, and what must hold of them |
| `screen`, `__main__` | what a person sees |

It is no part of what is installed: it needs the development tools, among them a mail server.
"""
