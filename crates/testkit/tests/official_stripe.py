"""Drives the local Stripe with Stripe's own library. Arguments: base address, key. Prints "all believed"."""

import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import stripe

base, key = sys.argv[1:]
client = stripe.StripeClient(key, base_addresses={"api": base}, max_network_retries=0)
v1 = client.v1


def refused(call, code=None, status=400):
    try:
        call()
    except stripe.StripeError as error:
        assert (error.code, error.http_status) == (code, status), (error.code, error.http_status)
        assert error.headers["request-id"], "every answer names its request"
        return error
    raise AssertionError("was not refused")


# Endpoints.
def create(url, **more):
    return v1.webhook_endpoints.create({"url": url, "enabled_events": ["charge.refunded", "charge.failed"], **more})


made = create("http://127.0.0.1:1/a", api_version="2026-10-28.endive", metadata={"stack": "one", "drop": "x"})
assert made.secret.startswith("whsec_") and made.status == "enabled" and made.api_version == "2026-10-28.endive"
assert "secret" not in v1.webhook_endpoints.retrieve(made.id)
changed = v1.webhook_endpoints.update(made.id, {"enabled_events": ["*"], "metadata": {"drop": ""}})
assert changed.enabled_events == ["*"] and changed.metadata.to_dict() == {"stack": "one"}
refused(lambda: v1.webhook_endpoints.update(made.id, {"connect": True}), "parameter_unknown")
refused(lambda: v1.webhook_endpoints.create({"url": "ftp://x", "enabled_events": ["*"]}), "url_invalid")
refused(lambda: v1.webhook_endpoints.create({"url": "http://127.0.0.1:1/a"}), "parameter_missing")
others = [create("http://127.0.0.1:1/b") for _ in range(15)]
assert refused(lambda: create("http://127.0.0.1:1/c")).http_status == 400
listed = [e.id for e in v1.webhook_endpoints.list({"limit": 5}).auto_paging_iter()]
assert sorted(listed) == sorted([made.id] + [e.id for e in others]) and len(listed) == 16
for endpoint in others + [made]:
    assert v1.webhook_endpoints.delete(endpoint.id).deleted
refused(lambda: v1.webhook_endpoints.delete(made.id), "resource_missing", 404)

# Keys, accounts, idempotency.
stranger = stripe.StripeClient("sk_test_someone_else", base_addresses={"api": base})
refused(lambda: stranger.v1.webhook_endpoints.list(), None, 401)
wanted = {"amount": 1000, "currency": "usd"}
once = {"idempotency_key": "k1"}
first = v1.payment_intents.create(wanted, once)
assert v1.payment_intents.create(wanted, once).id == first.id
assert isinstance(refused(lambda: v1.payment_intents.create({**wanted, "amount": 2}, once)), stripe.IdempotencyError)
theirs = {"stripe_account": "acct_1"}
assert v1.payment_intents.create(wanted, {**once, **theirs}).id != first.id
refused(lambda: v1.payment_intents.retrieve(first.id, options=theirs), "resource_missing", 404)

# Intents and sessions.
assert v1.payment_intents.cancel(first.id, {"cancellation_reason": "abandoned"}).cancellation_reason == "abandoned"
paid = v1.payment_intents.create({**wanted, "payment_method": "pm_card_visa", "confirm": True})
assert paid.status == "succeeded"
error = refused(lambda: v1.payment_intents.cancel(paid.id), "payment_intent_unexpected_state")
assert error.error.payment_intent.status == "succeeded"
price = {"currency": "eur", "unit_amount": 1500, "product_data": {"name": "x"}}
session = v1.checkout.sessions.create({"mode": "payment", "line_items": [{"price_data": price, "quantity": 1}]})
assert (session.status, session.amount_total, session.currency) == ("open", 1500, "eur")
refused(lambda: v1.payment_intents.cancel(session.payment_intent), "payment_intent_unexpected_state")
found = v1.checkout.sessions.list({"payment_intent": session.payment_intent})
assert [s.id for s in found.data] == [session.id]
assert v1.checkout.sessions.expire(session.id).status == "expired"
assert v1.payment_intents.retrieve(session.payment_intent).status == "canceled"
refused(lambda: v1.checkout.sessions.expire(session.id))

