//! The local AWS by itself; flows across functions are in `tests/`.

use std::path::Path;
use std::time::{Duration, Instant};

use billhook_testkit::local::{LocalAws, Options};

#[test]
fn instances_run_side_by_side_and_end_with_their_owner() {
    let (first, second) = (Options::temporary("first"), Options::temporary("second"));
    let one = LocalAws::start(&first).expect("starts");
    let two = LocalAws::start(&second).expect("starts beside the first");
    assert_ne!(one.endpoint(), two.endpoint());
    drop(one);
    assert_gone(&first.dir);
    assert!(second.dir.exists());
    drop(two);
    assert_gone(&second.dir);
}

#[test]
fn a_kept_instance_is_found_again_and_stopped() {
    let options = Options {
        keep_running: true,
        ..Options::temporary("kept")
    };
    let started = LocalAws::start(&options).expect("starts");
    let endpoint = started.endpoint();
    drop(started);
    assert_eq!(
        LocalAws::running(&options.dir)
            .expect("still runs")
            .endpoint(),
        endpoint
    );
    assert!(LocalAws::stop(&options.dir).expect("stops"));
    assert!(!LocalAws::stop(&options.dir).expect("nothing to stop is no error"));
    assert_gone(&options.dir);
}

#[test]
fn a_pid_that_is_not_ours_is_left_alone() {
    let options = Options {
        keep_running: true,
        ..Options::temporary("stranger")
    };
    std::fs::create_dir_all(&options.dir).expect("creates");
    std::fs::write(options.dir.join("pid"), format!("{} 1", std::process::id())).expect("writes");
    assert!(!LocalAws::stop(&options.dir).expect("is no error"));
    std::fs::remove_dir_all(&options.dir).expect("removes");
}

/// No process has the folder as its home any more, and the folder is gone.
#[track_caller]
fn assert_gone(dir: &Path) {
    let home = format!("HOME={}", dir.display());
    let runs = || {
        std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .any(|process| {
                let environ = std::fs::read(process.path().join("environ")).unwrap_or_default();
                environ
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == home.as_bytes())
            })
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while dir.exists() || runs() {
        assert!(Instant::now() < deadline, "{home} is still there");
        std::thread::yield_now();
    }
}
