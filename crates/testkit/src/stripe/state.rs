//! State of the local Stripe: keys, accounts, idempotency keys and planned faults; `objects` has the rules of each
//! object. It has no sockets and no clock, so a call is a pure function of state and request.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::objects::{self, ENDPOINTS_MAX, Params, text};
use super::{Config, form};

/// The account of every key.
const PLATFORM_ACCOUNT: &str = "acct_platform";

#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) key: String,
    pub(super) account: Option<String>,
    pub(super) idempotency_key: Option<String>,
    pub(super) body: String,
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) headers: Vec<(&'static str, String)>,
}

/// A planned fault; each fault is for one request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fault {
    /// The status of the answer; `None` closes the connection without an answer.
    pub status: Option<u16>,
    pub code: Option<String>,
    /// The `Stripe-Should-Retry` header.
    pub should_retry: Option<bool>,
    /// True if the request takes effect (and its answer is saved for its idempotency key) before it fails.
    pub carried_out: bool,
    /// The number of requests that succeed first.
    pub after: u32,
}

/// What happens to a payment outside our calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayerAction {
    /// None is the platform.
    #[serde(default)]
    pub account: Option<String>,
    #[serde(default)]
    pub livemode: bool,
    /// A PaymentIntent or a Checkout Session.
    pub of: String,
    pub does: PayerStep,
}

/// A step of a payment. A voucher, transfer or debit completes its session unpaid; a page keeps it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayerStep {
    /// Is before the bank's page: `redirect_to_url`.
    Redirect,
    /// Is before 3-D Secure in the application's own page: `use_stripe_sdk`.
    ThreeDSecure,
    /// Holds a voucher, to be paid in a shop or at a bank.
    Oxxo,
    Boleto,
    Konbini,
    Multibanco,
    /// Has the instructions of a bank transfer.
    BankTransfer,
    /// Waits for the micro-deposits that verify the account of a debit.
    Microdeposits,
    /// The bank is debited: `processing`.
    Debit,
    /// The money came.
    Pay,
    /// The voucher or the debit failed, or the page was refused.
    Fail,
}

/// An error answer. It is saved for its idempotency key only if Stripe had started to execute the request.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    kind: &'static str,
    code: Option<String>,
    param: Option<String>,
    message: String,
    payment_intent: Option<Box<Value>>,
}

impl Refusal {
    pub(super) fn plain(status: u16, message: &str) -> Self {
        Self {
            status,
            kind: "invalid_request_error",
            code: None,
            param: None,
            message: message.to_owned(),
            payment_intent: None,
        }
    }

    pub(super) fn invalid(code: &str, param: &str, message: &str) -> Self {
        Self {
            code: Some(code.to_owned()),
            param: Some(param.to_owned()),
            ..Self::plain(400, message)
        }
    }

    pub(super) fn missing_param(param: &str) -> Self {
        let message = format!("Missing required param: {param}.");
        Self::invalid("parameter_missing", param, &message)
    }

    pub(super) fn unexpected_state(intent: &Value, message: &str) -> Self {
        Self {
            code: Some("payment_intent_unexpected_state".to_owned()),
            payment_intent: Some(Box::new(intent.clone())),
            ..Self::plain(400, message)
        }
    }

    fn no_such(kind: &str, id: &str) -> Self {
        Self {
            status: 404,
            ..Self::invalid("resource_missing", "id", &format!("No such {kind}: '{id}'"))
        }
    }

    fn is_saved(&self) -> bool {
        self.payment_intent.is_some()
    }

    fn answer(self) -> Answer {
        let mut error = Map::from_iter([
            ("type".to_owned(), json!(self.kind)),
            ("message".to_owned(), json!(self.message)),
        ]);
        error.extend(self.code.map(|code| ("code".to_owned(), json!(code))));
        error.extend(self.param.map(|param| ("param".to_owned(), json!(param))));
        error.extend(
            self.payment_intent
                .map(|intent| ("payment_intent".to_owned(), *intent)),
        );
        Answer {
            status: self.status,
            body: json!({ "error": error }),
            headers: Vec::new(),
        }
    }
}

/// Live and test data are separate, and so are the data of two accounts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Space {
    livemode: bool,
    account: Option<String>,
}

/// The parts of an endpoint that its object does not show.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Hidden {
    pub(super) secret: String,
    pub(super) connect: bool,
}

/// The receiver of an event.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) id: String,
    pub(super) url: String,
    pub(super) secret: String,
}

