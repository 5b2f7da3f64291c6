//! The application's own writes of rows that billhook writes too: `billhook_testkit::sim::application` does them, this says
//! when.

use std::time::Duration;

use billhook_core::entity::EntityKey;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use billhook_testkit::sim::Sim;

/// How old a copy may be that the application writes back.
const COPY_AGE_MAX: Duration = Duration::from_mins(30);

/// Half of the orders have people who edit them; the other rows belong to an ORM that writes whole rows.
fn is_edited(key: &EntityKey) -> bool {
    let number = key.order().and_then(|id| id.as_str().strip_prefix("ord_"));
    let number = number.and_then(|number| number.parse::<u64>().ok());
    number.is_some_and(|number| number % 2 == 1)
}

/// Writes rows from older copies, deletes some and puts them back, and edits others.
pub(crate) async fn write_rows(sim: Sim, until: Timestamp) {
    while sim.now() < until {
        sim.wait(Duration::from_secs(5), Duration::from_mins(2))
            .await;
        let picked = {
            let mut world = sim.world();
            let rows = world.written_rows();
            (!rows.is_empty()).then(|| world.rng.pick(&rows))
        };
        let Some(key) = picked else {
            continue;
        };
        let mut world = sim.world();
        if is_edited(&key) {
            world.edit_order(&key);
            continue;
        }
        if world.rng.chance(60) {
            world.write_own_word(&key);
            continue;
        }
        let age = world.rng.span(Duration::ZERO, COPY_AGE_MAX);
        let then = world.now().before(age);
        if key.order().is_some() && world.rng.chance(150) {
            world.delete_row(&key);
            let (sim, deleted_at) = (sim.clone(), world.now());
            // Some are deleted for good.
            if world.rng.chance(300) {
                continue;
            }
            // Whoever deleted it restores it, from just before or from an older copy.
            tokio::task::spawn_local(async move {
                sim.wait(Duration::from_secs(1), Duration::from_mins(8))
                    .await;
                let mut world = sim.world();
                let is_old = world.rng.chance(500);
                world.put_copy(&key, if is_old { then } else { deleted_at });
            });
            continue;
        }
        world.put_copy(&key, then);
    }
}
