"""What a node that syncs says about its peers."""


def peer_of(device, name):
    (peer,) = [peer for peer in device.node.peers() if peer.name == name]
    return peer


def test_a_peer_that_was_away_is_connected_since_it_came_back(device_lab):
    lab = device_lab(devices=["hub", "laptop"])
    before = {"laptop": peer_of(lab["hub"], "laptop"), "hub": peer_of(lab["laptop"], "hub")}
    assert [peer.direction for peer in before.values()] == ["accepted", "dialled"]
    lab.advance(60)
    assert peer_of(lab["hub"], "laptop") == before["laptop"]
    assert peer_of(lab["laptop"], "hub") == before["hub"]
    lab.partition("hub", "laptop")
    lab.until(lambda: lab["hub"].node.peers() == [])
    left_at = lab["hub"].node.database.clock_ms()
    lab.heal()
    lab.settle()
    assert peer_of(lab["hub"], "laptop").since_at > left_at
    assert peer_of(lab["laptop"], "hub").since_at > left_at


def test_a_link_that_is_made_anew_at_once_is_another_one(device_lab):
    lab = device_lab(devices=["hub", "laptop"])
    lab.advance(60)
    cut_at = lab["hub"].node.database.clock_ms()
    lab.cut("laptop")
    lab.settle()
    assert peer_of(lab["hub"], "laptop").since_at >= cut_at
    assert peer_of(lab["laptop"], "hub").since_at >= cut_at