#[derive(Default)]
pub(super) struct State {
    config: Config,
    spaces: HashMap<Space, Vec<Value>>,
    hidden: HashMap<String, Hidden>,
    saved: HashMap<(Space, String), (String, Answer)>,
    faults: VecDeque<Fault>,
    /// Connected accounts that our key has no access to.
    refusing: BTreeSet<String>,
    /// What each restricted key may do: a resource, and whether it may be written.
    restricted: BTreeMap<String, BTreeMap<String, bool>>,
    calls: Vec<String>,
    ids: u64,
    second: (i64, u32),
}

impl State {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    pub(super) fn refuse(&mut self, account: &str, refuses: bool) {
        match refuses {
            true => self.refusing.insert(account.to_owned()),
            false => self.refusing.remove(account),
        };
    }

    /// The customer of a payment or session does something, or a bank says how it went.
    pub(super) fn act(&mut self, action: &PayerAction, now_s: i64) -> Result<Value, String> {
        let space = Space {
            livemode: action.livemode,
            account: action.account.clone(),
        };
        let of_session = self.objects(&space, "checkout.session").find(|session| {
            let session_id = text(session, "id");
            session_id == action.of || text(session, "payment_intent") == action.of
        });
        let session = of_session.map(|session| text(session, "id").to_owned());
        let intent = of_session.map_or(action.of.as_str(), |session| {
            text(session, "payment_intent")
        });
        let intent = intent.to_owned();
        let refused = |refusal: Refusal| refusal.message;
        let does = action.does;
        let changed = self.change(&space, "payment_intent", &intent, |intent| {
            objects::act_on_intent(intent, does, now_s)
        });
        let changed = changed.map_err(refused)?;
        if let Some((account, arrived)) = objects::transferred_charge(&changed) {
            self.put(Some(&account), arrived);
        }
        if let Some(session) = session {
            self.change(&space, "checkout.session", &session, |session| {
                objects::act_on_session(session, does)
            })
            .map_err(refused)?;
        }
        Ok(changed)
    }

    pub(super) fn add_fault(&mut self, fault: Fault) {
        self.faults.push_back(fault);
    }

    /// Answers one call; `None` closes the connection.
    pub(super) fn answer(&mut self, call: &Call, now_s: i64) -> Option<Answer> {
        let request_id = self.next_id("req_local");
        self.calls.push(format!("{} {}", call.method, call.path));
        let fault = self.due_fault();
        let mut answer = match fault {
            Some(fault) => {
                if fault.carried_out {
                    self.checked(call, now_s);
                }
                fault_answer(&fault)?
            }
            None => self.checked(call, now_s),
        };
        answer.headers.push(("request-id", request_id));
        Some(answer)
    }

    /// Accepts a key. A restricted one may write what stands here with `true`, read what stands with `false`, and do nothing
    /// else; a resource is the first part of its path, such as `payment_intents`.
    pub(super) fn admit_key(&mut self, key: &str, restrictions: Option<&[(&str, bool)]>) {
        self.revoke_key(key);
        self.config.keys.push(key.to_owned());
        if let Some(allowed) = restrictions {
            let allowed = allowed
                .iter()
                .map(|(resource, writes)| ((*resource).to_owned(), *writes));
            self.restricted.insert(key.to_owned(), allowed.collect());
        }
    }

    /// From now on the key is unknown (401).
    pub(super) fn revoke_key(&mut self, key: &str) {
        self.config.keys.retain(|known| known != key);
        self.restricted.remove(key);
    }

    fn find_missing_permission(&self, call: &Call) -> Option<Refusal> {
        let allowed = self.restricted.get(&call.key)?;
        let resource = call.path.split('/').nth(2).unwrap_or_default();
        let writes = call.method != "GET";
        if allowed
            .get(resource)
            .is_some_and(|may_write| *may_write || !writes)
        {
            return None;
        }
        let level = if writes { "write" } else { "read" };
        Some(Refusal::plain(
            403,
            &format!(
                "The provided key 'rk_test_*****' does not have the required permissions for this endpoint on account 'acct_local'. Having the 'rak_{resource}_{level}' permission would allow this request to continue."
            ),
        ))
    }

    fn due_fault(&mut self) -> Option<Fault> {
        let first = self.faults.front_mut()?;
        if first.after > 0 {
            first.after -= 1;
            return None;
        }
        self.faults.pop_front()
    }

