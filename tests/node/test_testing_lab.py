"""DeviceLab: each fault does what it says, the same seed gives the same run, and nothing is left behind."""

import asyncio
import gc
import threading

import pytest

from leasemesh import DatabaseError, Workflow
from leasemesh.node.testing import DeviceDown, DeviceLab, LabError, LabTimeout


@pytest.fixture
def lab(device_lab):
    return device_lab(devices=3, seed=1)


def publish(device, message, **more):
    return device.node.publish("inbox", "mail", message, **more)


def messages(device):
    return sorted(event.message_id for event in device.node.peek("inbox", "mail"))


def test_what_one_device_publishes_is_on_all_others_when_they_have_settled(lab):
    publish(lab[0], "1")
    lab.settle()
    assert [messages(device) for device in lab.devices] == [["1"]] * 3
    lab.assert_converged()


def test_devices_in_a_star_reach_each_other_through_the_first(device_lab):
    lab = device_lab(devices=["hub", "laptop", "phone"], topology="star")
    publish(lab["laptop"], "1")
    lab.settle()
    assert messages(lab["phone"]) == ["1"]
    assert [peer.peer for peer in lab["phone"].node.peers()] == [lab["hub"].node.sync.url]


def test_nothing_passes_a_partition_until_it_is_healed(lab):
    lab.partition(0, [1, 2])
    publish(lab[0], "1")
    publish(lab[1], "2")
    lab.settle()
    assert [messages(device) for device in lab.devices] == [["1"], ["2"], ["2"]]
    with pytest.raises(
        AssertionError, match=r"device-0 and device-1 differ in table publications \(\d+ and \d+ cells\)"
    ):
        lab.assert_converged()
    lab.heal()
    lab.settle()
    assert [messages(device) for device in lab.devices] == [["1", "2"]] * 3


def test_a_device_alone_in_its_group_is_cut_off_from_all(lab):
    lab.partition("device-2")
    publish(lab[2], "1")
    lab.settle()
    assert [messages(device) for device in lab.devices] == [[], [], ["1"]]


def test_a_blocked_direction_holds_what_is_sent_and_lets_the_other_through(device_lab):
    lab = device_lab(devices=2)
    lab.block(0, 1)
    publish(lab[0], "1")
    publish(lab[1], "2")
    lab.advance(5)
    assert [messages(device) for device in lab.devices] == [["1", "2"], ["2"]]
    lab.heal()
    lab.settle()
    assert messages(lab[1]) == ["1", "2"]


def test_a_slow_link_takes_the_time_that_its_bytes_need(device_lab):
    lab = device_lab(devices=2)
    lab.slow_down(1, bytes_per_s=2_000)
    publish(lab[0], "1", payload="0123456789abcdef" * 1000 + str(list(range(3000))))
    lab.advance(1)
    assert messages(lab[1]) == []
    lab.settle()
    assert messages(lab[1]) == ["1"]


def test_cut_links_come_back_by_themselves(lab):
    lab.cut(0)
    publish(lab[0], "1")
    lab.settle()
    assert [messages(device) for device in lab.devices] == [["1"]] * 3


def test_what_was_committed_before_a_crash_is_there_after_it_and_what_came_meanwhile_arrives(lab):
    publish(lab[2], "1")
    lab.crash(2)
    publish(lab[0], "2")
    with pytest.raises(DeviceDown, match="device-2 does not run"):
        publish(lab[2], "3")
    lab.settle()
    lab.restart(2)
    lab.settle()
    assert [messages(device) for device in lab.devices] == [["1", "2"]] * 3


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", ["commit", "send"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_crash_at_any_step_of_sync_loses_nothing(device_lab, at, moment, count):
    lab = device_lab(devices=2, seed=count)
    lab.crash(1, at=at, moment=moment, count=count)
    publish(lab[0], "1")
    publish(lab[0], "2")
    lab.until(lambda: not lab[1].is_running, within_s=60)
    lab.restart(1)
    lab.settle()
    assert messages(lab[1]) == ["1", "2"]
    lab.assert_converged()


def test_what_a_crash_before_the_commit_cut_off_was_never_there(device_lab):
    lab = device_lab(devices=2)

    async def publish_there():
        publish(lab[1], "1")

    lab.crash(1, at="commit")
    with pytest.raises(DeviceDown, match="device-1 crashed before the coroutine had ended"):
        lab[1].run(publish_there())
    lab.restart(1)
    lab.settle()
    assert messages(lab[1]) == messages(lab[0]) == []


