//! Stripe's rules for each object: which states allow which calls, and the errors for the others (state machine).
//!
//! Objects are JSON with the members that billhook and Stripe's tools read. Nothing here has side effects: canceling a
//! PaymentIntent creates no event; a test that needs one delivers it.
//! Source: Stripe's API reference and the official Python library 16.1.0.

use serde_json::{Map, Value, json};

use super::state::{PayerStep, Refusal};

pub(super) type Params = Map<String, Value>;

/// "At most 16 endpoints per account and mode."
pub(super) const ENDPOINTS_MAX: usize = 16;
const LIST_LIMIT_DEFAULT: usize = 10;
const LIST_LIMIT_MAX: usize = 100;
const EVENT_TYPES_MAX: usize = 20;
const METADATA_KEYS_MAX: usize = 50;

const ENDPOINT_CREATE: &[&str] = &[
    "url",
    "enabled_events",
    "connect",
    "api_version",
    "description",
    "metadata",
    "expand",
];
const ENDPOINT_UPDATE: &[&str] = &[
    "url",
    "enabled_events",
    "description",
    "disabled",
    "metadata",
    "expand",
];
const PAGE: &[&str] = &["limit", "starting_after", "ending_before", "expand"];

pub(super) fn text<'v>(of: &'v Value, member: &str) -> &'v str {
    of.get(member).and_then(Value::as_str).unwrap_or_default()
}

fn param<'p>(params: &'p Params, name: &str) -> Option<&'p str> {
    params.get(name).and_then(Value::as_str)
}

fn known(params: &Params, lists: &[&[&str]]) -> Result<(), Refusal> {
    let stranger = params
        .keys()
        .find(|key| !lists.iter().any(|list| list.contains(&key.as_str())));
    stranger.map_or(Ok(()), |key| {
        Err(Refusal::invalid(
            "parameter_unknown",
            key,
            &format!("Received unknown parameter: {key}"),
        ))
    })
}

fn texts(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

/// Adds keys, and removes those with an empty value, as Stripe does.
fn merge_metadata(object: &mut Value, params: &Params) -> Result<(), Refusal> {
    let Some(given) = params.get("metadata") else {
        return Ok(());
    };
    let bad = || Refusal::invalid("parameter_invalid", "metadata", "Invalid metadata");
    let (Some(given), Some(held)) = (
        given.as_object(),
        object.get_mut("metadata").and_then(Value::as_object_mut),
    ) else {
        return Err(bad());
    };
    for (key, value) in given {
        let value = value.as_str().ok_or_else(bad)?;
        if key.len() > 40 || value.len() > 500 {
            return Err(bad());
        }
        if value.is_empty() {
            held.remove(key);
        } else {
            held.insert(key.clone(), json!(value));
        }
    }
    if held.len() > METADATA_KEYS_MAX {
        return Err(bad());
    }
    Ok(())
}

fn set(object: &mut Value, member: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(member.to_owned(), value);
    }
}

fn check_url(url: &str, livemode: bool) -> Result<(), Refusal> {
    let fits = url.starts_with("https://") || (!livemode && url.starts_with("http://"));
    if fits {
        return Ok(());
    }
    Err(Refusal::invalid(
        "url_invalid",
        "url",
        "Invalid URL: An explicit scheme (such as https) must be provided.",
    ))
}

fn apply_endpoint(object: &mut Value, params: &Params, livemode: bool) -> Result<(), Refusal> {
    if let Some(url) = param(params, "url") {
        check_url(url, livemode)?;
        set(object, "url", json!(url));
    }
    if let Some(events) = params.get("enabled_events") {
        let events = texts(events)
            .filter(|list| !list.is_empty())
            .ok_or_else(|| {
                Refusal::invalid("parameter_invalid_empty", "enabled_events", "Invalid array")
            })?;
        set(object, "enabled_events", json!(events));
    }
    if let Some(description) = param(params, "description") {
        set(object, "description", json!(description));
    }
    if let Some(disabled) = param(params, "disabled") {
        let status = if disabled == "true" {
            "disabled"
        } else {
            "enabled"
        };
        set(object, "status", json!(status));
    }
    merge_metadata(object, params)
}

