"""The runtime: handlers, their phases and effects, schedules, retries and recovery.

| module | what it is |
|---|---|
| `workflow`, `effects`, `context` | what authors of handlers write and get |
| `schedule`, `retry` | when to run, and when to try again: pure |
| `manager` | every transition of a run, each one transaction |
| `script` | the steps of a run, as a generator: it says what must be awaited, and awaits nothing |
| `performing` | calling the outside, with time-outs, and telling what the outcome was |
| `recovery` | what a start finds, what verdicts and silent devices leave to be done |
| `runner` | asyncio: wakes, schedules, sessions, concurrency, and the clean stop |
"""