def test_no_code_of_a_crashed_process_runs_any_more(device_lab):
    lab, did = device_lab(devices=1), []

    async def work():
        try:
            did.append("began")
            await asyncio.sleep(10)
        finally:
            did.append("ended")

    lab[0].spawn(work())
    lab.advance(1)
    lab.crash(0)
    lab.restart(0)
    lab.advance(60)
    assert did == ["began"]


def test_a_restarted_program_stops_in_order_and_goes_on_with_its_file(lab):
    before = lab[1].node
    publish(lab[1], "1")
    lab.restart(1)
    assert lab[1].node is not before and before.database.closed
    lab.settle()
    assert messages(lab[0]) == ["1"]


def test_a_paused_device_does_nothing_and_goes_on_afterwards(lab):
    lab.pause(1, seconds=10)
    publish(lab[0], "1")
    lab.advance(9)
    assert messages(lab[1]) == [] and messages(lab[2]) == ["1"]
    lab.settle()
    assert messages(lab[1]) == ["1"]


def test_nothing_is_written_on_a_full_disk_and_all_arrives_when_there_is_room(lab):
    lab.fill_disk(1)
    publish(lab[0], "1")
    lab.advance(10)
    assert messages(lab[1]) == []
    with pytest.raises(DatabaseError, match="disk is full"):
        publish(lab[1], "2")
    lab.heal()
    publish(lab[1], "3")
    lab.settle()
    assert [messages(device) for device in lab.devices] == [["1", "3"]] * 3


def test_a_program_stops_in_order_on_a_full_disk(lab):
    lab.fill_disk(1)
    before = lab[1].node
    lab.restart(1)
    assert before.database.closed
    lab.heal()
    publish(lab[0], "1")
    lab.settle()
    assert messages(lab[1]) == ["1"]


def test_work_may_begin_while_sync_is_starting(lab):
    async def work(node):
        async with node.start("inbox", "mail", limit=1) as mail:
            return mail.consume()

    publish(lab[1], "1")
    lab.crash(1)
    lab.restart(1)
    assert lab[1].node.sync is None
    assert lab[1].run(work(lab[1].node)) == 1


def test_clocks_may_be_wrong_and_drift_and_begin_anew(lab):
    def clocks(device):
        return device.node.environment.clock_ms(), device.node.environment.monotonic_ms()

    lab.set_clock(1, wrong_by_s=-3600)
    right, wrong = clocks(lab[0]), clocks(lab[1])
    assert right[0] - wrong[0] == 3_600_000 and right[1] == wrong[1]
    lab.set_clock_rate(1, ppm=10_000)
    lab.advance(100)
    assert (clocks(lab[0])[1] - right[1], clocks(lab[1])[1] - wrong[1]) == (100_000, 101_000)
    boot = lab[1].node.environment.boot
    lab.reboot(1)
    assert clocks(lab[1]) == (wrong[0] + 101_000, 0)
    assert lab[1].node.environment.boot != boot


def test_a_restored_backup_takes_a_new_identity_and_gets_back_what_it_had_told(lab):
    publish(lab[1], "1")
    lab.settle()
    backup = lab.backup(1)
    publish(lab[1], "2")
    lab.settle()
    site = lab[1].node.site_id
    lab.restore(backup)
    assert messages(lab[1]) == ["1"]
    lab.settle()
    assert messages(lab[1]) == ["1", "2"] and lab[1].node.site_id != site


def test_a_clone_is_let_in_when_it_has_an_identity_of_its_own(lab):
    publish(lab[1], "1")
    lab.settle()
    copy = lab.clone(1)
    assert copy.name == "copy of device-1" and lab["copy of device-1"] is copy
    lab.advance(5)
    assert copy.node.site_id == lab[1].node.site_id
    with pytest.raises(LabTimeout, match="both run with the site id"):
        lab.settle(within_s=5)
    lab.reset_identity(copy)
    lab.settle()
    assert copy.node.site_id != lab[1].node.site_id
    lab.assert_converged()