    fn checked(&mut self, call: &Call, now_s: i64) -> Answer {
        if !self.config.keys.contains(&call.key) {
            return Refusal::plain(401, "Invalid API Key provided: *****").answer();
        }
        if let Some(refusal) = self.find_missing_permission(call) {
            return refusal.answer();
        }
        if let Some(limit) = self.config.requests_per_second {
            let (second, used) = self.second;
            self.second = (
                now_s,
                if second == now_s {
                    used.saturating_add(1)
                } else {
                    1
                },
            );
            if self.second.1 > limit {
                let refusal = Refusal {
                    code: Some("rate_limit".to_owned()),
                    ..Refusal::plain(429, "Request rate limit exceeded.")
                };
                let mut answer = refusal.answer();
                answer
                    .headers
                    .push(("stripe-rate-limited-reason", "global-rate".to_owned()));
                return answer;
            }
        }
        if let Some(account) = call.account.as_ref()
            && self.refusing.contains(account)
        {
            let message = format!(
                "The provided key does not have access to account '{account}' (or that account does not exist). Application access may have been revoked."
            );
            let refusal = Refusal {
                code: Some("account_invalid".to_owned()),
                ..Refusal::plain(403, &message)
            };
            return refusal.answer();
        }
        let space = Space {
            livemode: call.key.contains("_live_"),
            account: call.account.clone(),
        };
        match (&call.idempotency_key, call.method.as_str()) {
            (Some(key), "POST") => self.once(call, &space, key.clone(), now_s),
            _ => self
                .execute_plan(call, &space, now_s)
                .unwrap_or_else(Refusal::answer),
        }
    }

    /// The same key with the same parameters returns the saved answer; with other parameters it is an error.
    fn once(&mut self, call: &Call, space: &Space, key: String, now_s: i64) -> Answer {
        let request = format!("{} {}", call.path, call.body);
        let slot = (space.clone(), key);
        if let Some((first, answer)) = self.saved.get(&slot) {
            if *first != request {
                let message = format!(
                    "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '{}' if you meant to execute a different request.",
                    slot.1
                );
                return Refusal {
                    kind: "idempotency_error",
                    ..Refusal::plain(400, &message)
                }
                .answer();
            }
            let mut answer = answer.clone();
            answer
                .headers
                .push(("idempotent-replayed", "true".to_owned()));
            return answer;
        }
        let (saved, answer) = match self.execute_plan(call, space, now_s) {
            Ok(answer) => (true, answer),
            Err(refusal) => (refusal.is_saved(), refusal.answer()),
        };
        if saved {
            self.saved.insert(slot, (request, answer.clone()));
        }
        answer
    }

    fn execute_plan(&mut self, call: &Call, space: &Space, now_s: i64) -> Result<Answer, Refusal> {
        let source = if call.method == "POST" {
            &call.body
        } else {
            &call.query
        };
        let params =
            form::parse(source).ok_or_else(|| Refusal::plain(400, "Invalid request body"))?;
        let path: Vec<&str> = call.path.trim_matches('/').split('/').collect();
        let live = space.livemode;
        let body = match (call.method.as_str(), path.as_slice()) {
            ("POST", ["v1", "webhook_endpoints"]) => self.create_endpoint(space, &params, now_s),
            ("POST", ["v1", "webhook_endpoints", id]) => {
                self.change(space, "webhook_endpoint", id, |endpoint| {
                    objects::update_endpoint(endpoint, &params, live)
                })
            }
            ("DELETE", ["v1", "webhook_endpoints", id]) => self.delete_endpoint(space, id),
            ("POST", ["v1", "payment_intents"]) => {
                let id = self.next_id("pi_local");
                self.add(space, objects::new_intent(&id, &params, live, now_s)?)
            }
            ("POST", ["v1", "payment_intents", id, "cancel"]) => {
                let of_a_session = self.has_session(space, id);
                self.change(space, "payment_intent", id, |intent| {
                    objects::cancel_intent(intent, of_a_session, &params, now_s)
                })
            }
            ("POST", ["v1", "checkout", "sessions"]) => self.create_session(space, &params, now_s),
            ("POST", ["v1", "checkout", "sessions", id, "expire"]) => {
                let session =
                    self.change(space, "checkout.session", id, objects::expire_session)?;
                self.change(
                    space,
                    "payment_intent",
                    text(&session, "payment_intent"),
                    |intent| {
                        objects::expire_intent(intent, now_s);
                        Ok(())
                    },
                )
                .ok();
                Ok(session)
            }
            ("GET", ["v1", "checkout", "sessions"]) => {
                self.list(space, "checkout.session", &call.path, &params)
            }
            // Of the key, or of the connected account that is acted for.
            ("GET", ["v1", "account"]) => {
                let id = space.account.as_deref().unwrap_or(PLATFORM_ACCOUNT);
                Ok(json!({ "id": id, "object": "account" }))
            }
            ("GET", ["v1", kind]) if object_name(kind).is_some() => {
                let kind = object_name(kind).unwrap_or_default();
                self.list(space, kind, &call.path, &params)
            }
            ("GET", ["v1", "checkout", "sessions", id]) => self.get(space, "checkout.session", id),
            ("GET", ["v1", kind, id]) if object_name(kind).is_some() => {
                self.get(space, object_name(kind).unwrap_or_default(), id)
            }
            (method, _) => Err(Refusal::plain(
                404,
                &format!("Unrecognized request URL ({method}: {}).", call.path),
            )),
        }?;
        Ok(Answer {
            status: 200,
            body,
            headers: Vec::new(),
        })
    }

