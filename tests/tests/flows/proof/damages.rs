//! Twelve kinds of damage to an order's rows, and what a proof has to say of each.

use super::super::*;
use super::clones::{Item, OrderRows, members, set_text};
use super::templates::{TemplateOrders, token};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DamageKind {
    ColumnEdited,
    ColumnRemoved,
    RowOverwritten,
    FactDropped,
    FactAltered,
    StateMissing,
    OutcomeAltered,
    EdgeElsewhere,
    AmountMisread,
    TenantChanged,
    TimelineCut,
    EntityDoubled,
}

use DamageKind::*;

pub(super) const DAMAGES: [DamageKind; 12] = [
    ColumnEdited,
    ColumnRemoved,
    RowOverwritten,
    FactDropped,
    FactAltered,
    StateMissing,
    OutcomeAltered,
    EdgeElsewhere,
    AmountMisread,
    TenantChanged,
    TimelineCut,
    EntityDoubled,
];

/// What is left of an order's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EventsLeft {
    All,
    /// Without the first.
    Some,
    None,
}

impl EventsLeft {
    /// A third of the orders have lost events.
    pub(super) fn of(number: usize) -> Self {
        match number % 6 {
            0..4 => Self::All,
            4 => Self::Some,
            _ => Self::None,
        }
    }

    pub(super) fn apply(self, rows: &mut OrderRows) {
        match self {
            Self::All => {}
            Self::Some => drop(rows.events.pop_first()),
            Self::None => rows.events.clear(),
        }
    }
}

/// What a proof has to name.
pub(super) struct ExpectedFinding {
    pub(super) state: String,
    /// How the place begins.
    pub(super) place: &'static str,
    pub(super) result: &'static str,
}

/// An order before and after its damage.
pub(super) struct DamagedOrder {
    pub(super) damage: DamageKind,
    /// One of two variants of the damage.
    pub(super) variant: usize,
    pub(super) events_left: EventsLeft,
    /// Everything as it should be, and as it was planted, without the events that are gone.
    pub(super) before: OrderRows,
    pub(super) after: OrderRows,
}

impl DamagedOrder {
    /// The damage of a number, each kind with every template, with and without events, in both variants.
    pub(super) fn plant(templates: &TemplateOrders, number: usize, days: u64) -> Self {
        let damage = DAMAGES[number % DAMAGES.len()];
        let round = number / DAMAGES.len();
        let variant = (round / 24) % 2;
        let is_everywhere = Self::is_everywhere_of(damage, variant);
        let kind = match damage {
            _ if is_everywhere => 0,
            TenantChanged => 1,
            _ => round % templates.kinds.len(),
        };
        let events_left = match damage {
            OutcomeAltered => EventsLeft::All,
            _ => EventsLeft::of(round / templates.kinds.len()),
        };
        let template = &templates.kinds[kind];
        let token = token(['A', 'B', 'C', 'D'][kind], number + 1);
        let mut before = template.rows.clone_as(&token, days);
        events_left.apply(&mut before);
        let mut after = before.clone();
        if is_everywhere {
            let written = match damage {
                FactDropped => &templates.dropped,
                FactAltered => &templates.altered,
                _ => &templates.misread,
            };
            let written = written.clone_as(&token, days);
            after.order = written.order;
            after.states = written.states;
        }
        let mut planted = Self {
            damage,
            variant,
            events_left,
            before,
            after,
        };
        if !is_everywhere {
            planted.damage_rows(template.older.clone(), &template.rows.token);
        }
        planted
    }

    fn is_everywhere_of(damage: DamageKind, variant: usize) -> bool {
        match damage {
            AmountMisread => true,
            FactDropped | FactAltered => variant == 1,
            _ => false,
        }
    }

    /// Whether the state, its copies and the row agree, as a release that reads otherwise would have written them.
    pub(super) fn is_everywhere(&self) -> bool {
        Self::is_everywhere_of(self.damage, self.variant)
    }

