"""The simulator: whole nodes on real cr-sqlite files in virtual time, with every fault that can be had.

The devices are those of `node.testing`. `world` says what a run is, `params` what can be set, `faults` and `workload`
what happens, `invariants` what must hold, `runner` how seeds are run, and a failing one made smaller. By hand:
`scripts/sim --help`.

Checked, by number:

S1 equal facts give equal status; S2 terminal stays terminal; S3 what is durable anywhere is terminal everywhere; S4 a
device begins no effect that its own view says is another's; S5 devices that stay connected never work on one event at
the same time; S6 one effect for each event, confirmed and at home; S7 no call without an intent in the file; S8 work
of unknown outcome is not begun again; S9 epochs increase and nobody acts after seeing a higher one; S10 one message id
is one event; S11 phases never go back, and what a committed run held is consumed; S12 recovery changes only rows of
this node's earlier incarnations; S13 reservations are all or nothing; S14 one writer for each row; S15 transactions
become visible whole; L1 all work is finished in time, also what a dead device held; L2 what is unknown says who, since
when, with which tool and parameters; L3 an event that arrives wakes its consumer, and no run is left open; L4 without
the authority soft handlers go on, and confirmed ones wait and resume; L5 an idle mesh writes nothing; and
"convergence".

S6 is not demanded of runs with copies of files, nor of those in which a person says that a node is gone: there it is
not promised, see ARCHITECTURE.md. What a service lied about counts for nobody.
"""
