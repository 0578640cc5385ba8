"""The runtime: handlers, their phases and effects, schedules, retries and recovery.

| module | what it is |
|---|---|
| `workflow`, `effects`, `context`, `errors` | what authors of handlers write and get |
| `schedule`, `retry` | when to run, and when to try again: pure |
| `manager`, `beginning`, `choosing` | every transition of a run, each one transaction; which events a run takes |
| `script`, `attempt` | the steps of a run, as a generator: it says what must be awaited, and awaits nothing |
| `performing` | calling the outside, with time-outs, and telling what the outcome was |
| `recovery` | what a start finds, what verdicts and silent devices leave to be done |
| `driving`, `carrying`, `threads` | takes scripts to their ends: a thread as far as it goes, then the event loop |
| `loops`, `background`, `sessions` | a loop for each handler; reconciliation and housekeeping; bursts of activity |
| `reach`, `clocks` | hearing the others at a start and after a sleep; noticing a sleep |
| `runner`, `progress` | all of it together, from start to stop; what it tells |

It runs in any event loop, in virtual time too: no clock but the event loop's and the node's, no chance but the node's,
no SQL.
"""