    /// Whether a person has to decide: which of two is right, or whose it is. Then nothing else about it is mended.
    pub(super) fn is_undecided(&self) -> bool {
        match (self.damage, self.variant) {
            (TenantChanged, _) | (EdgeElsewhere, 1) => true,
            (FactAltered, 0) => self.events_left == EventsLeft::None,
            _ => false,
        }
    }

    /// Does by hand what was decided: the row's tenant and what a backup has.
    pub(super) fn decide(&self) -> OrderRows {
        let mut decided = self.after.clone();
        match self.damage {
            TenantChanged => decided.order = self.before.order.clone(),
            _ => decided.states = self.before.states.clone(),
        }
        decided
    }

    /// Whether only Stripe's own objects show it.
    pub(super) fn is_only_at_stripe(&self) -> bool {
        self.is_everywhere() && self.events_left == EventsLeft::None
    }

    pub(super) fn what(&self) -> String {
        let Self {
            damage,
            variant,
            events_left,
            ..
        } = self;
        format!(
            "{damage:?}/{variant} with events {events_left:?} ({})",
            self.token()
        )
    }

    pub(super) fn token(&self) -> &str {
        &self.before.token
    }

    fn damage_rows(&mut self, mut older: Item, template: &str) {
        let rows = &mut self.after;
        let charge = rows.payment_key("#ch_");
        match (self.damage, self.variant) {
            (ColumnEdited, 0) => set_text(&mut rows.order, "status", "pending"),
            (ColumnEdited, _) => {
                let edited = AttributeValue::N("999999".to_owned());
                rows.order.insert("amountRefunded".to_owned(), edited);
            }
            (ColumnRemoved, 0) => drop(rows.order.remove("paymentStatus").unwrap()),
            (ColumnRemoved, _) => drop(rows.order.remove("amountRefunded").unwrap()),
            (RowOverwritten, _) => {
                super::clones::rename_item(&mut older, template, &rows.token);
                rows.order = older;
            }
            (FactDropped, _) => {
                let money = members(rows.payment(), &["facts", "money"]);
                let dropped = money.remove("refunds").or_else(|| money.remove("charges"));
                assert!(dropped.is_some());
            }
            (FactAltered, _) => {
                let money = members(rows.payment(), &["facts", "money"]);
                let (kind, member) = match money.contains_key("refunds") {
                    true => ("refunds", "amount"),
                    false => ("charges", "amountRefunded"),
                };
                for fact in members(money, &[kind]).values_mut() {
                    let AttributeValue::M(fact) = fact else {
                        panic!("{fact:?}");
                    };
                    set_amount(fact.get_mut(member).unwrap(), 77);
                }
            }
            (StateMissing, 0) => {
                let payment = rows.payment_key("#pi_");
                rows.states.remove(&payment).unwrap();
            }
            (StateMissing, _) => drop(rows.states.remove(&rows.order_key()).unwrap()),
            (OutcomeAltered, variant) => {
                let mut last = rows.events.last_entry().unwrap();
                let (outcome, processed) = [("ignored", true), ("parked", true)][variant];
                set_text(last.get_mut(), "processing_outcome", outcome);
                let processed = AttributeValue::Bool(processed);
                last.get_mut().insert("processed".to_owned(), processed);
            }
            (EdgeElsewhere, 0) => {
                let order = rows.order_key();
                let elsewhere = format!("order#ord_else{}", rows.token);
                let links = members(rows.payment(), &["facts", "links"]);
                let link = links.remove(&order).unwrap();
                links.insert(elsewhere, link);
            }
            (EdgeElsewhere, _) => {
                let elsewhere = rows.payment_key("#pi_").replace("#pi_", "#pi_else");
                let alias = rows.states.get_mut(&charge).unwrap();
                set_text(alias, "alias_of", elsewhere);
            }
            (TenantChanged, _) => set_text(&mut rows.order, "tenantId", "ten_other"),
            (TimelineCut, variant) => {
                let Some(AttributeValue::L(timeline)) = rows.order.get_mut("timeline") else {
                    panic!("no timeline");
                };
                match variant {
                    0 => drop(timeline.pop().unwrap()),
                    _ => timeline.truncate(1),
                }
            }
            (EntityDoubled, _) => {
                let mut twin = rows.payment().clone();
                set_text(&mut twin, "entity", &charge);
                rows.states.insert(charge, twin);
            }
            (AmountMisread, _) => {}
        }
    }

