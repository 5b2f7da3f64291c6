//! Repairs: an operator's decision enters an order or statement as a fact, through the same merge and the same
//! optimistic lock as the facts of an event.
//!
//! So a repair survives every later event, replay and rebuild, and status, review and timeline follow from it at once.
//! A column that is edited by hand would be overwritten by the next event.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::attributes::string_value;
use billhook_core::entity::key::StateKey;
use billhook_core::entity::kind::StatedFacts;
use billhook_core::entity::manual::{ManualEdits, PaymentRecord};
use billhook_core::entity::merge::MinRegister;
use billhook_core::entity::payment::status::PaymentStatus;
use billhook_core::entity::projection::RowStanding;
use billhook_core::entity::{Entity, EntityKey, EntityUpdate};
use billhook_core::ids::ProviderId;
use billhook_core::outcome::ParkReason;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use billhook_core::worker::ports::{CommitError, CommitPart, EntityWrite, Ledger};

use crate::application_tables::locate_entity;
use crate::audit::{AuditContext, ChangeAuthor};
use crate::confirm::ChangeArgs;
use crate::dry_run::diff_entity;
use crate::exit::CommandExit;
use crate::output::print_notice;
use crate::row_standing::describe_row_standing;
use crate::session::StackSession;

/// Attempts to win the optimistic lock. A worker that processes a burst of events of one order may win a few times.
const ATTEMPTS_MAX: usize = 5;

