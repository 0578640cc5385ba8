"""What the author of handlers writes with.

| module | what it is |
|---|---|
| `workflow`, `effects`, `context` | workflows and their handlers, external effects, what a handler is given |
| `errors` | what a handler raises |
| `schedule`, `retry` | when to run, and when to try again |
| `progress` | what a runner tells |

How a run is carried out belongs in `execution`.
"""
