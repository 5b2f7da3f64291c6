//! `make prove-scale`: how long a proof of many orders takes, and how much memory. Both are printed with the time that
//! the local AWS took, which is slower than AWS and on the same machine.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

use super::*;

/// Orders that are made and written together.
const ORDERS_AT_ONCE: usize = 500;
/// The events arrived within so many days.
const DAYS: u64 = 30;
const MEMORY_KIB_MAX: u64 = 200 * 1024;
/// Of Linux, whatever the hardware.
const TICKS_PER_S: u64 = 100;

#[test]
#[ignore = "takes half an hour"]
fn a_proof_of_very_many_orders_takes_little_memory() {
    RUNTIME
        .block_on(async {
            let arena = ProofStage::deploy("scale").await?;
            let orders = std::env::var("ORDERS").map_or(Ok(100_000), |orders| orders.parse())?;
            prove_orders(&arena, orders).await
        })
        .unwrap();
}

async fn prove_orders(arena: &ProofStage, orders: usize) -> Result<()> {
    let world = &arena.world;
    let templates = TemplateOrders::make(world).await?;
    world.drained().await?;
    let begun = Instant::now();
    let (mut states, mut events) = (0, 0);
    let numbers: Vec<usize> = (0..orders).collect();
    for numbers in numbers.chunks(ORDERS_AT_ONCE) {
        let clone = |number: &usize| {
            let kind = number % templates.kinds.len();
            let token = token(['A', 'B', 'C', 'D'][kind], number + 1);
            let days = u64::try_from(*number).unwrap() % DAYS;
            templates.kinds[kind].rows.clone_as(&token, days)
        };
        let rows: Vec<OrderRows> = numbers.iter().map(clone).collect();
        states += rows.iter().map(|rows| rows.states.len()).sum::<usize>();
        events += rows.iter().map(|rows| rows.events.len()).sum::<usize>();
        put_orders(world, &rows).await?;
    }
    println!(
        "planted {orders} orders, {states} states and {events} events in {:?}",
        begun.elapsed()
    );

    let emulator = child_process("ministack").context("the local AWS's process")?;
    let (before, calls) = (cpu_time(emulator), arena.proxy.calls());
    let begun = Instant::now();
    let child = arena.start("prove --all --output json")?;
    let pid = child.id();
    let usage = tokio::task::spawn_blocking(move || watch(pid)).await?;
    let wall = begun.elapsed();
    let done = wait_for_exit(child).await?;
    done.assert_exit(0, " 0 edited, 0 unprovable, 0 different");
    println!("{} in {wall:?}", done.stderr.trim());
    println!(
        "billhook: {:?} of CPU, {} MiB of memory at most",
        usage.cpu,
        usage.memory_kib / 1024
    );
    println!("the local AWS: {:?} of CPU", cpu_time(emulator) - before);
    for (operation, count) in arena.proxy.calls() {
        let count = count - calls.get(&operation).copied().unwrap_or_default();
        println!("{operation}: {count} calls");
    }
    assert!(
        usage.memory_kib <= MEMORY_KIB_MAX,
        "{} KiB",
        usage.memory_kib
    );
    Ok(())
}

struct ProcessUsage {
    cpu: Duration,
    memory_kib: u64,
}

/// Waits until a child has ended, and says what it used. It stays a zombie, of which the CPU time is still known, until
/// somebody asks for its exit code.
fn watch(pid: u32) -> ProcessUsage {
    let mut memory_kib = 0;
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let of = |name: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next().map(str::to_owned)
        };
        let peak = of("VmHWM:").and_then(|peak| peak.parse().ok());
        memory_kib = peak.unwrap_or(memory_kib);
        if of("State:").is_none_or(|state| state == "Z") {
            return ProcessUsage {
                cpu: cpu_time(pid),
                memory_kib,
            };
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The CPU time of a process, in user and kernel mode.
fn cpu_time(pid: u32) -> Duration {
    let ticks: u64 = [13, 14]
        .iter()
        .filter_map(|field| stat_field(pid, *field)?.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_S)
}

/// A field of `/proc/<pid>/stat`, from 0. The name of the program, in brackets, may contain spaces.
fn stat_field(pid: u32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(field - 2).map(str::to_owned)
}

/// A child of this process whose command line has this text.
fn child_process(text: &str) -> Option<u32> {
    let own = std::process::id().to_string();
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains(text) && stat_field(*pid, 3).as_deref() == Some(own.as_str())
    })
}
