from leasemesh import Node

with Node.open("hello.db") as node:
    node.publish("inbox", "mail", "message-1", title="Hello", payload={"from": "ann"})
    with node.reserve("inbox", "mail", limit=10) as work:  # all or nothing
        for event in work:
            print(event.title, event.payload)
        work.consume()  # else they are given back at the end of the block
    print(node.peek("inbox", "mail"))  # nothing is pending any more