    /// What the proof names. `None` if only Stripe's objects show it.
    pub(super) fn named(&self) -> Option<ExpectedFinding> {
        if self.is_only_at_stripe() {
            return None;
        }
        let rows = &self.before;
        let order = || rows.order_key();
        let payment = || rows.payment_key("#pi_");
        let is_readable = self.events_left != EventsLeft::None;
        let is_refund =
            members(rows.clone().payment(), &["facts", "money"]).contains_key("refunds");
        let (state, place) = match (self.damage, self.variant) {
            (ColumnEdited, 0) => (order(), "row.status"),
            (ColumnEdited, _) => (order(), "row.amountRefunded"),
            (ColumnRemoved, 0) => (order(), "row.paymentStatus"),
            (ColumnRemoved, _) => (order(), "row.amountRefunded"),
            (RowOverwritten, _) => (order(), "row."),
            (FactDropped, _) if is_refund => (payment(), "facts.money.refunds"),
            (FactDropped, _) => (payment(), "facts.money.charges"),
            (FactAltered, _) if is_readable && is_refund => (payment(), "facts.money.refunds"),
            (FactAltered, _) if is_readable => (payment(), "facts.money.charges"),
            // The payment and its copy differ, and no event says which is right.
            (FactAltered, _) => (order(), "facts.payments"),
            (StateMissing, 0) => (order(), "facts.payments"),
            (StateMissing, _) => (payment(), "copy in order#"),
            (OutcomeAltered, _) => (payment(), "event evt_"),
            (EdgeElsewhere, 0) if is_readable => (payment(), "facts.links.order#"),
            (EdgeElsewhere, 0) => (order(), "facts.payments"),
            (EdgeElsewhere, _) => (rows.payment_key("#ch_"), "payment#"),
            (AmountMisread, _) => (payment(), "facts.money.payments.pi_"),
            (TenantChanged, _) => (order(), "tenant"),
            (TimelineCut, _) => (order(), "row.timeline"),
            (EntityDoubled, _) => (rows.payment_key("#ch_"), "alias_of"),
        };
        let result = match (self.damage, self.variant) {
            (ColumnEdited, 0) => "edited",
            _ => "different",
        };
        Some(ExpectedFinding {
            state,
            place,
            result,
        })
    }

    /// Stripe's own objects of its payment, which say what its events said.
    pub(super) fn stripe_objects(&self) -> [Value; 4] {
        assert!(self.is_everywhere());
        let token = self.token();
        let (intent, charge) = (format!("pi_{token}"), format!("ch_{token}"));
        let created = 1_780_000_000;
        [
            json!({ "id": intent, "object": "payment_intent", "created": created, "status": "succeeded",
                "amount": 4200, "amount_received": 4200, "currency": "usd", "latest_charge": charge,
                "livemode": false, "metadata": {} }),
            json!({ "id": charge, "object": "charge", "created": created, "payment_intent": intent, "amount": 4200,
                "amount_captured": 4200, "amount_refunded": 1000, "currency": "usd", "livemode": false }),
            json!({ "id": format!("re_{token}"), "object": "refund", "created": created, "payment_intent": intent,
                "charge": charge, "amount": 1000, "currency": "usd", "status": "succeeded" }),
            json!({ "id": format!("cs_{token}"), "object": "checkout.session", "created": created,
                "payment_intent": intent, "status": "complete", "payment_status": "paid", "amount_total": 4200,
                "currency": "usd", "livemode": false }),
        ]
    }
}

/// An amount is a number, or a map with one.
fn set_amount(value: &mut AttributeValue, amount: i64) {
    match value {
        AttributeValue::M(money) => set_amount(money.get_mut("amount").unwrap(), amount),
        other => *other = AttributeValue::N(amount.to_string()),
    }
}
