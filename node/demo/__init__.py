"""The demo: three real devices on this machine share real work, two of them go offline and reach for the same events.

`scenario` tells what happens, `driver` starts a process for each device and talks to it, `device` is such a process,
`invariants` looks at the three databases afterwards and finds whatever is not as leasemesh promises.
"""