pub(super) fn new_endpoint(
    id: &str,
    params: &Params,
    livemode: bool,
    now_s: i64,
) -> Result<Value, Refusal> {
    known(params, &[ENDPOINT_CREATE])?;
    for required in ["url", "enabled_events"] {
        if !params.contains_key(required) {
            return Err(Refusal::missing_param(required));
        }
    }
    let mut endpoint = json!({
        "id": id,
        "object": "webhook_endpoint",
        "api_version": param(params, "api_version"),
        "application": null,
        "created": now_s,
        "description": null,
        "enabled_events": [],
        "livemode": livemode,
        "metadata": {},
        "status": "enabled",
        "url": "",
    });
    apply_endpoint(&mut endpoint, params, livemode)?;
    Ok(endpoint)
}

/// `connect` and `api_version` cannot be changed after the creation.
pub(super) fn update_endpoint(
    endpoint: &mut Value,
    params: &Params,
    livemode: bool,
) -> Result<(), Refusal> {
    known(params, &[ENDPOINT_UPDATE])?;
    let mut changed = endpoint.clone();
    apply_endpoint(&mut changed, params, livemode)?;
    *endpoint = changed;
    Ok(())
}

pub(super) fn new_intent(
    id: &str,
    params: &Params,
    livemode: bool,
    now_s: i64,
) -> Result<Value, Refusal> {
    let amount: u64 = param(params, "amount")
        .ok_or_else(|| Refusal::missing_param("amount"))?
        .parse()
        .map_err(|_| Refusal::invalid("parameter_invalid_integer", "amount", "Invalid integer"))?;
    let currency = param(params, "currency").ok_or_else(|| Refusal::missing_param("currency"))?;
    let has_method = params.contains_key("payment_method");
    let confirmed = has_method && param(params, "confirm") == Some("true");
    let manual = param(params, "capture_method") == Some("manual");
    let status = match (has_method, confirmed, manual) {
        (false, _, _) => "requires_payment_method",
        (true, false, _) => "requires_confirmation",
        (true, true, true) => "requires_capture",
        (true, true, false) => "succeeded",
    };
    let mut intent = json!({
        "id": id,
        "object": "payment_intent",
        "amount": amount,
        "amount_received": if status == "succeeded" { amount } else { 0 },
        "canceled_at": null,
        "cancellation_reason": null,
        "client_secret": format!("{id}_secret_local"),
        "created": now_s,
        "currency": currency.to_ascii_lowercase(),
        "livemode": livemode,
        "metadata": {},
        "next_action": null,
        "status": status,
    });
    merge_metadata(&mut intent, params)?;
    Ok(intent)
}

/// `of_a_session`: a PaymentIntent of a Checkout Session, in whichever state that is, can be canceled only while it waits
/// for capture.
pub(super) fn cancel_intent(
    intent: &mut Value,
    of_a_session: bool,
    params: &Params,
    now_s: i64,
) -> Result<(), Refusal> {
    let reason = param(params, "cancellation_reason");
    let reasons = [
        "abandoned",
        "duplicate",
        "fraudulent",
        "requested_by_customer",
    ];
    if reason.is_some_and(|given| !reasons.contains(&given)) {
        return Err(Refusal::invalid(
            "parameter_invalid",
            "cancellation_reason",
            "Invalid cancellation_reason",
        ));
    }
    let status = text(intent, "status").to_owned();
    let allowed = match status.as_str() {
        "requires_capture" => true,
        "requires_payment_method" | "requires_confirmation" | "requires_action" => !of_a_session,
        _ => false,
    };
    if !allowed {
        return Err(Refusal::unexpected_state(
            intent,
            &format!("You cannot cancel this PaymentIntent because it has a status of {status}."),
        ));
    }
    end_intent(intent, reason, now_s);
    Ok(())
}

fn end_intent(intent: &mut Value, reason: Option<&str>, now_s: i64) {
    set(intent, "status", json!("canceled"));
    set(intent, "canceled_at", json!(now_s));
    set(intent, "cancellation_reason", json!(reason));
}

pub(super) fn new_session(
    id: &str,
    params: &Params,
    livemode: bool,
    now_s: i64,
) -> Result<Value, Refusal> {
    let mode = param(params, "mode").ok_or_else(|| Refusal::missing_param("mode"))?;
    let mut session = json!({
        "id": id,
        "object": "checkout.session",
        "amount_total": null,
        "client_reference_id": param(params, "client_reference_id"),
        "created": now_s,
        "currency": null,
        "expires_at": now_s.saturating_add(24 * 3600),
        "livemode": livemode,
        "metadata": {},
        "mode": mode,
        "payment_intent": null,
        "payment_status": "unpaid",
        "status": "open",
        "url": format!("https://checkout.invalid/{id}"),
    });
    merge_metadata(&mut session, params)?;
    Ok(session)
}

