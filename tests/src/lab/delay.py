"""Carries Ethernet frames between pairs of interfaces, each some time later: `delay.py A B MS [A B MS]...`

The kernel's netem is not everywhere. Frames keep what the kernel has not done yet (checksums,
segmentation), by virtio headers. Each direction holds at most QUEUE frames; more are lost, as on a
cable.
"""

import collections
import select
import socket
import sys
import time

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
PACKET_OUTGOING = 4
QUEUE = 2_000


def interface(name):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    packets.bind((name, ETH_P_ALL))
    packets.setblocking(False)
    return packets


def main(words):
    queues = {}  # from which interface: (to which, seconds later, what is under way)
    for a, b, milliseconds in zip(words[0::3], words[1::3], words[2::3]):
        ends = interface(a), interface(b)
        for source, target in (ends, ends[::-1]):
            queues[source] = (target, float(milliseconds) / 1000, collections.deque())
    print("carrying", flush=True)
    while True:
        due = [queue[0][0] for _, _, queue in queues.values() if queue]
        wait = max(0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select(list(queues), [], [], wait)
        now = time.monotonic()
        for source in readable:
            _, delay, queue = queues[source]
            for _ in range(64):
                try:
                    frame, (_, _, kind, _, _) = source.recvfrom(70_000)
                except OSError:
                    break  # nothing more, or the lab is being taken down
                if kind != PACKET_OUTGOING and len(queue) < QUEUE:
                    queue.append((now + delay, frame))
        for target, _, queue in queues.values():
            while queue and queue[0][0] <= now:
                try:
                    target.send(queue.popleft()[1])
                except OSError:
                    pass  # the other side is full or gone: the frame is lost


main(sys.argv[1:])
