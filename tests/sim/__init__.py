"""The simulator: whole nodes on real cr-sqlite files in virtual time, with every fault that can be had.

The devices are those of `node.testing`. `world` says what a run is, `params` what can be set, `faults` and `workload`
what happens, `invariants` what must hold, `runner` how seeds are run, and a failing one made smaller. By hand:
`scripts/sim --help`.

Checked, by number:

S1 equal facts give equal status; S2 terminal stays terminal; S3 what is durable anywhere is terminal everywhere; S9
epochs increase and nobody acts after seeing a higher one; S10 one message id is one event; S12 recovery changes
only rows of this node's earlier incarnations; S13 reservations are all or nothing; S14 one writer for each row; S15
transactions become visible whole; L1 what a dead device held is taken over and finished in time; L5 an idle mesh
writes nothing; and "convergence".

Waiting for the runtime of handlers, which they are about: S4 (no step of a run that is not owned), S5 (no overlapping
effects among connected nodes), S6 (one effect for each event, confirmed and home), S7 (no effect without intent), S8
(an intent without result is not run again), S11 (phases never go back), L2 (unknown items say who and what), L3 (an
arriving event wakes its consumer), L4 (soft handlers go on without the authority); of S12 the part about runs and
effects; and the fault of a reconciliation that lies or times out. Effects (`mutations`, `verdicts`) do not occur here
yet.
"""