pub(super) fn expire_session(session: &mut Value) -> Result<(), Refusal> {
    let status = text(session, "status").to_owned();
    if status != "open" {
        return Err(Refusal::plain(
            400,
            &format!(
                "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status of {status}."
            ),
        ));
    }
    set(session, "status", json!("expired"));
    Ok(())
}

/// An expired session cancels its PaymentIntent, if that is still possible.
pub(super) fn expire_intent(intent: &mut Value, now_s: i64) {
    if !matches!(
        text(intent, "status"),
        "succeeded" | "processing" | "canceled"
    ) {
        end_intent(intent, Some("expired"), now_s);
    }
}

impl PayerStep {
    /// The status of the PaymentIntent after it, and the type of the next action.
    fn leads_to(self) -> (&'static str, Option<&'static str>) {
        let waits = "requires_action";
        match self {
            Self::Redirect => (waits, Some("redirect_to_url")),
            Self::ThreeDSecure => (waits, Some("use_stripe_sdk")),
            Self::Oxxo => (waits, Some("oxxo_display_details")),
            Self::Boleto => (waits, Some("boleto_display_details")),
            Self::Konbini => (waits, Some("konbini_display_details")),
            Self::Multibanco => (waits, Some("multibanco_display_details")),
            Self::BankTransfer => (waits, Some("display_bank_transfer_instructions")),
            Self::Microdeposits => (waits, Some("verify_with_microdeposits")),
            Self::Debit => ("processing", None),
            Self::Pay => ("succeeded", None),
            Self::Fail => ("requires_payment_method", None),
        }
    }
}

pub(super) fn act_on_intent(
    intent: &mut Value,
    does: PayerStep,
    now_s: i64,
) -> Result<(), Refusal> {
    let status = text(intent, "status");
    if matches!(status, "succeeded" | "canceled") {
        let message = format!("This PaymentIntent has a status of {status}.");
        return Err(Refusal::unexpected_state(intent, &message));
    }
    let (status, action) = does.leads_to();
    set(intent, "status", json!(status));
    set(
        intent,
        "next_action",
        action.map_or(Value::Null, |action| json!({ "type": action, action: {} })),
    );
    match does {
        PayerStep::Pay => {
            let amount = intent.get("amount").cloned().unwrap_or_default();
            set(intent, "amount_received", amount);
        }
        PayerStep::Fail => {
            let error = json!({ "type": "card_error", "code": "payment_intent_payment_attempt_failed",
                "message": "The payment failed.", "created": now_s });
            set(intent, "last_payment_error", error);
        }
        _ => {}
    }
    Ok(())
}

/// How the money of a destination charge arrives: a charge on the connected account, made by the transfer, without a
/// PaymentIntent.
///
/// Source: `source_transfer` of `stripe-python` 16.1.0 `_charge.py`.
pub(super) fn transferred_charge(intent: &Value) -> Option<(String, Value)> {
    let account = intent.pointer("/transfer_data/destination")?.as_str()?;
    let is_paid = text(intent, "status") == "succeeded";
    let id = text(intent, "id").strip_prefix("pi_")?;
    let amount = intent.get("amount_received")?;
    let charge = json!({ "id": format!("py_{id}"), "object": "charge", "status": "succeeded", "captured": true,
        "amount": amount, "amount_captured": amount, "amount_refunded": 0, "refunded": false,
        "currency": intent.get("currency"), "payment_intent": null, "source_transfer": format!("tr_{id}"),
        "livemode": intent.get("livemode"), "created": intent.get("created"), "metadata": {} });
    is_paid.then(|| (account.to_owned(), charge))
}

pub(super) fn act_on_session(session: &mut Value, does: PayerStep) -> Result<(), Refusal> {
    let status = text(session, "status");
    if status == "expired" {
        return Err(Refusal::plain(400, "This Checkout Session is expired."));
    }
    match does {
        PayerStep::Redirect | PayerStep::ThreeDSecure | PayerStep::Fail => {}
        PayerStep::Pay => {
            set(session, "status", json!("complete"));
            set(session, "payment_status", json!("paid"));
        }
        PayerStep::Oxxo
        | PayerStep::Boleto
        | PayerStep::Konbini
        | PayerStep::Multibanco
        | PayerStep::BankTransfer
        | PayerStep::Microdeposits
        | PayerStep::Debit => {
            set(session, "status", json!("complete"));
            set(session, "payment_status", json!("unpaid"));
        }
    }
    Ok(())
}

