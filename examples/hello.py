from leasemesh import Node

with Node.open("hello.db") as node:
    node.publish("inbox", "mail", "message-1", title="Hello", payload={"from": "ann@example.com"})
    with node.reserve("inbox", "mail", limit=10) as work:  # all or nothing; given back if you leave it unsettled
        for event in work:
            print(event.title, event.payload)
        work.consume()
    print(node.peek("inbox", "mail"))  # nothing is pending any more
