//! The stored format of a state is that of its schema version: `forms/<STATE_SCHEMA>.json` has every member that a state's
//! row can have, with every fact that there can be. The file of a schema version never changes, and older files stay,
//! because rows of every version are read.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use billhook_core::entity::EntityKey;
use billhook_core::entity::account::{
    AccountCapabilities, AccountFacts, ConnectedAccount, LatestCapabilities,
};
use billhook_core::entity::invoice::{InvoiceFacts, InvoiceRow};
use billhook_core::entity::key::PaymentKey;
use billhook_core::entity::mail::facts::{CarrierScan, MailFacts, MailStage, PieceFacts};
use billhook_core::entity::manual::{AcceptedAmount, FoundEdit, ManualEdits, PaymentRecord};
use billhook_core::entity::merge::{FactSource, MaxRegister, MinRegister, SeenInterval};
use billhook_core::entity::opening::OpeningState;
use billhook_core::entity::payment::facts::{
    ChargeFacts, DisputeFacts, DisputeState, FailedAttempt, IntentFacts, MoneyFacts,
    NewestFailures, RefundFacts, RefundState, ReviewFacts, SessionAmounts, SessionFacts,
    SessionParts, UserHints,
};
use billhook_core::entity::payment::linked::{
    LinkState, LinkedPaymentFacts, PaymentCopy, RelinkDecision,
};
use billhook_core::entity::payment::state::{LinkSource, PaymentFacts, PaymentRow};
use billhook_core::entity::schema::{GuardedColumns, LastDerived, STATE_SCHEMA, StateRow};
use billhook_core::entity::statement::StatementFacts;
use billhook_core::ids::{
    AccountId, ChargeId, CheckoutSessionId, EventId, InvoiceId, ObjectId, PaymentIntentId,
    PaymentRef, PieceId, RefundId, TenantId, UserId,
};
use billhook_core::money::{Currency, Money};
use billhook_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The rows of all kinds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct StoredForms {
    order: StateRow<LinkedPaymentFacts>,
    payment: PaymentRow,
    invoice: InvoiceRow,
    statement: StateRow<StatementFacts>,
    tenant: StateRow<AccountFacts>,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_s(1_781_000_000 + second).unwrap()
}

fn source(second: i64) -> FactSource {
    FactSource {
        at: at(second),
        event: EventId::parse("evt_1").unwrap(),
    }
}

fn seen(second: i64) -> SeenInterval {
    SeenInterval {
        first: source(second),
        last_at: MaxRegister(at(second + 60)),
    }
}

fn money(amount: i64) -> Money {
    Money {
        amount,
        currency: Currency::parse("usd").unwrap(),
    }
}

fn text(text: &str) -> Option<MinRegister<String>> {
    Some(MinRegister(text.to_owned()))
}

/// All variants; one that is added and not listed fails to compile.
macro_rules! every {
    ($name:ident { $($variant:ident),* $(,)? }) => {{
        fn _is_complete(state: $name) {
            match state { $($name::$variant => {})* }
        }
        [$($name::$variant),*]
    }};
}