/// The filter of a list. Source of the parameters: `stripe-python` 16.1.0, `params/_charge_list_params.py` and its
/// neighbours. Charges have no filter `charge`, and PaymentIntents none by id.
pub(super) fn filter(kind: &str, params: &Params) -> Result<Filter, Refusal> {
    let own: &[&str] = match kind {
        "event" => &["created", "type", "types"],
        "checkout.session" => &["payment_intent", "status", "created"],
        "payment_intent" => &["created", "customer"],
        "charge" => &["created", "customer", "payment_intent", "transfer_group"],
        "refund" | "dispute" => &["charge", "created", "payment_intent"],
        _ => &[],
    };
    known(params, &[PAGE, own])?;
    let types = match (params.get("type"), params.get("types")) {
        (Some(_), Some(_)) => {
            return Err(Refusal::plain(
                400,
                "You may only specify one of these parameters: type, types.",
            ));
        }
        (Some(one), None) => vec![one.as_str().unwrap_or_default().to_owned()],
        (None, Some(many)) => texts(many)
            .unwrap_or_default()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        (None, None) => Vec::new(),
    };
    if types.len() > EVENT_TYPES_MAX {
        return Err(Refusal::invalid(
            "parameter_invalid",
            "types",
            "Too many types: at most 20",
        ));
    }
    let mut bounds = Vec::new();
    match params.get("created") {
        Some(Value::String(at)) => bounds.push(("eq".to_owned(), seconds(at)?)),
        Some(Value::Object(map)) => {
            for (how, at) in map {
                bounds.push((how.clone(), seconds(at.as_str().unwrap_or_default())?));
            }
        }
        _ => {}
    }
    // Of each kind, all that do not stand above.
    let equal = own
        .iter()
        .filter(|name| !["created", "type", "types"].contains(name))
        .filter_map(|name| Some(((*name).to_owned(), param(params, name)?.to_owned())))
        .collect();
    Ok(Filter {
        types,
        bounds,
        equal,
    })
}

fn seconds(at: &str) -> Result<i64, Refusal> {
    at.parse()
        .map_err(|_| Refusal::invalid("parameter_invalid_integer", "created", "Invalid integer"))
}

pub(super) struct Filter {
    types: Vec<String>,
    bounds: Vec<(String, i64)>,
    equal: Vec<(String, String)>,
}

impl Filter {
    pub(super) fn takes(&self, object: &Value) -> bool {
        let created = object.get("created").and_then(Value::as_i64).unwrap_or(0);
        let kind = text(object, "type");
        (self.types.is_empty() || self.types.iter().any(|t| type_matches(t, kind)))
            && self.bounds.iter().all(|(how, at)| match how.as_str() {
                "gt" => created > *at,
                "gte" => created >= *at,
                "lt" => created < *at,
                "lte" => created <= *at,
                _ => created == *at,
            })
            && self
                .equal
                .iter()
                .all(|(name, value)| text(object, name) == value)
    }
}

/// `*` means all types, `charge.*` all of one kind.
pub(super) fn type_matches(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => kind.starts_with(prefix),
        None => pattern == kind,
    }
}

/// One page of `newest_first`.
pub(super) fn page(newest_first: &[Value], params: &Params) -> Result<(Vec<Value>, bool), Refusal> {
    let limit = match param(params, "limit") {
        None => LIST_LIMIT_DEFAULT,
        Some(given) => given
            .parse()
            .ok()
            .filter(|limit| (1..=LIST_LIMIT_MAX).contains(limit))
            .ok_or_else(|| {
                Refusal::invalid(
                    "parameter_invalid_integer",
                    "limit",
                    "This value must be between 1 and 100",
                )
            })?,
    };
    let find = |name: &str| match param(params, name) {
        None => Ok(None),
        Some(id) => newest_first
            .iter()
            .position(|object| text(object, "id") == id)
            .map(Some)
            .ok_or_else(|| {
                Refusal::invalid("resource_missing", name, &format!("No such object: '{id}'"))
            }),
    };
    let window = match (find("starting_after")?, find("ending_before")?) {
        (Some(_), Some(_)) => {
            return Err(Refusal::plain(
                400,
                "You may only specify one of these parameters: ending_before, starting_after.",
            ));
        }
        (Some(at), None) => at.saturating_add(1)..newest_first.len(),
        (None, Some(at)) => at.saturating_sub(limit)..at,
        (None, None) => 0..newest_first.len(),
    };
    let has_more = if params.contains_key("ending_before") {
        window.start > 0
    } else {
        window.len() > limit
    };
    let rows = newest_first
        .iter()
        .skip(window.start)
        .take(window.len().min(limit));
    Ok((rows.cloned().collect(), has_more))
}