    fn next_id(&mut self, prefix: &str) -> String {
        self.ids = self.ids.saturating_add(1);
        format!("{prefix}{:08}", self.ids)
    }

    fn add(&mut self, space: &Space, object: Value) -> Result<Value, Refusal> {
        self.spaces
            .entry(space.clone())
            .or_default()
            .push(object.clone());
        Ok(object)
    }

    fn objects(&self, space: &Space, kind: &str) -> impl Iterator<Item = &Value> {
        self.spaces
            .get(space)
            .into_iter()
            .flatten()
            .filter(move |object| text(object, "object") == kind)
    }

    fn get(&self, space: &Space, kind: &str, id: &str) -> Result<Value, Refusal> {
        self.objects(space, kind)
            .find(|object| text(object, "id") == id)
            .cloned()
            .ok_or_else(|| Refusal::no_such(kind, id))
    }

    fn change(
        &mut self,
        space: &Space,
        kind: &str,
        id: &str,
        how: impl FnOnce(&mut Value) -> Result<(), Refusal>,
    ) -> Result<Value, Refusal> {
        let object = self
            .spaces
            .get_mut(space)
            .into_iter()
            .flatten()
            .find(|object| text(object, "object") == kind && text(object, "id") == id)
            .ok_or_else(|| Refusal::no_such(kind, id))?;
        how(object)?;
        Ok(object.clone())
    }

    fn list(
        &self,
        space: &Space,
        kind: &str,
        url: &str,
        params: &Params,
    ) -> Result<Value, Refusal> {
        let filter = objects::filter(kind, params)?;
        let mut rows: Vec<Value> = self
            .objects(space, kind)
            .filter(|object| filter.takes(object))
            .cloned()
            .collect();
        rows.reverse();
        rows.sort_by_key(|row| {
            std::cmp::Reverse(row.get("created").and_then(Value::as_i64).unwrap_or(0))
        });
        let (data, has_more) = objects::page(&rows, params)?;
        Ok(json!({"object": "list", "url": url, "has_more": has_more, "data": data}))
    }

    fn create_endpoint(
        &mut self,
        space: &Space,
        params: &Params,
        now_s: i64,
    ) -> Result<Value, Refusal> {
        let id = self.next_id("we_local");
        let endpoint = objects::new_endpoint(&id, params, space.livemode, now_s)?;
        if self.objects(space, "webhook_endpoint").count() >= ENDPOINTS_MAX {
            let mode = if space.livemode { "live" } else { "test" };
            return Err(Refusal::plain(
                400,
                &format!(
                    "You have reached the maximum of {ENDPOINTS_MAX} {mode} webhook endpoints."
                ),
            ));
        }
        let hidden = Hidden {
            secret: format!("whsec_{}", self.next_id("local")),
            connect: params.get("connect").and_then(Value::as_str) == Some("true"),
        };
        let mut shown = self.add(space, endpoint)?;
        // Only this answer contains the secret.
        if let Some(map) = shown.as_object_mut() {
            map.insert("secret".to_owned(), json!(hidden.secret));
        }
        self.hidden.insert(id, hidden);
        Ok(shown)
    }

    fn delete_endpoint(&mut self, space: &Space, id: &str) -> Result<Value, Refusal> {
        self.get(space, "webhook_endpoint", id)?;
        if let Some(objects) = self.spaces.get_mut(space) {
            objects.retain(|object| text(object, "id") != id);
        }
        self.hidden.remove(id);
        Ok(json!({"id": id, "object": "webhook_endpoint", "deleted": true}))
    }

