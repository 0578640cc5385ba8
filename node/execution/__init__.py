"""The transitions of a run: plain functions over the stores, which await nothing.

| module | what it is |
|---|---|
| `manager`, `beginning`, `choosing` | every transition, each one transaction; which events a run takes |
| `script`, `attempt` | the steps of a run, as a generator that says what must be awaited; a run under way |
| `outcomes` | what a call to the outside came to |
| `recovery` | what a start finds; what verdicts and silent devices leave to be done |

Tasks and threads belong in `runtime`.
"""
