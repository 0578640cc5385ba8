"""Workflows that the tests run on shop/orders."""

from leasemesh import Applied, DidNotHappen, NotApplied, Retry, Workflow, effect


def packing(*, batch=4):
    """Consumes orders without an effect; a log line, a cost and a parcel for each run."""
    shop = Workflow("shop")
    orders, parcels = shop.topic("orders"), shop.topic("parcels")

    @shop.consumer(orders, publishes=[parcels], batch=batch)
    def pack(run):
        run.log(f"packs {len(run.events)}")
        run.cost(1_500_000)
        for event in run.events:
            run.publish(parcels, event.message_id, caused_by=event)

    return shop


def watching():
    """A producer that looks ten times a second and finds nothing."""
    shop = Workflow("shop")

    @shop.producer(every_s=0.1)
    def watch(run, state):
        return (state or 0) + 1

    return shop


def charging(outcomes, *, mode=None, reconciled=None, keys=None, receipts=None):
    """Consumes orders by an effect that returns or raises what comes next of `outcomes`."""
    shop = Workflow("shop")

    @effect(timeout_s=5)
    async def charge(key, *, order, amount):
        if keys is not None:
            keys.append(key)
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    if reconciled is not None:

        @charge.reconcile
        async def find_out(key, *, order, amount):
            return next(reconciled)

    consumer = shop.consumer(shop.topic("orders"), name="charge", mode=mode)

    @consumer.mutate
    def mutate(run):
        (event,) = run.events
        return charge(order=event.message_id, amount=event.payload["chairs"])

    @consumer.next
    def finish(run):
        if receipts is not None:
            receipts.append(run.result)

    return shop


def failing(fails=lambda event: True):
    """Consumes orders by code that fails on some of them."""
    shop = Workflow("shop")

    @shop.consumer(shop.topic("orders"))
    def pack(run):
        (event,) = run.events
        if fails(event):
            raise ValueError(f"nobody knows {event.message_id}")

    return shop


__all__ = ["Applied", "DidNotHappen", "NotApplied", "Retry", "charging", "failing", "packing"]