def test_a_silent_devices_work_can_be_taken_over_when_its_time_has_come(lab):
    publish(lab[0], "1")
    lab.settle()
    held = lab[1].node.reserve("inbox", "mail")
    lab.settle()
    lab.crash(1)
    ids = [event.id for event in held.events]
    began_s = lab.now_s
    lab.until(lambda: lab[0].node.staleness.longest_wait_ms(ids) == 0)
    assert 60 < lab.now_s - began_s < 120
    assert lab[0].node.take_over(ids).consume() == 1


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    def trace(seed):
        with DeviceLab(devices=2, seed=seed) as lab:
            publish(lab[0], "1")
            lab.crash(1)
            lab.restart(1)
            lab.settle()
            return lab.trace

    assert trace(1) == trace(1) != trace(2)


def test_a_coroutine_gives_its_result_or_its_error_and_time_passes(lab):
    async def sleep():
        await asyncio.sleep(3600)
        return "slept"

    async def fail():
        await asyncio.to_thread(lambda: 1 // 0)

    began_s = lab.now_s
    assert lab[0].run(sleep(), within_s=4000) == "slept"
    assert 3600 <= lab.now_s - began_s < 3601
    with pytest.raises(ZeroDivisionError):
        lab[0].run(fail())
    with pytest.raises(LabTimeout, match="the coroutine's end has not come within 5 s"):
        lab[0].run(sleep(), within_s=5)


def test_what_nobody_on_a_device_handles_fails_the_test(lab):
    async def fail_later():
        asyncio.get_running_loop().call_later(1, lambda: 1 // 0)

    lab[0].run(fail_later())
    with pytest.raises(LabError, match="on device-0: Exception in callback"):
        lab.advance(2)


def test_waiting_in_vain_ends_with_what_every_device_is_at(lab):
    lab.crash(2)
    with pytest.raises(LabTimeout, match=r"has not come within 1 s; .* connected .*; device-2 is down"):
        lab.until(lambda: False, within_s=1)


async def test_a_lab_works_the_same_in_a_running_event_loop():
    async with DeviceLab(devices=2) as lab:
        publish(lab[0], "1")
        lab.settle()
        assert lab[1].run(lab[1].node.caught_up()) is None
        assert messages(lab[1]) == ["1"]


def test_there_is_no_real_network_on_a_device(lab):
    with pytest.raises(RuntimeError, match="no real network in virtual time"):
        lab[0].run(asyncio.open_connection("127.0.0.1", 1))


def test_a_lab_refuses_what_it_cannot_do(lab):
    with pytest.raises(ValueError, match="at least one device"):
        DeviceLab(devices=0)
    with pytest.raises(ValueError, match="a name of its own"):
        DeviceLab(devices=["a", "a"])
    with pytest.raises(KeyError, match="nobody is none of device-0, device-1, device-2"):
        lab.crash("nobody")
    with pytest.raises(ValueError, match="a commit or a send"):
        lab.crash(0, at="midnight")
    with pytest.raises(ValueError, match="at least one device"):
        lab.partition()
    closed = DeviceLab()
    with pytest.raises(RuntimeError, match="not open"):
        closed.advance(1)
    closed.close()


def test_a_lab_leaves_no_thread_and_no_file_behind():
    threads = threading.active_count()

    async def clean_up_badly():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(1)
            await asyncio.to_thread(print)

    with DeviceLab(devices=2) as lab:
        folder = lab[0].node.path.parent
        lab[0].spawn(clean_up_badly())
        lab.advance(1)
        lab.crash(0)
        lab.restart(0)
        lab[1].spawn(clean_up_badly())
        lab.advance(1)
    gc.collect()
    assert threading.active_count() == threads
    assert not folder.exists()


def test_handlers_run_where_they_are_put_and_settling_waits_for_them(device_lab):
    did = []
    mail = Workflow("mail")

    @mail.consumer(mail.topic("inbox"), batch=1)
    async def note(run):
        await asyncio.sleep(30)
        did.extend(event.message_id for event in run.events)

    lab = device_lab(devices=["hub", "worker"], workflows=lambda name: [mail] if name == "worker" else [])
    assert lab["hub"].node.runner is None
    for number in range(3):
        lab["hub"].node.publish("mail", "inbox", f"message-{number}")
    lab.settle()
    assert did == ["message-0", "message-1", "message-2"]
    lab.restart("worker")  # which ends its handlers in order
    assert lab["hub"].node.peek("mail", "inbox") == []