# What belongs to a payment: retrieved, listed by it, by page and account, and refused by a wrong parameter.
def put(kind, id, account=None, **more):
    made = {"id": id, "object": kind, "created": 1, "livemode": False, "payment_intent": "pi_1", "charge": "ch_1", **more}
    request = urllib.request.Request(f"{base}/_local/objects", json.dumps({"account": account, "object": made}).encode())
    urllib.request.urlopen(request)


kinds = {"charge": v1.charges, "refund": v1.refunds, "dispute": v1.disputes, "checkout.session": v1.checkout.sessions}
for kind, service in kinds.items():
    for number in range(3):
        put(kind, f"{kind}_{number}", created=number)
    put(kind, f"{kind}_other", payment_intent="pi_2", charge="ch_2")
    put(kind, f"{kind}_theirs", "acct_1")
    newest_first = [f"{kind}_{number}" for number in (2, 1, 0)]
    assert service.retrieve(f"{kind}_1").payment_intent == "pi_1"
    refused(lambda: service.retrieve(f"{kind}_theirs"), "resource_missing", 404)
    of_payment = service.list({"payment_intent": "pi_1", "limit": 2})
    assert [found.id for found in of_payment.data] == newest_first[:2] and of_payment.has_more
    assert [found.id for found in of_payment.auto_paging_iter()] == newest_first
    assert [found.id for found in service.list({"payment_intent": "pi_1"}, theirs).data] == [f"{kind}_theirs"]
    if kind in ("refund", "dispute"):
        assert [found.id for found in service.list({"charge": "ch_1"}).data] == newest_first
    else:
        refused(lambda: service.list({"charge": "ch_1"}), "parameter_unknown")
assert first.id in [intent.id for intent in v1.payment_intents.list({"limit": 100}).data]
assert v1.payment_intents.list({"customer": "cus_1"}).data == []
refused(lambda: v1.payment_intents.list({"payment_intent": "pi_1"}), "parameter_unknown")

# Delivery: the first attempt fails, the second is believed, and each endpoint has its own secret.
believed, secrets = [], {}


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        event = stripe.Webhook.construct_event(body, self.headers["stripe-signature"], secrets[self.path])
        believed.append((self.path, event.id))
        self.send_response(500 if len(believed) == 1 else 200)
        self.end_headers()
        self.wfile.write(b"taken")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
for path, connect in [("/platform", False), ("/connect", True)]:
    secrets[path] = create(f"http://127.0.0.1:{server.server_port}{path}", connect=connect).secret
assert secrets["/platform"] != secrets["/connect"]


def deliver(number, **more):
    event = {"id": f"evt_{number}", "object": "event", "created": number, "livemode": False, "type": "charge.refunded"}
    event["data"] = {"object": {"id": "ch_1", "object": "charge", "description": "naïve ✓"}}
    request = urllib.request.Request(f"{base}/_local/deliver", json.dumps({"event": event, **more}).encode())
    return json.load(urllib.request.urlopen(request))["deliveries"]


(one,) = deliver(1)
assert one["delivered"] and [a["status"] for a in one["attempts"]] == [500, 200], one
(connect,) = deliver(2, account="acct_1")
assert connect["delivered"] and connect["attempts"][0]["body"] == "taken"
assert len(deliver(3, copies=3)) == 3
paths = [("/platform", "evt_1")] * 2 + [("/connect", "evt_2")] + [("/platform", "evt_3")] * 3
assert believed == paths, believed

# Events: newest first, per account, by page.
deliver(4)
deliver(5)
assert [e.id for e in v1.events.list().data] == ["evt_5", "evt_4", "evt_3", "evt_1"]
assert [e.id for e in v1.events.list({}, theirs).data] == ["evt_2"]
assert [e.id for e in v1.events.list({"created": {"gte": 4}}).data] == ["evt_5", "evt_4"]
assert [e.id for e in v1.events.list({"limit": 1}).auto_paging_iter()] == ["evt_5", "evt_4", "evt_3", "evt_1"]
page = v1.events.list({"ending_before": "evt_1", "limit": 1})
assert [e.id for e in page.data] == ["evt_3"] and page.has_more
assert [e.id for e in page.auto_paging_iter()] == ["evt_3", "evt_4", "evt_5"]
assert v1.events.list({"types": ["charge.failed"]}).data == []
refused(lambda: v1.events.list({"types": ["*"], "type": "*"}))
refused(lambda: v1.events.list({"limit": 101}), "parameter_invalid_integer")
print("all believed")
