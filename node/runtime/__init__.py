"""Running handlers: tasks, threads and time-outs.

| module | what it is |
|---|---|
| `runner`, `coordination` | all of it together, from start to stop; what the parts share |
| `loops`, `sessions` | a loop for each handler; bursts of activity |
| `background` | reconciliation and housekeeping |
| `driving`, `carrying` | takes scripts to their ends: a thread as far as it goes, then the event loop |
| `performing` | calls to the outside, with time-outs |
| `reach`, `clocks` | learning what the others have done, at a start and after a sleep; noticing a sleep |

It runs in any event loop, in virtual time too: no clock but the event loop's and the node's, no chance but the node's.
The rules of a run belong in `execution`, and SQL in `stores`.
"""
