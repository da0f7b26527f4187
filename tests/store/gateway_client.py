"""One script with PyPI's etcd3gw; prints what it gets. Run as gateway_client.py HOST PORT."""

import sys
import threading

import etcd3gw
from etcd3gw.exceptions import Etcd3Exception

client = etcd3gw.client(host=sys.argv[1], port=int(sys.argv[2]), api_path="/v3/", timeout=10)


def show(name, work):
    try:
        print(name, work(), flush=True)
    except Etcd3Exception as error:
        print(name, "raises", type(error).__name__, (error.detail_text or "").strip(), flush=True)


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


show("put", lambda: client.put("a", "1"))
show("get", lambda: client.get("a"))
show("get nothing", lambda: client.get("nothing"))
show("put again", lambda: client.put("a", "2"))
show("metadata", lambda: client.get("a", metadata=True))
show("replace", lambda: client.replace("a", "2", "3"))
show("replace in vain", lambda: client.replace("a", "2", "4"))
show("create", lambda: client.create("b", "1"))
show("create in vain", lambda: client.create("b", "2"))
show("prefix", lambda: client.get_prefix("a"))
show("all", lambda: client.get_all(sort_order="descend", sort_target="key"))
show("all by change", lambda: client.get_all(sort_order="ascend", sort_target="mod"))
show(
    "transaction",
    lambda: without(
        client.transaction(
            {
                "compare": [{"key": "YQ==", "result": "EQUAL", "target": "VERSION", "version": "3"}],
                "success": [{"request_put": {"key": "Yw==", "value": "MQ=="}}],
                "failure": [{"request_range": {"key": "YQ=="}}],
            }
        ),
        "header",
    ),
)
show("delete", lambda: client.delete("b"))
show("delete in vain", lambda: client.delete("b"))

lease = client.lease(ttl=100)
show("ttl", lambda: 95 <= lease.ttl() <= 100)
show("put with lease", lambda: client.put("leased/1", "x", lease=lease))
show("refresh", lambda: lease.refresh())
show("keys", lambda: lease.keys())
show("revoke", lambda: lease.revoke())
show("gone", lambda: client.get("leased/1"))
show("ttl of nothing", lambda: lease.ttl())

lock = client.lock("name", ttl=20)
show("acquire", lambda: lock.acquire())
other = client.lock("name", ttl=20)
show("acquire in vain", lambda: other.acquire())
show("is acquired", lambda: lock.is_acquired())
show("release", lambda: lock.release())
show("acquire at last", lambda: other.acquire())
show("release at last", lambda: other.release())

timer = threading.Timer(0.5, lambda: client.put("watched", "1"))
timer.start()
show("watch once", lambda: client.watch_once("watched", timeout=10)["kv"]["value"])
timer.join()

events, cancel = client.watch_prefix("w/")
client.put("w/1", "x")
client.put("w/2", "y")
client.delete("w/1")
for _ in range(3):
    event = next(events)
    print("event", event.get("type"), event["kv"]["key"], event["kv"].get("value"), flush=True)
cancel()

show("status", lambda: sorted(client.status().keys() - {"storageVersion", "dbSizeQuota", "downgradeInfo"}))
show("members", lambda: [member["name"] for member in client.members()])