/// Merges the facts that `make_facts` derives from the current row, or fails with its reason. It first shows what would
/// change and asks. The timeline records who did it and why.
pub(crate) async fn repair_entity(
    session: &StackSession,
    key: &EntityKey,
    action: &str,
    change: ChangeArgs,
    make_facts: impl Fn(&Entity, &ChangeAuthor) -> Result<StatedFacts>,
) -> Result<()> {
    let ledger = session.ledger(ProviderId::Stripe)?;
    let state = StateKey::Entity(key.clone());
    let keys = BTreeSet::from([state.clone()]);
    let mut confirmed: Option<AuditContext> = None;
    for _ in 0..ATTEMPTS_MAX {
        let mut rows = ledger.load_rows(&keys).await?;
        if let Some(reason) = rows.unreadable.remove(&state) {
            bail!("cannot read {key} ({reason}): restore the row from a backup");
        }
        let missing = || CommandExit::NotFound(format!("there is no {key}"));
        let (entity, row) = rows.entities.remove(key).ok_or_else(missing)?;
        let standing = describe_row_standing(&entity);
        if entity.row().is_missing {
            return Err(CommandExit::NotFound(standing.unwrap_or_default()).into());
        }
        match entity.write_refusal() {
            None => {}
            Some(ParkReason::StateBehind) => bail!(standing.unwrap_or_default()),
            Some(_) => bail!(
                "the row of {key} was moved to another tenant: restore its tenant column, then try again"
            ),
        }
        // Nobody may decide about a row that shows something else than the state: it is restored first.
        if matches!(entity.standing(), RowStanding::Stale { .. }) {
            let audit = match confirmed {
                Some(audit) => audit,
                None => {
                    let what = format!(
                        "somebody overwrote the row of {key}, which would only be restored"
                    );
                    change.confirm(session, &what, Some(1)).await?
                }
            };
            let now = SystemClock.now();
            let next = entity.apply_facts([], now);
            commit_entity(&ledger, &entity, &row, next, now).await?;
            write_timeline_note(session, key, "row restored", &audit).await?;
            bail!(
                "somebody had overwritten the row of {key}: it is restored now, so look at it again (billhook trace {}), then repeat",
                key.id()
            );
        }
        let Some(audit) = &confirmed else {
            let facts = make_facts(&entity, &ChangeAuthor::default())?;
            if !change.is_confirmed() {
                show_changes(&entity, &facts);
            }
            let what = format!("{action} of {key} would change the columns above");
            let audit = change.confirm(session, &what, Some(1)).await?;
            // The note comes first: if the command dies in between, a note without a repair can be explained, a repair
            // without a note cannot. The note changes the row, so the row is read again before the commit.
            write_timeline_note(session, key, action, &audit).await?;
            confirmed = Some(audit);
            continue;
        };
        let facts = make_facts(&entity, &audit.author)?;
        let now = SystemClock.now();
        let next = entity.apply_facts([facts], now);
        match commit_entity(&ledger, &entity, &row, next, now).await {
            Ok(()) => {
                if let Some(foreign) = standing {
                    print_notice(&foreign);
                }
                return Ok(());
            }
            Err(CommitError::LostRace | CommitError::Busy(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot write {key}")),
        }
    }
    bail!("{key} was changed by others {ATTEMPTS_MAX} times in a row: try again")
}

fn show_changes(entity: &Entity, facts: &StatedFacts) {
    let now = SystemClock.now();
    let next = entity.apply_facts([facts.clone()], now);
    for change in diff_entity(entity, &next, now) {
        let (column, before, after) = (change.column, change.before, change.after);
        print_notice(&format!("{column}: {before} -> {after}"));
    }
}

async fn commit_entity<L: Ledger>(
    ledger: &L,
    entity: &Entity,
    row: &L::Row,
    next: EntityUpdate,
    now: Timestamp,
) -> Result<(), CommitError> {
    let part = CommitPart {
        entities: vec![EntityWrite { entity, row, next }],
        states: Vec::new(),
        events: Vec::new(),
        now,
    };
    ledger.commit(ProviderId::Stripe, &[&part]).await
}

/// The fact that somebody attests a payment outside Stripe.
pub(crate) fn payment_record_facts(entity: &Entity, author: &ChangeAuthor) -> Result<StatedFacts> {
    let update = entity.apply_facts([], SystemClock.now());
    let is_paid = update.payment().is_some_and(|payment| {
        let mut reasons = payment.review_reasons.iter();
        let is_unproven = reasons.any(|reason| reason.starts_with("paid_unproven:"));
        payment.payment_status == PaymentStatus::Paid && !is_unproven
    });
    if is_paid {
        bail!("{} is already paid", entity.key());
    }
    let at = SystemClock.now();
    let record = PaymentRecord {
        at,
        by: author.actor.clone(),
        reason: author.reason.clone(),
        is_entry: false,
    };
    Ok(StatedFacts::Manual(ManualEdits {
        recorded: [(at.to_string(), MinRegister(record))].into(),
        ..ManualEdits::default()
    }))
}

pub(crate) async fn write_timeline_note(
    session: &StackSession,
    key: &EntityKey,
    action: &str,
    audit: &AuditContext,
) -> Result<()> {
    let (table, id) = locate_entity(key);
    let meta = HashMap::from([
        ("action".to_owned(), string_value(action)),
        ("reason".to_owned(), string_value(&audit.author.reason)),
    ]);
    let entry = AttributeValue::M(HashMap::from([
        ("type".to_owned(), string_value("note")),
        ("at".to_owned(), string_value(SystemClock.now().to_string())),
        ("actor".to_owned(), string_value("operator")),
        ("actorType".to_owned(), string_value("user")),
        ("actorId".to_owned(), string_value(&audit.author.actor)),
        ("meta".to_owned(), AttributeValue::M(meta)),
    ]));
    session
        .dynamodb
        .update_item()
        .table_name(table.name(session)?)
        .key(table.key(), string_value(id))
        .update_expression("SET timeline = list_append(if_not_exists(timeline, :none), :entry)")
        .condition_expression("attribute_exists(#key)")
        .expression_attribute_names("#key", table.key())
        .expression_attribute_values(":none", AttributeValue::L(Vec::new()))
        .expression_attribute_values(":entry", AttributeValue::L(vec![entry]))
        .send()
        .await
        .with_context(|| format!("cannot write to the timeline of {key}"))?;
    Ok(())
}