/// Without `..Default::default()`: a new field does not compile until it is here, and then the form has changed.
fn every_fact() -> StoredForms {
    let intent = PaymentIntentId::parse("pi_1").unwrap();
    let session = CheckoutSessionId::parse("cs_1").unwrap();
    let charge = ChargeId::parse("ch_1").unwrap();
    let object = |id: &str| ObjectId::parse(id).unwrap();
    let user = UserId::parse("user_1").unwrap();
    let failed = FailedAttempt {
        stated: source(1),
        code: Some("card_declined".to_owned()),
        decline_code: Some("insufficient_funds".to_owned()),
    };
    let mut failures = NewestFailures::default();
    failures.insert(PaymentRef::Charge(charge.clone()), failed);
    let users = UserHints {
        reference: Some(MinRegister(user.clone())),
        metadata: Some(MinRegister(user.clone())),
    };
    let amounts = SessionAmounts {
        total: money(4000),
        parts: Some(SessionParts {
            subtotal: 4200,
            discount: 500,
            tax: 200,
            shipping: 100,
        }),
    };
    let paid = IntentFacts {
        succeeded: Some(source(2)),
        received: [money(4200)].into(),
        payer: users.clone(),
        authorized: Some(seen(35)),
        processing: Some(seen(3)),
        canceled: Some(source(4)),
        failures,
    };
    let refund_states = every!(RefundState {
        Pending,
        RequiresAction,
        Succeeded,
        Canceled,
        Failed,
    });
    let dispute_states = every!(DisputeState {
        Inquiry,
        Open,
        InquiryClosed,
        Prevented,
        Won,
        Lost,
    });
    let refund = RefundFacts {
        release: Some(source(5)),
        of: MinRegister(object("ch_1")),
        intent: Some(MinRegister(intent.clone())),
        amount: MaxRegister(money(1000)),
        states: refund_states.map(|state| (state, seen(5))).into(),
    };
    let payment = MoneyFacts {
        payments: [
            (PaymentRef::Intent(intent.clone()), paid),
            (PaymentRef::Session(session.clone()), IntentFacts::default()),
        ]
        .into(),
        sessions: [(
            session.clone(),
            SessionFacts {
                expired: Some(source(6)),
                completed: Some(source(7)),
                paid: [amounts].into(),
                intent: Some(MinRegister(intent.clone())),
            },
        )]
        .into(),
        charges: [(
            charge,
            ChargeFacts {
                intent: Some(MinRegister(intent.clone())),
                amount: Some(MaxRegister(money(5000))),
                captured: Some(MaxRegister(money(4200))),
                capture_before: Some(MaxRegister(at(36))),
                before_basil: Some(source(8)),
                refunded: Some(source(8)),
                refunded_in_full: Some(source(34)),
                amount_refunded: MaxRegister(1000),
            },
        )]
        .into(),
        refunds: [(RefundId::parse("re_1").unwrap(), refund)].into(),
        disputes: [(
            object("dp_1"),
            DisputeFacts {
                states: dispute_states.map(|state| (state, seen(9))).into(),
                amount: Some(MaxRegister(money(4200))),
                reason: Some(MinRegister("fraudulent".to_owned())),
                respond_by: Some(MaxRegister((at(37), Some(at(38))))),
            },
        )]
        .into(),
        warnings: [(object("issfr_1"), source(10))].into(),
        reviews: [(
            object("prv_1"),
            ReviewFacts {
                opened: Some(source(11)),
                closed: Some(source(12)),
            },
        )]
        .into(),
        users,
    };
    let key = |payment: &str| PaymentKey::parse(payment).unwrap();
    let invoice = InvoiceId::parse("in_1").unwrap();
    let order = EntityKey::parse("order#ord_1").unwrap();
    let relink = RelinkDecision {
        number: 1,
        entity: Some(order.clone()),
        actor: "arn:aws:iam::1:user/pat".to_owned(),
        reason: "the customer called".to_owned(),
    };
    let copy = |link| PaymentCopy {
        version: 3,
        link,
        invoices: [invoice.clone()].into(),
        relink: Some(MaxRegister(relink.clone())),
        is_paid: true,
        facts: payment.clone(),
    };
    let states = [
        LinkState::Linked,
        LinkState::Conflict(at(23)),
        LinkState::Elsewhere,
    ];
    let keys = ["pi_1", "pi_2", "pi_3"].map(|id| key(&format!("payment#acct_1#{id}")));
    let record = PaymentRecord {
        at: at(28),
        by: "pat".to_owned(),
        reason: "cash".to_owned(),
        is_entry: true,
    };
    let accepted = AcceptedAmount {
        at: at(39),
        by: "pat".to_owned(),
        reason: "a tip".to_owned(),
        due: money(4200),
    };
    let edit = FoundEdit {
        column: "status".to_owned(),
        found: "refunded".to_owned(),
        written: "completed".to_owned(),
    };
    let entity = LinkedPaymentFacts {
        payments: keys.into_iter().zip(states.map(copy)).collect(),
        cancelled: [at(13)].into(),
        manual: ManualEdits {
            refunded: [at(14)].into(),
            cleared: [("dispute_open:dp_1".to_owned(), MinRegister(at(15)))].into(),
            flagged: [at(16)].into(),
            recorded: [(at(28).to_string(), MinRegister(record))].into(),
            found_paid: [at(29)].into(),
            accepted: [(PaymentRef::parse("pi_1").unwrap(), MaxRegister(accepted))].into(),
            paid_dues: [(at(40), MinRegister(money(4200)))].into(),
            conflicts: [(at(30), [edit].into())].into(),
            replaced: [at(31)].into(),
        },
        opening: Some(MinRegister(OpeningState {
            adopted_before: at(33),
            status: Some("completed".to_owned()),
            payment_status: Some("paid".to_owned()),
            amount_refunded: Some(1000),
            review_reasons: ["dispute_open:dp_1".to_owned()].into(),
            mail_status: Some("mailed".to_owned()),
            intent: Some(PaymentIntentId::parse("pi_1").unwrap()),
            piece: Some("ltr_1".to_owned()),
        })),
    };
    let sources = every!(LinkSource {
        Metadata,
        Invoice,
        Object,
        Column,
        Reference,
    });
    let paid_for = PaymentRow {
        schema: STATE_SCHEMA,
        version: 5,
        facts_version: 4,
        alias_of: Some(key("payment#acct_1#pi_1")),
        facts: PaymentFacts {
            money: payment.clone(),
            names: [PaymentRef::parse("ch_1").unwrap()].into(),
            invoices: [invoice.clone()].into(),
            named: [order.clone()].into(),
            recipients: [AccountId::parse("acct_1").unwrap()].into(),
            links: [(
                order.clone(),
                sources.map(|way| (way, MinRegister(at(24)))).into(),
            )]
            .into(),
            relink: Some(MaxRegister(relink)),
        },
        denied: [order.clone()].into(),
        copied: [(order.clone(), 4)].into(),
        open_since: Some(at(25)),
        open: Some("outdated#1".to_owned()),
        open_at: Some(at(26)),
        first_event_at: Some(at(1)),
        last_event_at: Some(at(22)),
        event_ids: vec![EventId::parse("evt_1").unwrap()],
    };
    let latest = |word: &str| Some(MaxRegister((at(17), word.to_owned())));
    let piece = PieceFacts {
        stages: MailStage::ALL
            .iter()
            .map(|stage| (*stage, seen(18)))
            .collect(),
        expected_delivery_date: latest("2026-06-12"),
        tracking_number: latest("9400"),
        template_version: latest("vrsn_1"),
        scans: [(
            object("evnt_1"),
            CarrierScan {
                name: text("In Transit"),
                time: text("2026-06-09T10:13:00Z"),
                location: text("94107"),
            },
        )]
        .into(),
    };
    let capabilities = AccountCapabilities {
        charges_enabled: true,
        payouts_enabled: false,
    };
    let columns = GuardedColumns {
        status: Some("completed".to_owned()),
        payment_status: Some("paid".to_owned()),
        requires_review: Some(true),
        mail_status: Some("delivered".to_owned()),
        needs_attention: Some(false),
    };
    StoredForms {
        order: StateRow {
            schema: STATE_SCHEMA,
            version: 7,
            facts: entity.clone(),
            derived: LastDerived {
                columns: columns.clone(),
                review_reasons: vec!["dispute_open:dp_1".to_owned()],
                intent: Some(intent),
                session: Some(session),
                user: Some(user),
                // Never stored.
                removed: Vec::new(),
            },
            written: [(6, columns)].into(),
            version_column: Some("billhookVersion".to_owned()),
            tenant_id: TenantId::parse("ten_1").ok(),
            row_created_at: Some("2026-06-09".to_owned()),
            row_due: Some(money(4200)),
            row_user: Some("user_1".to_owned()),
            open: Some("missing#1".to_owned()),
            open_at: Some(at(32)),
            first_event_at: Some(at(1)),
            last_event_at: Some(at(22)),
            event_ids: vec![EventId::parse("evt_1").unwrap()],
        },
        payment: paid_for,
        invoice: InvoiceRow {
            schema: STATE_SCHEMA,
            version: 2,
            facts: InvoiceFacts {
                orders: [(order, MinRegister(at(27)))].into(),
                payments: [key("payment#platform#pi_1")].into(),
            },
        },
        statement: state(StatementFacts {
            payment: entity,
            mail: MailFacts {
                pieces: [(PieceId::parse("ltr_1").unwrap(), piece)].into(),
            },
        }),
        tenant: state(AccountFacts {
            accounts: [(
                AccountId::parse("acct_1").unwrap(),
                ConnectedAccount {
                    capabilities: Some(LatestCapabilities(at(19), capabilities)),
                    authorized: Some(MaxRegister(at(20))),
                    deauthorized: Some(MaxRegister(at(21))),
                },
            )]
            .into(),
        }),
    }
}

