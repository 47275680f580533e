"""Publishes and consumes through one broker until standard input ends, then prints what came of it as JSON.

pulse.py HOST QUEUE; AMQP_USER and AMQP_PASSWORD from the environment. One numbered message at a time is published
(mandatory, with confirm) to a quorum queue with a single active consumer, and again until it is confirmed. Needs pika.
"""

import json
import os
import sys
import threading
import time

import pika

HOST, QUEUE = sys.argv[1:3]
ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    "x-delivery-limit": 1000000000,
    "x-overflow": "reject-publish",
    "x-max-length": 1000000,
}
told = {"confirmed": 0, "repeated": 0, "reconnects": 0, "longest_gap": 0.0}
confirmed, arrived, stop = [], [], threading.Event()


def channel():
    who = pika.PlainCredentials(os.environ["AMQP_USER"], os.environ["AMQP_PASSWORD"])
    where = pika.ConnectionParameters(HOST, credentials=who, heartbeat=6, blocked_connection_timeout=5, socket_timeout=3)
    open_channel = pika.BlockingConnection(where).channel()
    open_channel.queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
    return open_channel


def publish():
    number, out, last = 1, None, time.monotonic()
    while not stop.is_set():
        try:
            if out is None:
                out = channel()
                out.confirm_delivery()
            out.basic_publish("", QUEUE, str(number).encode(), pika.BasicProperties(delivery_mode=2), mandatory=True)
        except Exception:  # whatever failed: the message goes again
            told["repeated"] += 1
            told["reconnects"] += 1
            out = None
            time.sleep(0.1)
            continue
        now = time.monotonic()
        told["longest_gap"], last = max(told["longest_gap"], now - last), now
        confirmed.append(number)
        number += 1
        time.sleep(0.02)


def consume():
    done = 0
    while done < 5:
        try:
            source = channel()
            source.basic_qos(prefetch_count=100)
            for method, _, body in source.consume(QUEUE, inactivity_timeout=1):
                if method is not None:
                    arrived.append(int(body))
                    source.basic_ack(method.delivery_tag)
                # Empty for five seconds after the end of publishing: all that will come has come.
                done = done + 1 if method is None and stop.is_set() else 0
                if done >= 5 or (stop.is_set() and confirmed and arrived and confirmed[-1] in arrived[-5:]):
                    return
        except Exception:
            told["reconnects"] += 1
            time.sleep(0.1)


threads = [threading.Thread(target=publish), threading.Thread(target=consume)]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join(60)
first = list(dict.fromkeys(arrived))
told["confirmed"] = len(confirmed)
told["arrived"] = len(first)
told["lost"] = len(set(confirmed) - set(first))
told["doubled"] = len(arrived) - len(first)
told["out_of_order"] = sum(1 for before, after in zip(first, first[1:]) if after < before)
print(json.dumps(told), flush=True)
os._exit(0)