    /// A session in payment mode creates its PaymentIntent at once, with the price of the first line if there is one.
    fn create_session(
        &mut self,
        space: &Space,
        params: &Params,
        now_s: i64,
    ) -> Result<Value, Refusal> {
        let id = self.next_id("cs_test_local");
        let mut session = objects::new_session(&id, params, space.livemode, now_s)?;
        if text(&session, "mode") == "payment" {
            let price = params
                .get("line_items")
                .and_then(|items| items.pointer("/0/price_data"));
            let (amount, currency) = price.map_or(("1000", "usd"), |price| {
                (text(price, "unit_amount"), text(price, "currency"))
            });
            let intent_id = self.next_id("pi_local");
            let wanted = Params::from_iter([
                ("amount".to_owned(), json!(amount)),
                ("currency".to_owned(), json!(currency)),
            ]);
            let intent = objects::new_intent(&intent_id, &wanted, space.livemode, now_s)?;
            if let Some(map) = session.as_object_mut() {
                for (of_session, of_intent) in
                    [("amount_total", "amount"), ("currency", "currency")]
                {
                    map.insert(
                        of_session.to_owned(),
                        intent.get(of_intent).cloned().unwrap_or_default(),
                    );
                }
                map.insert("payment_intent".to_owned(), json!(intent_id));
            }
            self.add(space, intent)?;
        }
        self.add(space, session)
    }

    fn has_session(&self, space: &Space, intent: &str) -> bool {
        self.objects(space, "checkout.session")
            .any(|session| text(session, "payment_intent") == intent)
    }

    /// Stores any object in any state and replaces one with the same id; for states that calls alone cannot reach.
    pub(super) fn put(&mut self, account: Option<&str>, object: Value) {
        let space = Space {
            livemode: object.get("livemode").and_then(Value::as_bool) == Some(true),
            account: account.map(str::to_owned),
        };
        let objects = self.spaces.entry(space).or_default();
        objects.retain(|held| text(held, "id") != text(&object, "id"));
        objects.push(object);
    }

    /// The endpoints that subscribe to this event: the platform's for an event without `account`, the Connect ones for
    /// an event with one. As at Stripe, a live Connect endpoint gets test events too.
    pub(super) fn targets(&self, event: &Value, only: Option<&str>) -> Vec<Target> {
        let of_account = event.get("account").is_some_and(Value::is_string);
        let live_event = event.get("livemode").and_then(Value::as_bool) == Some(true);
        let kind = text(event, "type");
        let mut targets = Vec::new();
        for livemode in [false, true] {
            let space = Space {
                livemode,
                account: None,
            };
            for endpoint in self.objects(&space, "webhook_endpoint") {
                let id = text(endpoint, "id");
                let Some(hidden) = self.hidden.get(id) else {
                    continue;
                };
                let wants = endpoint
                    .get("enabled_events")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .any(|pattern| objects::type_matches(pattern, kind));
                let fits_mode = livemode == live_event || (livemode && hidden.connect);
                if wants
                    && fits_mode
                    && hidden.connect == of_account
                    && text(endpoint, "status") == "enabled"
                    && only.is_none_or(|only| only == id)
                {
                    targets.push(Target {
                        id: id.to_owned(),
                        url: text(endpoint, "url").to_owned(),
                        secret: hidden.secret.clone(),
                    });
                }
            }
        }
        targets
    }

    /// The whole state, including the secrets, which are test data.
    pub(super) fn snapshot(&self) -> Value {
        let spaces: Vec<Value> = self
            .spaces
            .iter()
            .map(|(space, objects)| {
                json!({"livemode": space.livemode, "account": space.account, "objects": objects})
            })
            .collect();
        json!({"spaces": spaces, "endpoints": self.hidden, "calls": self.calls})
    }
}

fn object_name(path: &str) -> Option<&'static str> {
    match path {
        "webhook_endpoints" => Some("webhook_endpoint"),
        "payment_intents" => Some("payment_intent"),
        "charges" => Some("charge"),
        "refunds" => Some("refund"),
        "disputes" => Some("dispute"),
        "events" => Some("event"),
        _ => None,
    }
}

fn fault_answer(fault: &Fault) -> Option<Answer> {
    let refusal = Refusal {
        kind: "api_error",
        code: fault.code.clone(),
        ..Refusal::plain(fault.status?, "A fault ordered by the test.")
    };
    let mut answer = refusal.answer();
    answer.headers.extend(
        fault
            .should_retry
            .map(|retry| ("stripe-should-retry", retry.to_string())),
    );
    Some(answer)
}