/// A state's row with nothing but facts.
fn state<F>(facts: F) -> StateRow<F> {
    StateRow {
        schema: STATE_SCHEMA,
        version: 1,
        facts,
        derived: LastDerived::default(),
        written: BTreeMap::new(),
        version_column: None,
        tenant_id: None,
        row_created_at: None,
        row_due: None,
        row_user: None,
        open: None,
        open_at: None,
        first_event_at: None,
        last_event_at: None,
        event_ids: Vec::new(),
    }
}

/// By number.
fn forms() -> BTreeMap<i64, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/forms");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path());
    files
        .map(|path| {
            let number = path.file_stem().unwrap().to_str().unwrap();
            let text = fs::read_to_string(&path).unwrap();
            (
                number.parse().unwrap(),
                serde_json::from_str(&text).unwrap(),
            )
        })
        .collect()
}

#[test]
fn the_stored_form_is_that_of_its_number() {
    let now = serde_json::to_value(every_fact()).unwrap();
    assert_eq!(
        forms().get(&STATE_SCHEMA),
        Some(&now),
        "the stored form changed: raise STATE_SCHEMA, keep the old file, and write forms/<STATE_SCHEMA>.json:\n{}",
        serde_json::to_string_pretty(&now).unwrap()
    );
}

#[test]
fn every_form_is_read() {
    let forms = forms();
    assert_eq!(forms.keys().max(), Some(&STATE_SCHEMA));
    for (number, form) in forms {
        let read = serde_json::from_value::<StoredForms>(form);
        let read = read.unwrap_or_else(|error| panic!("form {number}: {error}"));
        assert_ne!(
            read.statement.facts,
            StatementFacts::default(),
            "form {number}"
        );
    }
    let own = serde_json::to_value(every_fact()).unwrap();
    assert_eq!(
        serde_json::from_value::<StoredForms>(own).unwrap(),
        every_fact()
    );
}
